"""scripts.train_on: refused command lines, and a run."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from nanochat.common import base_dir, write_json_atomic
from nanochat.configurator import parse
from nanochat.pipeline import sizing, steps
from nanochat.report import read_sections
from nanochat.system.files import read_regular_file
from scripts import train_on


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "name the folder of your documents"),
        (["absent"], "absent: no such folder or file"),
        ([".", "--minutes=0"], "minutes is 0"),
        ([".", "--endpoint=http://localhost:1/v1"], "set both or neither"),
        ([".", "--endpoint=http://host.invalid/v1", "--model=m"], "must be https, or http on this machine"),
        ([".", "--base=../x"], "../x"),
        ([".", "--base=d77", "--base_from=."], "no checkpoint in base_checkpoints/d77; --base_from=FOLDER"),
        ([".", "--chat=perhaps"], "chat is 'perhaps'"),
    ],
)
@pytest.mark.usefixtures("base_dir")
def test_refused(refusal: Callable[..., str], flags: list[str], words: str) -> None:
    assert words in refusal(train_on, *flags)
    assert not list(base_dir().iterdir())


# --- a run ------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands for kill -9 at this place."""


@pytest.fixture
def in_this_process(run_here: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the steps of a run be calls in this process, on a tiny model; return the names of their modules."""
    assert run_here == base_dir(), "each run has its own folder"
    modules: list[str] = []

    def run(module: str, flags: Sequence[str], run_id: str) -> None:
        modules.append(module)
        if module == "nanochat.pipeline.speed":  # as slow as can be: the smallest run
            write_json_atomic(base_dir() / "speed.json", {"device": "cpu", "flops_per_second": 1e6})
            return
        script = importlib.import_module(module)
        monkeypatch.setenv("NANOCHAT_RUN_ID", run_id)
        script.main(parse(script.Config, list(flags)))

    monkeypatch.setattr(steps, "run_module", run)
    for name, value in {
        "CONTEXT": 64,
        "GROUNDED_CONTEXT": 256,
        "MIN_STEPS": 4,
        "EVALUATIONS": 2,
        "DEPTHS": (1,),
        "MIN_BYTES": 20,
    }.items():
        monkeypatch.setattr(sizing, name, value)
    return modules


def write_documents(folder: Path) -> None:
    """Write a few documents in Markdown, without a line in common."""
    draw = random.Random(1)
    names = iter(draw.sample(["Anna", "Berta", "Carlo", "Dina", "Emil", "Frida", "Gustav", "Hanna", "Ivo", "Jana"], 10))
    things = iter(
        draw.sample("boat cart lamp gate oven horn bell loom mill sled anvil plough kettle wagon".split(), 14)
    )
    folder.mkdir()
    for number in range(5):
        name, other, thing, tool = next(names), next(names), next(things), next(things)
        text = f"""# {name} and the {thing}

{name} is the keeper of the {thing}. {name} found the {tool} of {other} under the stairs in 19{number}7.
"The {thing} is too heavy for {other}," said {name}. The {thing} fell because the {tool} was broken.

## About the {tool}

A {tool} is a thing of iron that {other} made in {number + 3} days. {other} sold the {tool} to {name} for a song.
"""
        (folder / f"{number}.md").write_text(text, encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a run that must not depend on where it was stopped, by their paths."""
    patterns = ("tokenizer/*", "*_checkpoints/**/*.safetensors", "documents/conversations/*", "export/**/*.safetensors")
    return {
        str(path.relative_to(folder)): read_regular_file(path, 1 << 30)
        for pattern in patterns
        for path in sorted(folder.glob(pattern))
        if path.is_file()
    }


def assert_same(files: dict[str, bytes], others: dict[str, bytes]) -> None:
    assert files.keys() == others.keys()
    assert [name for name in files if files[name] != others[name]] == []


def run(folder: Path, *flags: str) -> None:
    train_on.main(parse(train_on.Config, [str(folder), "--minutes=1", "--device=cpu", "--chat=off", *flags]))


@pytest.mark.slow
def test_a_run_that_is_killed_in_every_step(
    run_here: Path,
    in_this_process: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run that is killed before and after the work of every step ends with the files of an undisturbed one."""
    write_documents(tmp_path / "notes")
    run(tmp_path / "notes", "--grounded")
    undisturbed = contents(run_here)
    assert any("chatsft_checkpoints" in name for name in undisturbed)
    assert "scripts.chat_cli --source=sft --grounded" in capsys.readouterr().out
    assert read_sections(run_here / "report")[0]["train_on"]["notes"]
    done = list(in_this_process)
    assert "scripts.export_hf" in done

    in_this_process.clear()
    run(tmp_path / "notes", "--grounded")
    assert in_this_process == ["scripts.read_documents"]
    assert_same(contents(run_here), undisturbed)

    again = tmp_path / "again"
    again.mkdir()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(again))
    plain_run = steps.run_module
    killed: set[tuple[str, str]] = set()

    def run_or_die(module: str, *arguments: Any) -> None:
        for moment in ("before", "after"):
            if moment == "after":
                plain_run(module, *arguments)
            if (module, moment) not in killed:
                killed.add((module, moment))
                raise Killed

    monkeypatch.setattr(steps, "run_module", run_or_die)
    for _ in range(2 * len(done)):
        try:
            run(tmp_path / "notes", "--grounded")
        except Killed:
            continue
        break
    assert_same(contents(again), undisturbed)
