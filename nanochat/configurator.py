"""Command lines from frozen dataclasses: each field is a flag, and a TOML settings file may precede the flags.

A script declares each setting once, with its type, default and help text:

    @dataclass(frozen=True)
    class Config(Settings):
        depth: int = setting(20, "layers of the model; everything else follows from it", at_least=1)
        model_tag: str | None = setting(None, "name of the run's folder; none = d and the depth, for example d20")

    if __name__ == "__main__":
        cli(Config, main, __doc__)

and is called as `python -m scripts.x [settings.toml] [--depth=4] [--model-tag NAME]`. Dashes and underscores are alike,
abbreviations are not accepted, a flag overrides the file and the file overrides the default. A mistake raises a
`UserError` of one line. A value that its setting does not allow is also refused when a config is built in code.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from nanochat.common import UserError, check_name, command, expand_path, print0
from nanochat.system.files import use_caches_without_home

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


MAX_TOML_BYTES = 1_000_000  # of a settings file
MAX_SHOWN = 200  # characters of a wrong value in a message
_NOT_GIVEN = object()  # only flags that were given may override the file


# --- declaring settings -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """Base class of configs: refuses a value that its setting does not allow, wherever the config is built.

    `~` is expanded in paths: settings of the type Path, and those with `names="path"`. A subclass with a
    `__post_init__` calls `super().__post_init__()` first.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            rule = field.metadata["range"]
            choices = field.metadata["choices"]
            is_allowed = rule is None or rule.allows(value)
            if choices:
                is_allowed = value in (*choices, None)
                rule = f"one of {', '.join(map(str, choices))}"
            if not is_allowed:
                raise UserError(f"{field.name} is {value!r}: it must be {rule} ({field.metadata['help']})")
            if value is not None and value != field.metadata["or_value"]:
                object.__setattr__(self, field.name, _with_home(field, value))


def _with_home(field: dataclasses.Field[Any], value: Any) -> Any:
    """Return a setting's value, `~` expanded if it is a path. Raises `UserError` for an impossible path or name."""
    if isinstance(value, Path):
        return expand_path(value, field.name)
    if isinstance(value, str) and field.metadata["names"] == "name":
        return check_name(value, field.name)
    if isinstance(value, str) and field.metadata["names"] == "path":
        path = expand_path(value, field.name)
        return str(path) if value.startswith("~") else value  # a Path would change an address: https://a -> https:/a
    return value


C = TypeVar("C", bound=Settings)
V = TypeVar("V")


@dataclass(frozen=True)
class _Range:
    """Range of the finite numbers that a setting allows, with one more value (`or_value`). `str()` describes it."""

    at_least: float
    above: float
    at_most: float
    or_value: Any

    def allows(self, value: Any) -> bool:
        if value is None or value == self.or_value:
            return True
        is_number = isinstance(value, (int, float)) and math.isfinite(value)
        return is_number and self.at_least <= value <= self.at_most and value > self.above

    def __str__(self) -> str:
        if self.at_most < math.inf and self.at_least == -math.inf:
            words = (
                f"above {self.above} and at most {self.at_most}"
                if self.above > -math.inf
                else f"at most {self.at_most}"
            )
        elif self.at_most < math.inf:
            words = f"from {self.at_least} to {self.at_most}"
        elif self.above > -math.inf:
            words = f"above {self.above}"
        else:
            words = f"at least {self.at_least}"
        return words if self.or_value is None else f"{words}, or {self.or_value}"


