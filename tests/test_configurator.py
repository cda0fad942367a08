"""Flags, settings files and their mistakes."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.configurator import cli, parse, setting


@dataclass(frozen=True)
class Config:
    depth: int = setting(20, "layers, 100% of them", short="d")
    device_batch_size: int | str = setting("auto", "rows of one micro-batch")
    lr: float = setting(0.1, "learning rate")
    run: str | None = setting(None, "name of the run")
    flag: bool = setting(False, "a switch")
    data: Path | None = setting(None, "a folder")
    mode: str = setting("on", "what to do", choices=("on", "off"))
    bits: int = setting(8, "bits", choices=(4, 8))

    def __post_init__(self) -> None:
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


def test_a_flag_is_no_file() -> None:
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
def test_every_config_can_be_said_in_flags(config: Config) -> None:
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in dataclasses.asdict(config).items()]
    assert parse(Config, argv) == config


def test_positional_word() -> None:
    @dataclass(frozen=True)
    class Action:
        action: str = setting("generate", "what to do", choices=("generate", "reset"), positional=True)
        loud: bool = setting(False, "say more")

    assert parse(Action, []).action == "generate"
    assert parse(Action, ["reset", "--loud"]) == Action("reset", True)
    with pytest.raises(UserError, match="generate, reset"):
        parse(Action, ["rest"])


def test_a_type_that_no_flag_can_give_is_a_bug() -> None:
    @dataclass(frozen=True)
    class Wrong:
        names: list[str] = setting((), "names")

    with pytest.raises(AssertionError, match="names"):
        parse(Wrong, [])


def test_help_lists_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(Config, ["--help"], "What it does.\n\n    python -m x --depth=4\n")
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert "    python -m x --depth=4\n" in text
    for field in dataclasses.fields(Config):
        assert f"--{field.name}" in text
        assert field.metadata["help"] in " ".join(text.split())
    assert "default: auto" in text
    assert "default: none" in text


def test_cli_exit_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[Config] = []
    monkeypatch.setattr(sys, "argv", ["x", "--depth=3"])
    cli(Config, seen.append)
    assert seen == [Config(depth=3)]

    def refuse(_: Config) -> None:
        raise UserError("no tokenizer: train one first")

    with pytest.raises(SystemExit) as caught:
        cli(Config, refuse)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: no tokenizer: train one first\n"

    def stumble(_: Config) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):  # a bug keeps its traceback
        cli(Config, stumble)


def test_a_script_says_how_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        '"""Doc of the script."""\n'
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from nanochat.configurator import cli, setting\n"
        "@dataclass(frozen=True)\n"
        "class Config:\n"
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
