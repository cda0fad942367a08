"""A frozen dataclass becomes a command line: its fields are the flags, and a TOML file may come before them.

A script names each setting once, with its type, default and help text:

    @dataclass(frozen=True)
    class Config(Settings):
        depth: int = setting(20, "layers of the model; everything else follows from it", at_least=1)
        run: str | None = setting(None, "name of the run; none keeps no log")

    if __name__ == "__main__":
        cli(Config, main, __doc__)

and is called as `python -m scripts.x [settings.toml] [--depth=4] [--run NAME]`. Dashes and underscores are alike,
abbreviations are not accepted, a flag beats the file and the file beats the default. What is wrong with them is said in
a `UserError` of one line; a value that is not allowed also where a config is made without a command line.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import signal
import sys
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from nanochat.common import Stopped, UserError, print0
from nanochat.values import READERS, from_text, from_toml, kind_name, shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_NOT_GIVEN = object()  # only flags that were given may override the file


@dataclass(frozen=True)
class Settings:
    """What a config derives from: a value that its setting does not allow is refused wherever the config is made.

    A `__post_init__` of the config's own calls `super().__post_init__()` first.
    """

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, rule, choices = getattr(self, field.name), field.metadata["range"], field.metadata["choices"]
            allowed = rule is None or rule.allows(value)
            if choices:
                allowed, rule = value in (*choices, None), f"one of {', '.join(map(str, choices))}"
            if not allowed:
                raise UserError(f"{field.name} is {value!r}: it must be {rule} ({field.metadata['help']})")


C = TypeVar("C", bound=Settings)


@dataclass(frozen=True)
class _Range:
    """Which finite numbers a setting takes, and which value besides. As a text, in words."""

    at_least: float
    above: float
    at_most: float
    also: Any

    def allows(self, value: Any) -> bool:
        if value is None or value == self.also:
            return True
        is_number = isinstance(value, (int, float)) and math.isfinite(value)
        return is_number and self.at_least <= value <= self.at_most and value > self.above

    def __str__(self) -> str:
        least = f"above {self.above}" if self.above > -math.inf else f"at least {self.at_least}"
        words = least if self.at_most == math.inf else f"from {self.at_least} to {self.at_most}"
        return words if self.also is None else f"{words}, or {self.also}"


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
    also: Any = None,
) -> Any:
    """A dataclass field that is also a flag.

    `short="i"` adds `-i`; `positional=True` makes it a bare word; `choices` are the only values allowed. A number's
    range is `at_least` or `above` something, and perhaps `at_most`; `also` is allowed outside of it. None always is.
    """
    has_range = max(at_least, above, -at_most) > -math.inf
    rule = _Range(at_least, above, at_most, also) if has_range else None
    metadata = {"help": help, "short": short, "choices": choices, "positional": positional, "range": rule}
    return dataclasses.field(default=default, metadata=metadata)


def parse(config_class: type[C], argv: Sequence[str] | None = None, doc: str | None = None) -> C:
    """Read `[settings.toml] [flags]` (default: this process's arguments) into a config.

    Raises UserError, of one line, for an unknown setting, a wrong type, or a value that `__post_init__` refuses.

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
    has_file = bool(words) and words[0].endswith(".toml") and not words[0].startswith("-")  # --mixture=x.toml is none
    from_file = _read_toml(config_class, Path(words.pop(0))) if has_file else {}
    arguments, unknown = _parser(config_class, doc).parse_known_args([_underscored(word) for word in words])
    if unknown:
        raise UserError(f"unknown argument {unknown[0]}{_suggestion(config_class, unknown[0])}")
    try:
        given = {name: value for name, value in vars(arguments).items() if value is not _NOT_GIVEN}
        return config_class(**{**from_file, **given})
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error)) from error


def cli(config_class: type[C], main: Callable[[C], object], doc: str | None = None) -> None:
    """Run a script: read its config, call `main(config)`; a UserError becomes one line on stderr and exit code 2.

    A run that a signal has ended leaves with the code that a shell gives such a death: 130 for Ctrl-C, 143 for SIGTERM.
    So a script of several stages does not go on to the next one.
    """
    try:
        main(parse(config_class, None, doc))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except Stopped as stopped:
        print0(stopped)
        raise SystemExit(stopped.exit_code) from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        raise SystemExit(128 + signal.SIGINT) from None


class _Parser(argparse.ArgumentParser):
    """Reports a mistake as an exception instead of printing the usage and leaving."""

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
    for field, kinds in _fields(config_class):
        text = field.metadata["help"].replace("%", "%%")
        rule = f"; {field.metadata['range']}" if field.metadata["range"] else ""
        choices = field.metadata["choices"]
        options: dict[str, Any] = {
            "default": _NOT_GIVEN,
            "help": f"{text} (default: {shown(field.default)}{rule})",
            "metavar": "|".join(map(str, choices)) if choices else "|".join(map(kind_name, kinds)).upper(),
            "type": _reader(kinds),
        }
        if field.metadata["positional"]:
            parser.add_argument(field.name, nargs="?", **options)
            continue
        if bool in kinds:
            options.update(nargs="?", const=True)  # --flag, --flag=true, --flag=false
        short = field.metadata["short"]
        parser.add_argument(*([f"-{short}"] if short else []), f"--{field.name}", dest=field.name, **options)
    return parser


def _fields(config_class: type[Any]) -> list[tuple[dataclasses.Field[Any], tuple[Any, ...]]]:
    """Each field with the types it allows: `int | None` gives (int, NoneType)."""
    hints = typing.get_type_hints(config_class)
    found = []
    for field in dataclasses.fields(config_class):
        hint = hints[field.name]
        union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        kinds = typing.get_args(hint) if union else (hint,)
        assert all(kind in READERS for kind in kinds), (
            f"{config_class.__name__}.{field.name}: no flag can give a {hint}"
        )
        found.append((field, kinds))
    return found


def _reader(kinds: tuple[Any, ...]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return from_text(text, kinds)
        except TypeError as error:
            raise argparse.ArgumentTypeError(f"{text}: {error}") from error

    return read


def _read_toml(config_class: type[Any], path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise UserError(f"settings file {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"settings file {path}: {error}") from error
    kinds = {field.name: kinds for field, kinds in _fields(config_class)}
    values = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in kinds:
            raise UserError(f"settings file {path}: unknown setting {key}{_suggestion(config_class, name)}")
        try:
            values[name] = from_toml(value, kinds[name])
        except TypeError as error:
            raise UserError(f"settings file {path}: {key} = {value!r}: {error}") from error
    return values


def _underscored(word: str) -> str:
    """`--max-steps=a-b` -> `--max_steps=a-b`: the value stays as it is."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return "--" + name.replace("-", "_") + equals + value


def _suggestion(config_class: type[Any], word: str) -> str:
    if word.endswith(".toml"):
        return ": a settings file comes first"
    names = [field.name for field in dataclasses.fields(config_class)]
    close = difflib.get_close_matches(word.lstrip("-").partition("=")[0], names, n=1)
    return f"; did you mean --{close[0]}?" if close else " (--help lists every setting)"
