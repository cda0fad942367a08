"""dev/faults.py: its cases are what they claim, and a small seeded share of them finds no defect."""

from __future__ import annotations

import json
import random
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dev import faults
from dev.fault_kinds import disks, kills, mutations
from dev.fault_kinds.launcher import Job, Launcher
from dev.fault_kinds.outcome import Outcome
from dev.fault_kinds.stages import STAGE_OF, World, leftovers, results, without_times
from nanochat.common import UserError


def assert_no_defect(outcomes: list[Outcome]) -> None:
    defects = [f"{o.verdict}: {o.kind}: {o.case}\n{o.detail}" for o in outcomes if o.verdict != "ok"]
    assert not defects, "\n".join(defects)


@given(st.randoms(use_true_random=False), st.sampled_from([".json", ".jsonl", ".toml", ".csv", ".txt", ".parquet"]))
def test_a_mutation_is_bytes_and_repeats_with_its_seed(rng: random.Random, suffix: str) -> None:
    data = b'{"a": [1, 2, {"b": "c"}], "d": null}\n'
    state = rng.getstate()
    first = mutations.mutate(data, suffix, rng)
    rng.setstate(state)
    assert mutations.mutate(data, suffix, rng) == first


def test_mutated_json_differs_in_one_place() -> None:
    value = {"a": [1, 2, {"b": "c"}], "d": None}
    changed = {mutations.mutate_json(json.dumps(value), random.Random(seed)) for seed in range(200)}
    assert len(changed) > 40
    assert sum('"b": "c"' in text for text in changed) > 20  # most leave the rest as it was


def test_a_signal_is_an_exit_code_and_success_is_always_right() -> None:
    kill = kills.Kill(STAGE_OF["base_train"], 1, (0,), "SIGTERM", (0.5,))
    assert kills.codes_after(kill) == {0, -15, 143}
    assert str(kill) == "base_train: SIGTERM at 0.500"
    two = kills.Kill(STAGE_OF["base_train"], 2, (1,), "SIGKILL", (0.5,))
    assert kills.codes_after(two) == {0, 1, 2, -9, 137, 143}


@pytest.mark.parametrize(
    ("text", "code", "verdict"),
    [
        ("Traceback (most recent call last):\n  ...", 143, "traceback"),
        ("error: no", 2, "lost"),
        ("stopped", 143, None),
    ],
)
def test_the_end_of_a_killed_process_is_judged(tmp_path: Path, text: str, code: int, verdict: str | None) -> None:
    (tmp_path / "output").write_text(text, encoding="utf-8")
    job = Job(1, tmp_path / "output", code)
    job.ended.set()
    problem = kills.wait([job], kills.Kill(STAGE_OF["base_train"], 1, (0,), "SIGTERM", (0.5,)))
    assert (problem and problem[0]) == verdict


def test_leftovers_and_results_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "base_data").mkdir()
    (tmp_path / "base_data" / "manifest.json").write_text("{}", encoding="utf-8")
    (tmp_path / "base_data" / ".x.tmp").write_text("", encoding="utf-8")
    assert leftovers(tmp_path) == ["base_data/.x.tmp"]
    assert [*results(STAGE_OF["dataset"], tmp_path)] == ["manifest.json"]
    assert results(STAGE_OF["base_train"], tmp_path) == {}
    assert without_times([{"seconds": 1, "loss": 2}]) == [{"loss": 2}]


def test_the_table_counts_verdicts() -> None:
    outcomes = [Outcome("b", "1", "ok"), Outcome("a", "2", "hang"), Outcome("b", "3", "ok")]
    lines = faults.table(outcomes).splitlines()
    assert lines[2] == "| a | 1 | 0 | 0 | 0 | 0 | 1 | 0 |"
    assert lines[-1] == "| all | 3 | 0 | 0 | 0 | 0 | 1 | 0 |"


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match="no kind floods: choose from kills, documents"):
        faults.Config(kinds="floods")


@pytest.mark.slow
def test_the_launcher_kills_and_reports(tmp_path: Path) -> None:
    with Launcher(tmp_path / "output") as launcher:
        done = launcher.run("nanochat.report", ["--help"], tmp_path)
        assert done.code == 0
        assert "usage: python -m nanochat.report" in done.text
        job = launcher.start("dev.bench_train", ["--device=cpu", "--compile=off"], tmp_path)
        assert job.kill(signal.SIGKILL)
        assert job.wait(60)
        assert job.code == -signal.SIGKILL
        assert not job.kill(signal.SIGKILL)


@pytest.mark.slow
def test_a_result_that_differs_is_found(tmp_path: Path) -> None:
    with Launcher(tmp_path / "output") as launcher:
        world = World(tmp_path / "world", launcher)
        world.prepare(("tok_train",), (1,))
        world.expected["tok_train", 1]["tokenizer.json"] = "0"
        kill = kills.Kill(STAGE_OF["tok_train"], 1, (0,), "SIGTERM", (0.0,))
        [outcome] = kills.disturb(world, 0, kill)
        assert outcome.verdict == "silent"
        assert outcome.detail == "differs from the undisturbed run: tokenizer.json"


@pytest.mark.slow
def test_stages_that_are_killed_arrive_at_the_same_results(tmp_path: Path) -> None:
    assert_no_defect([*kills.run(4, 1, tmp_path, ("tok_train", "base_train"))])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="mounts and limits of Linux")
def test_full_and_blocked_disks(tmp_path: Path) -> None:
    assert_no_defect([*disks.run(5, 1, tmp_path)])


@pytest.mark.slow
def test_damaged_files(tmp_path: Path) -> None:
    assert_no_defect([*mutations.run(2 * len(mutations.TARGETS), 1, tmp_path)])
