"""Flags, settings files, former names of settings, and the messages about mistakes."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.configurator import Settings, cli, parse, setting, with_current_names

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Config(Settings):
    depth: int = setting(20, "layers, 100% of them", short="d")
    device_batch_size: int | str = setting("auto", "rows of one micro-batch")
    lr: float = setting(0.1, "learning rate")
    run: str | None = setting(None, "name of the run")
    flag: bool = setting(False, "a switch")
    data: Path | None = setting(None, "a folder")
    mode: str = setting("on", "what to do", choices=("on", "off"))
    bits: int = setting(8, "bits", choices=(4, 8))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth < 1:
            raise ValueError(f"depth = {self.depth}: at least 1")


@pytest.mark.parametrize(
    ("argv", "changed"),
    [
        ([], {}),
        (["--depth=4"], {"depth": 4}),
        (["--depth", "4"], {"depth": 4}),
        (["-d", "4"], {"depth": 4}),
        (["--", "--depth=4"], {"depth": 4}),  # as torchrun may leave it
        (["--depth=4", "--depth=5"], {"depth": 5}),
        (["--depth=1_000"], {"depth": 1000}),
        (["--device-batch-size=4"], {"device_batch_size": 4}),
        (["--device_batch_size", "4"], {"device_batch_size": 4}),
        (["--device-batch-size=auto"], {"device_batch_size": "auto"}),
        (["--lr=0"], {"lr": 0.0}),
        (["--lr=1e-3"], {"lr": 1e-3}),
        (["--lr", "-1"], {"lr": -1.0}),
        (["--run=a-b=c"], {"run": "a-b=c"}),
        (["--run=none"], {"run": None}),
        (["--run="], {"run": ""}),
        (["--flag"], {"flag": True}),
        (["--flag=true"], {"flag": True}),
        (["--flag", "false"], {"flag": False}),
        (["--data=/a/b-c"], {"data": Path("/a/b-c")}),
        (["--mode=off", "--bits=4"], {"mode": "off", "bits": 4}),
    ],
)
def test_flags(argv: list[str], changed: dict[str, Any]) -> None:
    config = parse(Config, argv)
    assert config == dataclasses.replace(Config(), **changed)
    for name, value in changed.items():
        assert type(getattr(config, name)) is type(value)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--depth=abc"], ["depth", "abc", "int"]),
        (["--depth=4.0"], ["depth", "4.0", "int"]),
        (["--depth"], ["depth"]),
        (["--depth=0"], ["depth = 0", "at least 1"]),
        (["--dep=4"], ["--dep", "--depth"]),  # no abbreviations
        (["--dpeth=4"], ["--dpeth", "did you mean --depth"]),
        (["--zzz"], ["--zzz", "--help"]),
        (["word"], ["word"]),
        (["--lr=nan"], ["lr", "nan", "float"]),
        (["--flag=maybe"], ["flag", "maybe", "true|false"]),
        (["--mode=x"], ["mode", "x", "on, off"]),
        (["--bits=5"], ["bits", "5", "4, 8"]),
        (["--depth=4", "my.toml"], ["my.toml", "comes first"]),
        (["absent.toml"], ["absent.toml", "No such file"]),
    ],
)
def test_mistakes_are_one_helpful_line(argv: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        parse(Config, argv)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_a_toml_path_as_a_value_is_not_the_settings_file() -> None:
    assert parse(Config, ["--data=my.toml"]).data == Path("my.toml")


def test_file_then_flags(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(
        'depth = 4\ndevice-batch-size = 16\nlr = 1\nrun = "none"\ndata = "x"\nflag = true\n', encoding="utf-8"
    )
    config = parse(Config, [str(path), "--depth=5"])
    assert config == Config(depth=5, device_batch_size=16, lr=1.0, run=None, data=Path("x"), flag=True)
    assert type(config.lr) is float


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("depth = 4.5", ["depth", "4.5", "int"]),
        ("depth = true", ["depth", "int"]),
        ('depth = "4"', ["depth", "'4'", "int"]),
        ("depth = -1", ["depth = -1", "at least 1"]),
        ("dpeth = 4", ["dpeth", "--depth"]),
        ('mode = "x"', ["mode", "x", "on, off"]),
        ("flag = 1", ["flag", "true|false"]),
        ("depth = ", ["my.toml"]),
        ("[model]\ndepth = 4", ["model"]),
        (b"# \xff", ["my.toml"]),
    ],
)
def test_mistakes_in_a_file(tmp_path: Path, text: str | bytes, words: list[str]) -> None:
    path = tmp_path / "my.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as caught:
        parse(Config, [str(path)])
    for word in words:
        assert word in str(caught.value)


FILES_THAT_ARE_NO_SETTINGS: dict[str, tuple[bytes, list[str]]] = {
    "UTF-16": ("depth = 4\n".encode("utf-16"), ["UTF-8"]),
    "Latin-1": (b'run = "\xe4"\n', ["UTF-8", "byte 7"]),
    "too large": (b"#" * 1_000_001, ["1,000,000 bytes"]),
    "nested": (b"a = " + b"[" * 5000, ["nested"]),
    "a long number": (b"depth = " + b"1" * 5000, ["4300 digits"]),
    "nan": (b"lr = nan", ["lr = nan", "float"]),
    "a long value": (b'depth = "' + b"x" * 5000 + b'"', ["depth = 'xxx", "5,002 characters"]),
    "a long name": (b"x" * 5000 + b" = 1", ["unknown setting", "5,000 characters"]),
    "an invisible name": (b'"\\u001b[2J" = 1', ["'\\x1b[2J'"]),
    "an empty path": (b'data = ""', ["data", "empty"]),
    "NUL": (b'data = "a\\u0000b"', ["data", "NUL"]),
    "a table": (b"[depth]\na = 1", ["depth", "int"]),
    "a date": (b"depth = 2020-01-01", ["depth", "int"]),
}


@pytest.mark.parametrize("kind", FILES_THAT_ARE_NO_SETTINGS)
def test_a_file_that_holds_no_settings(tmp_path: Path, kind: str) -> None:
    content, words = FILES_THAT_ARE_NO_SETTINGS[kind]
    (tmp_path / "my.toml").write_bytes(content)
    with pytest.raises(UserError) as caught:
        parse(Config, [str(tmp_path / "my.toml")])
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 600
    for word in words:
        assert word in message


@pytest.mark.timeout(20)
def test_a_settings_file_that_is_none(tmp_path: Path) -> None:
    """A folder, and a named pipe, which nothing may wait for."""
    (tmp_path / "folder.toml").mkdir()
    os.mkfifo(tmp_path / "pipe.toml")
    for name, word in (("folder", "is a folder"), ("pipe", "no regular file")):
        with pytest.raises(UserError, match=word):
            parse(Config, [str(tmp_path / f"{name}.toml")])


def test_a_mark_at_the_start_of_a_file(tmp_path: Path) -> None:
    """Editors on Windows write a BOM and CRLF."""
    (tmp_path / "my.toml").write_bytes(b"\xef\xbb\xbfdepth = 4\r\nlr = 1.0\r\n")
    assert parse(Config, [str(tmp_path / "my.toml")]) == Config(depth=4, lr=1.0)


# --- paths and names --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Places(Settings):
    out: Path | None = setting(None, "a file")
    source: str = setting("hub", "a data set, an address, or a folder", names="path", or_value="")
    mixture: str | None = setting(None, "a file", names="path")
    model_tag: str | None = setting(None, "a folder's name", names="name")
    text: str = setting("", "any text")


def ways_to_give(config_class: type[Any], name: str, value: str, folder: Path) -> list[Callable[[], Any]]:
    """The ways to give a setting: in code, as a flag, and in a file."""
    (folder / "my.toml").write_text(f"{name} = {json.dumps(value)}", encoding="utf-8")
    in_code = Path(value) if name == "out" else value
    return [
        lambda: config_class(**{name: in_code}),
        lambda: parse(config_class, [f"--{name}={value}"]),
        lambda: parse(config_class, [str(folder / "my.toml")]),
    ]


@pytest.mark.parametrize("name", ["out", "source", "mixture"])
def test_home_in_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for text, path in (("~/a b", f"{tmp_path}/a b"), ("~", str(tmp_path)), ("a/~", "a/~"), ("~root/x", None)):
        for build in ways_to_give(Places, name, text, tmp_path):
            value = getattr(build(), name)
            assert isinstance(value, Path if name == "out" else str)
            assert str(value) == (path or os.path.expanduser(text))
    for build in ways_to_give(Places, name, "~nobody-of-this-name/x", tmp_path):
        with pytest.raises(UserError, match="nobody-of-this-name"):
            build()


def test_an_address_is_not_changed(tmp_path: Path) -> None:
    for text in ("https://a.b//c", "", "hub"):
        for build in ways_to_give(Places, "source", text, tmp_path):
            assert build().source == text
    for build in ways_to_give(Places, "text", "~", tmp_path):
        assert build().text == "~"


@pytest.mark.parametrize("name", ["out", "mixture", "model_tag"])
def test_an_empty_path_or_name(tmp_path: Path, name: str) -> None:
    ways = ways_to_give(Places, name, "", tmp_path)
    for build in ways[name == "out" :]:  # Path("") is the current folder
        with pytest.raises(UserError, match="empty"):
            build()


@pytest.mark.parametrize("tag", ["exp/one", "../..", ".", "a\nb", "x" * 300])
def test_a_name_is_no_path(tmp_path: Path, tag: str) -> None:
    for build in ways_to_give(Places, "model_tag", tag, tmp_path):
        with pytest.raises(UserError, match=r"^model_tag is .*: it must "):
            build()


@dataclass(frozen=True)
class Renamed(Settings):
    init_lr_frac: float = setting(1.0, "first learning rate as a share", above=0, renamed_from="lr_scale")
    unembedding_lr: float = setting(0.004, "learning rate", renamed_from="head_lr")
    lr: float = setting(0.1, "learning rate")


@dataclass(frozen=True)
class NotRenamed(Settings):
    lr_scale: float = setting(2.0, "a setting that has kept the name")


@pytest.mark.parametrize("key", ["lr_scale", "lr-scale"])
def test_a_file_may_use_a_former_name(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    path = tmp_path / "old.toml"
    path.write_text(f"{key} = 0.5\nlr = 1\n", encoding="utf-8")
    assert parse(Renamed, [str(path)]) == Renamed(init_lr_frac=0.5, lr=1.0)
    assert capsys.readouterr().out == f"settings file {path}: lr_scale is now called init_lr_frac\n"
    assert parse(Renamed, [str(path), "--init-lr-frac=0.25"]).init_lr_frac == 0.25
    capsys.readouterr()
    path.write_text("lr_scale = 0.5", encoding="utf-8")
    assert parse(NotRenamed, [str(path)]).lr_scale == 0.5
    assert capsys.readouterr().out == ""


def test_only_rank_0_reports_a_former_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old.toml").write_text("lr_scale = 0.5", encoding="utf-8")
    monkeypatch.setenv("RANK", "1")
    assert parse(Renamed, [str(tmp_path / "old.toml")]).init_lr_frac == 0.5
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lr_scale = 0.5\ninit_lr_frac = 0.5", ["lr_scale", "init_lr_frac", "remove lr_scale"]),
        ("init-lr-frac = 0.5\nlr-scale = 0.5", ["lr_scale", "init_lr_frac", "remove lr_scale"]),
        ('lr_scale = "x"', ["lr_scale = 'x'", "float"]),
        ("lr_scale = 0", ["init_lr_frac is 0.0", "above 0"]),
        ("lr_scales = 1", ["unknown setting lr_scales", "did you mean --init_lr_frac"]),
    ],
)
def test_mistakes_with_a_former_name(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "old.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        parse(Renamed, [str(path)])
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_former_name_is_no_flag(capsys: pytest.CaptureFixture[str]) -> None:
    for argv in (["--lr_scale=0.5"], ["--lr-scale", "0.5"]):
        with pytest.raises(UserError, match=r"^unknown argument --lr_scale.*; did you mean --init_lr_frac\?$"):
            parse(Renamed, argv)
    with pytest.raises(UserError, match=r"did you mean --unembedding_lr\?$"):
        parse(Renamed, ["--head_lr=1"])
    with pytest.raises(SystemExit):
        parse(Renamed, ["--help"])
    assert "lr_scale" not in capsys.readouterr().out


def test_stored_settings_get_current_names() -> None:
    stored = {"lr": 0.2, "lr_scale": 0.5, "head_lr": None, "depth": 4}
    assert with_current_names(Renamed, stored) == {
        "lr": 0.2,
        "init_lr_frac": 0.5,
        "unembedding_lr": None,
        "depth": 4,
    }
    assert with_current_names(NotRenamed, stored) == stored
    with pytest.raises(UserError, match=r"head_lr and unembedding_lr .* remove head_lr"):
        with_current_names(Renamed, {"head_lr": 1, "unembedding_lr": 1})


@given(
    st.builds(
        Config,
        depth=st.integers(min_value=1),
        lr=st.floats(allow_nan=False),
        run=st.none()
        | st.text(alphabet=st.characters(exclude_categories=["Cs"])).filter(lambda s: s.lower() != "none"),
        flag=st.booleans(),
        mode=st.sampled_from(["on", "off"]),
    )
)
def test_every_config_can_be_given_by_flags(config: Config) -> None:
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in dataclasses.asdict(config).items()]
    assert parse(Config, argv) == config


@dataclass(frozen=True)
class Ranged(Settings):
    layers: int = setting(4, "number of layers", at_least=1)
    steps: int = setting(-1, "number of steps; -1 = to the end", at_least=1, or_value=-1)
    fraction: float = setting(0.5, "part of the data", at_least=0, at_most=1)
    wait: float = setting(30.0, "seconds", above=0, at_most=60)
    most: int = setting(3, "a number", at_most=9)
    lr: float = setting(0.1, "learning rate", above=0)
    batch_size: int | str = setting("auto", "rows of a batch", at_least=1, or_value="auto")
    max_layers: int | None = setting(None, "limit of layers; none = any number", at_least=1)
    free: float = setting(0.0, "any number")


INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("name", "inside", "outside", "rule"),
    [
        ("layers", [1, 10**9], [0, -1], "at least 1 (number of layers)"),
        ("steps", [1, -1], [0, -2], "at least 1, or -1 (number of steps; -1 = to the end)"),
        ("fraction", [0.0, 0.3, 1.0], [-0.001, 1.001, -INF, NAN], "from 0 to 1 (part of the data)"),
        ("wait", [0.1, 60.0], [0.0, 60.1, INF], "above 0 and at most 60 (seconds)"),
        ("most", [-7, 9], [10], "at most 9 (a number)"),
        ("lr", [1e-9, 1e9], [0.0, -1.0, INF, NAN], "above 0 (learning rate)"),
        ("batch_size", [1, 8, "auto"], [0, "all", "8 "], "at least 1, or auto (rows of a batch)"),
        ("max_layers", [1, None], [0], "at least 1 (limit of layers; none = any number)"),
        ("free", [-1.0, 0.0, INF], [], ""),
    ],
)
def test_ranges(tmp_path: Path, name: str, inside: list[Any], outside: list[Any], rule: str) -> None:
    """Configs built in code, flags and files are checked alike, and the message contains the setting's help."""
    for value in inside:
        assert getattr(Ranged(**{name: value}), name) == value
        assert getattr(parse(Ranged, [f"--{name}={value}"]), name) == value
    for value in outside:
        with pytest.raises(UserError) as built:
            Ranged(**{name: value})
        assert str(built.value) == f"{name} is {value!r}: it must be {rule}"
        if value == value and value != "8 ":  # flags do not accept nan, and ignore spaces around numbers
            (tmp_path / "my.toml").write_text(f"{name} = {value!r}", encoding="utf-8")
            for argv in ([f"--{name}={value}"], [str(tmp_path / "my.toml")]):
                with pytest.raises(UserError) as parsed:
                    parse(Ranged, argv)
                assert str(parsed.value) == str(built.value)


