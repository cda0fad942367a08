"""The steps as commands: their settings exist, and the mixture of fine-tuning has its shares."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pytest

from nanochat.configurator import parse
from nanochat.pipeline import plan
from nanochat.pipeline.plan import Choices
from nanochat.pipeline.sizing import size_run
from nanochat.pipeline.steps import Step
from tasks.mixture import read_mixture

SIZE = size_run(500_000, 15, 3e11)


def steps_of(choices: Choices) -> list[Step]:
    training = plan.further_training(choices, SIZE) if choices.base else plan.pretraining(choices, SIZE)
    return [
        *(plan.reading(choices), plan.measuring_speed(choices)),
        *(*training, *plan.conversations(choices), *plan.fine_tuning(choices, SIZE)),
    ]


@pytest.mark.parametrize("base", [None, "d12"])
@pytest.mark.parametrize("minutes", [1, 15])
def test_every_setting_exists(tmp_path: Path, base: str | None, minutes: float) -> None:
    choices = Choices(
        tmp_path, "notes", "cpu", 7, grounded=True, endpoint="http://localhost:1/v1", model="m", base=base
    )
    names = []
    for step in steps_of(choices):
        parse(importlib.import_module(step.module).Config, list(step.flags))
        names.append(step.name)
    assert len(set(names)) == len(names)
    assert size_run(500_000, minutes, 3e11).total_batch_size % 512 == 0


def test_choices_reach_the_commands(tmp_path: Path) -> None:
    commands = " ".join(step.command for step in steps_of(Choices(tmp_path, "notes", grounded=True)))
    assert "--grounded" in commands
    assert "--source=base --mixture" in commands
    commands = " ".join(step.command for step in steps_of(Choices(tmp_path, "notes", base="d12")))
    assert "--grounded" not in commands
    assert "--source=mid --mixture" in commands
    assert "scripts.tok_train" not in commands
    further = next(step for step in steps_of(Choices(tmp_path, "notes", base="d12")) if step.name == "mid_train")
    assert f"--patience={plan.PATIENCE}" in further.flags, "a model learns little text by heart"


@pytest.mark.parametrize(("num_bytes", "rate"), [(50_000, "0.2"), (500_000, "0.4"), (5_000_000, "0.6")])
def test_rates_of_fine_tuning_reach_the_command(tmp_path: Path, num_bytes: int, rate: str) -> None:
    steps = plan.fine_tuning(Choices(tmp_path, "notes"), size_run(num_bytes, 15, 3e11))
    assert f"--init_lr_frac={rate} " in steps[0].command


def test_no_index_where_python_cannot_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "fts5_fault", lambda: "no FTS5")
    assert [step.name for step in plan.conversations(Choices(tmp_path, "notes"))] == ["document_talks"]
    assert len(plan.conversations(Choices(tmp_path, "notes", grounded=True))) == 2  # whose first one names the fault


@pytest.mark.parametrize("talks", [10_000_000, 1_000_000, 20_000, 500])
def test_shares_of_the_mixture(tmp_path: Path, talks: int) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(plan.mixture_text(tmp_path / 'a "b"\\c.jsonl', talks), encoding="utf-8")
    own, base = read_mixture(file)
    assert own.options["path"] == str(tmp_path / 'a "b"\\c.jsonl')
    assert base.rows is not None
    assert base.fresh, "a long text is not read up to the same place three times"
    num_chars = base.rows * base.options["max_chars"]
    assert num_chars / (num_chars + talks) == pytest.approx(plan.BASE_TEXT_SHARE, abs=0.02 if talks > 10_000 else 0.5)


def test_few_conversations_take_few_steps() -> None:
    size = replace(SIZE, fine_tuning_steps=1000, total_batch_size=4096, vocab_size=1024)
    few = plan.with_talks(size, 100_000, 10**9).fine_tuning_steps
    assert 1 <= few < 100
    tokens = 100_000 / 2.6  # of conversations, three passes of which are 60% of the tokens
    assert few == pytest.approx(3 * tokens / 0.6 / 4096, abs=1)
    assert plan.with_talks(size, 10**9, 10**9).fine_tuning_steps == 1000
    assert plan.with_talks(size, 1, 10**9).fine_tuning_steps == 1


def test_fine_tuning_passes_over_little_text_twice() -> None:
    size = replace(SIZE, fine_tuning_steps=1000, total_batch_size=1024, vocab_size=1024)
    few = plan.with_talks(size, 10**9, 50_000).fine_tuning_steps
    assert few * 1024 * plan.BASE_TEXT_SHARE == pytest.approx(2 * 50_000 / 2.6, rel=0.02)