def setting(
    default: Any,
    help: str,
    *,
    short: str | None = None,
    choices: Sequence[Any] | None = None,
    positional: bool = False,
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    or_value: Any = None,
    renamed_from: str | None = None,
    names: str | None = None,
) -> Any:
    """Declare a dataclass field that is also a flag.

    Args:
        default: value used if neither the file nor a flag gives one.
        help: one line for `--help` and for error messages.
        short: "i" adds the flag `-i`.
        choices: the only values allowed.
        positional: the setting is given as a plain argument, without a flag.
        at_least, above, at_most: range of a number.
        or_value: a value allowed outside of that range, or although it names nothing. None is always allowed.
        renamed_from: former name, still accepted in settings files and in old checkpoints, but not as a flag.
        names: of a text, "name" = it becomes the name of a file or folder (`check_name`), "path" = it is a path, or
            something else that does not begin with `~`, as an address or the name of a built-in data set.
    """
    assert names in (None, "name", "path"), f"names={names!r}: a text is a name, a path, or neither"
    has_range = max(at_least, above, -at_most) > -math.inf
    metadata = {
        "help": help,
        "short": short,
        "choices": choices,
        "positional": positional,
        "range": _Range(at_least, above, at_most, or_value) if has_range else None,
        "or_value": or_value,
        "renamed_from": renamed_from,
        "names": names,
    }
    return dataclasses.field(default=default, metadata=metadata)


# --- reading settings -------------------------------------------------------------------------------------------------