def test_choices_are_checked_without_a_command_line() -> None:
    for wrong, message in (({"mode": "x"}, "mode is 'x': it must be one of on, off"), ({"bits": 5}, "one of 4, 8")):
        with pytest.raises(UserError, match=message):
            Config(**wrong)  # type: ignore[arg-type]


def test_ranges_are_inherited_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    @dataclass(frozen=True)
    class Derived(Ranged):
        lr: float = setting(2.0, "learning rate, at least 1", at_least=1)

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.layers > self.max_layers:
                raise UserError("too many layers")

    assert Derived(max_layers=5).lr == 2
    for wrong, words in (({"layers": 0}, "layers is 0"), ({"lr": 0.5}, "lr is 0.5"), ({"max_layers": 3}, "too many")):
        with pytest.raises(UserError, match=words):
            Derived(**wrong)  # type: ignore[arg-type]
    with pytest.raises(SystemExit):
        parse(Derived, ["--help"])
    help_text = " ".join(capsys.readouterr().out.split())
    for default in ("default: 4; at least 1)", "default: -1; at least 1, or -1)", "default: 0.5; from 0 to 1)"):
        assert default in help_text
    assert "any number (default: 0.0)" in help_text


def test_positional_word() -> None:
    @dataclass(frozen=True)
    class Action(Settings):
        action: str = setting("generate", "what to do", choices=("generate", "reset"), positional=True)
        verbose: bool = setting(False, "print more")

    assert parse(Action, []).action == "generate"
    assert parse(Action, ["reset", "--verbose"]) == Action("reset", True)
    with pytest.raises(UserError, match="generate, reset"):
        parse(Action, ["rest"])


