"""dev/fault_kinds/documents.py: kills meet what they name, and a file that differs from an undisturbed run is seen."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from dev.fault_kinds import documents
from dev.fault_kinds.documents import Kill, Run
from nanochat.pipeline.plan import Choices, measuring_speed
from nanochat.pipeline.steps import StepRunner

# In place of scripts.train_on: steps as processes of their own, each of which writes a file and is not done again.
FAKE = """
import os, subprocess, sys, time
folder = os.environ["NANOCHAT_BASE_DIR"]
for name in ("first", "second"):
    path = os.path.join(folder, name)
    if not os.path.exists(path):
        if os.path.exists(os.path.join(os.path.dirname(folder), name + " never")):
            time.sleep(1000)
        print(f"== {name}", flush=True)
        program = f"import time; time.sleep(0.6); open({path!r}, 'w').write(EXTRA)"
        code = subprocess.call([sys.executable, "-c", program])
        if code:
            sys.exit(137)
"""


@pytest.fixture
def fake_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Function that puts a program in place of scripts.train_on; it gets an expression: the text that steps write."""

    def put(extra: str) -> None:
        package = tmp_path / "root" / "scripts"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
        (package / "train_on.py").write_text(FAKE.replace("EXTRA", extra), encoding="utf-8")
        monkeypatch.setattr(documents, "ROOT", tmp_path / "root")

    return put


KILLS = [Kill("first", 0.05, victim, at_once) for victim in documents.VICTIMS for at_once in (True, False)]


def test_kills_that_a_run_survives_are_counted(tmp_path: Path, fake_run: Callable[[str], None]) -> None:
    fake_run("'same'")
    expected, seconds = documents.run_undisturbed(tmp_path / "run", tmp_path, ())
    assert [*seconds] == ["first", "second"]
    assert min(seconds.values()) > 0
    (tmp_path / "run").rename(tmp_path / "undisturbed")
    outcomes = documents.disturb(tmp_path / "run", "plain", tmp_path, (), KILLS[:3], expected)
    assert [(outcome.verdict, outcome.kind) for outcome in outcomes if outcome.verdict != "ok"] == []
    assert outcomes
    assert not (tmp_path / "run").exists()


def test_another_result_is_a_defect(tmp_path: Path, fake_run: Callable[[str], None]) -> None:
    fake_run("'one'")
    expected, _ = documents.run_undisturbed(tmp_path / "run", tmp_path, ())
    (tmp_path / "run").rename(tmp_path / "undisturbed")
    fake_run("'other'")
    outcome = documents.disturb(tmp_path / "run", "plain", tmp_path, (), [], expected)[-1]
    assert outcome.verdict == "silent"
    assert outcome.detail == "differs from the undisturbed run: first, second"


@pytest.mark.parametrize("victim", documents.VICTIMS)
def test_a_kill_meets_its_victim(tmp_path: Path, fake_run: Callable[[str], None], victim: str) -> None:
    fake_run("'x'")
    (tmp_path / "base").mkdir()
    command = Run(tmp_path / "base", tmp_path, (), tmp_path / "output")
    assert command.wait_for("first")
    process = psutil.Process(command.process.pid)
    while not process.children():
        time.sleep(0.01)
    has_met, left = command.kill(victim)
    assert has_met
    assert len(left) == 1
    assert command.end() == (137 if victim == "step" else -9)
    assert documents.wait_for_end(left, 60)
    assert command.kill(victim) == (False, [])  # nothing is left to kill
    assert (tmp_path / "base" / "first").exists() is (victim == "run")  # a step whose run is killed may end its work


def test_a_step_that_never_begins_is_a_hang(tmp_path: Path, fake_run: Callable[[str], None]) -> None:
    fake_run("'x'")
    (tmp_path / "second never").touch()
    kill = Kill("second", 0.0, "all", False)
    [*_, outcome] = documents.disturb(tmp_path / "run", "plain", tmp_path, (), [kill], {}, limit=3)
    assert outcome.verdict == "hang"
    assert outcome.detail.startswith("second does not begin")


def test_kills_of_all_variants(
    tmp_path: Path, fake_run: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_run("'x'")
    monkeypatch.setattr(documents, "choose", lambda _rng, step, _seconds: Kill(step, 0.0, "all", False))
    outcomes = list(documents.run(3, 1, tmp_path / "cases"))
    assert {outcome.verdict for outcome in outcomes} == {"ok"}
    assert len(outcomes) >= 3


def test_the_end_of_a_run_is_judged(tmp_path: Path, fake_run: Callable[[str], None]) -> None:
    fake_run("undefined_name")
    (tmp_path / "base").mkdir()
    problem = documents.judge(Run(tmp_path / "base", tmp_path, (), tmp_path / "output"), None)
    assert problem is not None
    assert problem[0] == "traceback"


def test_times_are_no_results(tmp_path: Path) -> None:
    def write(seconds: float, loss: float) -> dict[str, str]:
        content = {
            "time": f"{seconds}",
            "seconds": seconds,
            "metrics": {"loss": loss, "tokens per second": seconds},
            "notes": ["Good.", f"This call took {seconds} minutes."],
        }
        (tmp_path / "section.json").write_text(json.dumps(content), encoding="utf-8")
        (tmp_path / "cpu.json").write_text(f"{seconds}", encoding="utf-8")
        return documents.results(tmp_path)

    first = write(1.0, 2.0)
    assert [*first] == ["section.json"]
    assert write(3.0, 2.0) == first
    assert write(1.0, 2.5) != first


def test_the_documents_and_the_speed_are_the_same_in_each_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        documents.write_documents(tmp_path / name)
    texts = [[path.read_bytes() for path in sorted((tmp_path / name).iterdir())] for name in ("one", "two")]
    assert texts[0] == texts[1]
    assert 20_000 < sum(map(len, texts[0])) < 60_000
    documents.prepare(tmp_path / "run", tmp_path / "one")
    runner = StepRunner(tmp_path / "run", lambda *_: pytest.fail("the speed is measured again"))
    runner.depend_on("speed")
    assert not runner.run(measuring_speed(Choices(tmp_path / "run", "elsewhere", device="cpu")))


def test_a_kill_is_named_and_chosen_within_its_step() -> None:
    assert str(Kill("base_train", 1.5, "all", True)) == "all killed 1.50 s into base_train, run again at once"
    chosen = [documents.choose(random.Random(seed), "tok_train", 4.0) for seed in range(50)]
    assert {kill.victim for kill in chosen} == {*documents.VICTIMS}
    assert all(0 <= kill.seconds <= 4 for kill in chosen)


def test_the_command_is_that_of_a_user(tmp_path: Path) -> None:
    assert documents.flags_of("base", tmp_path) == (f"--base_from={tmp_path / 'undisturbed-plain'}", "--base=d2")
    assert documents.flags_of("grounded", tmp_path) == ("--grounded",)
    assert documents.flags_of("plain", tmp_path) == ()
