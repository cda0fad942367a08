"""Every command's `--help`: how it is called, and each setting with what it is, its default, choices and range."""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

import pytest

from nanochat.configurator import parse

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [f"scripts.{path.stem}" for path in sorted((ROOT / "scripts").glob("[a-z]*.py"))]
UNDER_TORCHRUN = {"base_train", "mid_train", "chat_sft", "chat_rl", "chat_eval", "base_loss", "base_eval"}


@pytest.mark.parametrize("name", [*SCRIPTS, "nanochat.dataset", "nanochat.report"])
def test_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = importlib.import_module(name)
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as left:
        parse(script.Config, ["--help"], script.__doc__)
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert f"python -m {name}" in text
    if name.partition(".")[2] in UNDER_TORCHRUN:
        assert f"torchrun --standalone --nproc_per_node=8 -m {name}" in text
    entries = [" ".join(entry.split()) for entry in re.split(r"\n  (?=\S)", text)]
    for field in dataclasses.fields(script.Config):
        default = {None: "none", "": '""'}.get(field.default, field.default)
        rule = field.metadata["range"]
        shown = f"{field.metadata['help']} (default: {default}{f'; {rule}' if rule else ''})".lower()
        flag = "" if field.metadata["positional"] else f"--{field.name} "
        [entry] = [one for one in entries if shown in one.lower() and flag in one]
        assert len(field.metadata["help"]) > 10
        assert [choice for choice in field.metadata["choices"] or () if str(choice) not in entry] == []