def test_a_type_that_no_flag_can_give_is_a_bug() -> None:
    @dataclass(frozen=True)
    class Wrong(Settings):
        names: list[str] = setting((), "names")

    with pytest.raises(AssertionError, match="names"):
        parse(Wrong, [])


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(Config, ["--help"], "Train a model.\n\n    python -m x --depth=4\n")
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert "    python -m x --depth=4\n" in text
    for field in dataclasses.fields(Config):
        assert f"--{field.name}" in text
        assert field.metadata["help"] in " ".join(text.split())
    assert "default: auto" in text
    assert "default: none" in text


@pytest.mark.parametrize("config", ["Config", "Resumable"])
def test_cli_without_the_other_processes(tmp_path: Path, config: str) -> None:
    """One line and exit code 1, without a wait for threads that still expect the others."""
    script = tmp_path / "script.py"
    script.write_text(
        "import dataclasses, threading, time\n"
        "from nanochat.configurator import Settings, cli, setting\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Config(Settings):\n"
        "    depth: int = setting(4, 'layers')\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Resumable(Settings):\n"
        "    resume: bool = setting(False, 'resume')\n"
        "def main(config):\n"
        "    print('a line of output')\n"
        "    threading.Thread(target=time.sleep, args=[1000]).start()\n"
        "    raise RuntimeError('[/src/gloo/transport/tcp/pair.cc:5] Connection closed by peer [10.0.0.2]:4')\n"
        f"cli({config}, main)\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": "1", "WORLD_SIZE": "2"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (1, "a line of output\n")
    [line] = done.stderr.splitlines()
    assert line.startswith("error: process 1: another process of this run has ended or cannot be reached: Connection")
    assert ("--resume" in line) == (config == "Resumable")


def test_cli_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    configs: list[Config] = []
    monkeypatch.setattr(sys, "argv", ["x", "--depth=3"])
    cli(Config, configs.append)
    assert configs == [Config(depth=3)]

    def raise_user_error(_: Config) -> None:
        raise UserError("no tokenizer: train one first")

    with pytest.raises(SystemExit) as caught:
        cli(Config, raise_user_error)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: no tokenizer: train one first\n"

    def fill_the_disk(_: Config) -> None:
        raise OSError(errno.ENOSPC, "-", "/a/b.txt")

    with pytest.raises(SystemExit) as caught:
        cli(Config, fill_the_disk)
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: /a/b.txt: No space left on device: free some space")

    for bug in (ValueError("a bug"), FileNotFoundError(errno.ENOENT, "a bug", "x")):

        def raise_bug(_: Config, bug: Exception = bug) -> None:
            raise bug

        with pytest.raises(type(bug), match="a bug"):  # with a traceback
            cli(Config, raise_bug)


def test_a_script_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        '"""Doc of the script."""\n'
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from nanochat.configurator import Settings, cli, setting\n"
        "@dataclass(frozen=True)\n"
        "class Config(Settings):\n"
        '    depth: int = setting(20, "layers")\n'
        "if __name__ == '__main__':\n"
        "    cli(Config, print, __doc__)\n",
        encoding="utf-8",
    )
    root = Path(__file__).resolve().parent.parent
    environment = {"PYTHONPATH": f"{root}:{tmp_path}", "PATH": ""}

    def call(*argv: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "script", *argv]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=60)

    assert call("--depth=4").stdout == "Config(depth=4)\n"
    assert "usage: python -m script [settings.toml]" in call("--help").stdout
    wrong = call("--depth=x")
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert "Traceback" not in wrong.stderr