def parse(config_class: type[C], argv: Sequence[str] | None = None, doc: str | None = None) -> C:
    """Read `[settings.toml] [flags]` (default: this process's arguments) into a config.

    Raises a UserError of one line for an unknown setting, a wrong type, or a value that `__post_init__` refuses.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Config(Settings):
    ...     batch_size: int = setting(8, "rows in a batch")
    ...     lr: float = setting(0.1, "learning rate")
    >>> parse(Config, ["--batch-size=4", "--lr", "0"])
    Config(batch_size=4, lr=0.0)
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["--"]:  # left over from `torchrun ... -m scripts.x -- --depth=20`
        del words[0]
    has_file = bool(words) and words[0].endswith(".toml") and not words[0].startswith("-")  # not --mixture=x.toml
    from_file = _read_toml(config_class, expand_path(words.pop(0), "settings file")) if has_file else {}
    arguments, unknown = _parser(config_class, doc).parse_known_args([_underscored(word) for word in words])
    if unknown:
        raise UserError(f"unknown argument {_cut(unknown[0])}{_suggestion(config_class, unknown[0])}")
    from_flags = {name: value for name, value in vars(arguments).items() if value is not _NOT_GIVEN}
    try:
        return config_class(**{**from_file, **from_flags})
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def cli(config_class: type[C], main: Callable[[C], object], doc: str | None = None) -> None:
    """Run a script: read its config and call `main(config)`. Errors and signals end it as `command` describes."""
    with command(_resume_hint(config_class)):
        use_caches_without_home()
        main(parse(config_class, None, doc))


def _resume_hint(config_class: type[Any]) -> str:
    if "resume" in config_class.__dataclass_fields__:
        return "To go on from the last checkpoint, run the command again with --resume, with the machines that are left"
    return "Run the command again, with the machines that are left"


def with_current_names(config_class: type[Any], settings: Mapping[str, V]) -> dict[str, V]:
    """Return stored settings under their current names in `config_class`; unknown names stay as they are.

    For settings written by an older version, as in a checkpoint's meta.json. Raises UserError if a setting is present
    under both its former and its current name.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Config(Settings):
    ...     init_lr_frac: float = setting(1.0, "first learning rate as a share", renamed_from="lr_scale")
    >>> with_current_names(Config, {"lr_scale": 0.5, "seed": 1})
    {'init_lr_frac': 0.5, 'seed': 1}
    """
    current_names = {
        field.metadata["renamed_from"]: field.name
        for field in dataclasses.fields(config_class)
        if field.metadata["renamed_from"]
    }
    for former, current in current_names.items():
        if former in settings and current in settings:
            raise UserError(f"{former} and {current} are two names of one setting: keep {current} and remove {former}")
    return {current_names.get(name, name): value for name, value in settings.items()}


def load_toml(path: Path, kind: str) -> dict[str, Any]:
    """Return the content of a TOML file. Raises `UserError` for what is no such file, or too large to be settings.

    `kind`: words before the path in messages, such as "settings file".
    """
    try:
        if path.exists() and not path.is_file():  # opening a named pipe would wait for its other end
            raise UserError(f"{kind} {path}: is {'a folder' if path.is_dir() else 'no regular file'}")
        with open(path, "rb") as file:
            content = file.read(MAX_TOML_BYTES + 1)
        if len(content) > MAX_TOML_BYTES:
            raise UserError(f"{kind} {path}: is larger than {MAX_TOML_BYTES:,} bytes, so it holds no settings")
        values: dict[str, Any] = tomllib.loads(content.decode("utf-8-sig"))
        return values
    except OSError as error:
        raise UserError(f"{kind} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{kind} {path}: not UTF-8 at byte {error.start:,}: save it as UTF-8") from error
    except RecursionError:
        raise UserError(f"{kind} {path}: its values are nested too deeply") from None
    except UserError:
        raise
    except ValueError as error:  # of tomllib, or of a number of thousands of digits
        raise UserError(f"{kind} {path}: {error}") from error


def _read_toml(config_class: type[Any], path: Path) -> dict[str, Any]:
    content = load_toml(path, "settings file")
    given = {key.replace("-", "_"): (key, value) for key, value in content.items()}
    try:
        renamed = with_current_names(config_class, given)
    except UserError as error:
        raise UserError(f"settings file {path}: {error}") from None
    for former in given.keys() - renamed.keys():
        current = next(name for name, pair in renamed.items() if pair is given[former])
        print0(f"settings file {path}: {former} is now called {current}")
    types_by_name = {field.name: allowed_types for field, allowed_types in _fields(config_class)}
    values = {}
    for name, (key, value) in renamed.items():
        if name not in types_by_name:
            shown = key if key.isprintable() else repr(key)
            raise UserError(f"settings file {path}: unknown setting {_cut(shown)}{_suggestion(config_class, name)}")
        try:
            values[name] = _from_toml(value, types_by_name[name])
        except (TypeError, UserError) as error:
            raise UserError(f"settings file {path}: {key} = {_cut(repr(value))}: {error}") from error
    return values


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as an exception instead of printing the usage and exiting."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists every setting)")


def _parser(config_class: type[Any], doc: str | None) -> argparse.ArgumentParser:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    parser = _Parser(
        prog=f"python -m {spec.name.removesuffix('.__main__')}" if spec else None,
        usage="%(prog)s [settings.toml] [settings]",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for field, allowed_types in _fields(config_class):
        text = field.metadata["help"].replace("%", "%%")
        rule = f"; {field.metadata['range']}" if field.metadata["range"] else ""
        choices = field.metadata["choices"]
        options: dict[str, Any] = {
            "default": _NOT_GIVEN,
            "help": f"{text} (default: {_format_value(field.default)}{rule})",
            "metavar": "|".join(map(str, choices)) if choices else "|".join(map(_type_name, allowed_types)).upper(),
            "type": _flag_type(allowed_types),
        }
        if field.metadata["positional"]:
            parser.add_argument(field.name, nargs="?", **options)
            continue
        if bool in allowed_types:
            options.update(nargs="?", const=True)  # --flag, --flag=true, --flag=false
        short = field.metadata["short"]
        parser.add_argument(*([f"-{short}"] if short else []), f"--{field.name}", dest=field.name, **options)
    return parser


def _fields(config_class: type[Any]) -> list[tuple[dataclasses.Field[Any], tuple[Any, ...]]]:
    """Return each field with the types it allows: `int | None` gives (int, NoneType)."""
    hints = typing.get_type_hints(config_class)
    fields = []
    for field in dataclasses.fields(config_class):
        hint = hints[field.name]
        is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        allowed_types = typing.get_args(hint) if is_union else (hint,)
        assert all(allowed in _TEXT_READERS for allowed in allowed_types), (
            f"{config_class.__name__}.{field.name}: a setting cannot be a {hint}"
        )
        fields.append((field, allowed_types))
    return fields


def _cut(text: str) -> str:
    """Return a text for a message, cut if it is long."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text):,} characters)"


def _underscored(word: str) -> str:
    """Replace the dashes in a flag's name, not in its value: `--max-steps=a-b` -> `--max_steps=a-b`."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return "--" + name.replace("-", "_") + equals + value


def _suggestion(config_class: type[Any], word: str) -> str:
    """Return the end of the message about an unknown setting: the setting that was probably meant, if any."""
    if word.endswith(".toml"):
        return ": a settings file comes first"
    name_of: dict[str, str] = {}
    for field in dataclasses.fields(config_class):
        name_of[field.name] = field.name
        if field.metadata["renamed_from"]:
            name_of[field.metadata["renamed_from"]] = field.name
    matches = difflib.get_close_matches(word[:MAX_SHOWN].lstrip("-").partition("=")[0], name_of, n=1)
    return f"; did you mean --{name_of[matches[0]]}?" if matches else " (--help lists every setting)"


# --- values as text and in TOML ---------------------------------------------------------------------------------------
# `allowed_types` are the types that a setting may have, as (int, NoneType).


def _read_none(text: str) -> None:
    if text.lower() != "none":
        raise ValueError(text)


def _read_bool(text: str) -> bool:
    return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[text.lower()]


def _read_text(text: str) -> str:
    """Return text of the command line; bytes that are not UTF-8, which Python has as half surrogates, become U+FFFD."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _read_float(text: str) -> float:
    value = float(text)
    if math.isnan(value):
        raise ValueError("nan")
    return value


# In the order in which they are tried for a setting of several types: the narrowest first.
_TEXT_READERS: dict[Any, Callable[[str], Any]] = {
    types.NoneType: _read_none,
    bool: _read_bool,
    int: int,
    float: _read_float,
    Path: expand_path,
    str: _read_text,
}


def _flag_type(allowed_types: tuple[Any, ...]) -> Callable[[str], Any]:
    """Return the `type` function of a flag for argparse, which reads the flag's text."""

    def read(text: str) -> Any:
        try:
            return _from_text(text, allowed_types)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        except TypeError as error:
            raise argparse.ArgumentTypeError(f"{_cut(text)}: {error}") from error

    return read


def _from_text(text: str, allowed_types: tuple[Any, ...]) -> Any:
    """Return the value of a flag's text. Raises TypeError, which names the types expected.

    >>> _from_text("8", (int, str)), _from_text("auto", (int, str)), _from_text("none", (Path, types.NoneType))
    (8, 'auto', None)
    """
    for candidate, read in _TEXT_READERS.items():
        if candidate in allowed_types:
            try:
                return read(text)
            except UserError:
                raise
            except (ValueError, KeyError):
                continue  # the next type may fit
    raise TypeError(_expected(allowed_types))


def _from_toml(value: Any, allowed_types: tuple[Any, ...]) -> Any:
    """Return the value of a TOML entry. Raises TypeError, which names the types expected.

    TOML values are typed. None and paths, which TOML lacks, are strings; an integer is also accepted as a float.

    >>> _from_toml("none", (int, types.NoneType)), _from_toml(1, (float,))
    (None, 1.0)
    """
    if value == "none" and types.NoneType in allowed_types:
        return None
    if type(value) in allowed_types and value == value:  # not nan
        return value
    if type(value) is int and float in allowed_types:
        return float(value)
    if isinstance(value, str) and Path in allowed_types:
        return expand_path(value)
    raise TypeError(_expected(allowed_types))


def _expected(allowed_types: tuple[Any, ...]) -> str:
    return f"expected {' or '.join(map(_type_name, allowed_types))}"


def _type_name(value_type: type) -> str:
    """Return the name of a type for `--help` and messages."""
    return {types.NoneType: "none", bool: "true|false", str: "text"}.get(value_type, value_type.__name__)


def _format_value(value: object) -> str:
    """Return a value as text that its flag accepts."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) or '""'
