"""Two models on the same examples: by hand, against a bootstrap, and through base_eval --compare."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from nanochat.checkpoint_manager import model_meta, run_dir, save_checkpoint
from nanochat.common import UserError
from nanochat.configurator import parse
from nanochat.core_eval import core_metric
from nanochat.eval.core_tables import comparison_row, comparison_summary, core_gain, task_gain
from nanochat.eval.eval_model import EvalModel
from nanochat.eval.task_result import TaskResult
from nanochat.reporting.schema import Z95, proportion
from nanochat.reporting.significance import mcnemar, paired_gain, unpaired_gain
from scripts import base_eval, base_loss, export_hf
from tests.test_core_eval import HAND, LOGITS, RUNTIME, TOKENIZER, pair_model, random_model, write_bundle


def result(correct: list[bool], baseline: float = 0.0, label: str = "t", examples: str = "same") -> TaskResult:
    """What a model made of a task."""
    return TaskResult(label, [int(right) for right in correct], 0.5, baseline, 0, examples, 0.0)


def answers(both: int, lost: int, won: int, neither: int) -> tuple[list[bool], list[bool]]:
    """What A and B solved: both, only A, only B, neither."""
    a = [True] * both + [True] * lost + [False] * won + [False] * neither
    return a, [True] * both + [False] * lost + [True] * won + [False] * neither


def test_why_pairing_narrows_the_interval() -> None:
    """The variance of a difference is that of A and that of B, less twice what they have in common.

    Models that meet the same easy and the same hard examples have much in common: of 400 answers here only 40 differ.
    The unpaired interval adds both variances as if other examples had been asked, and cannot tell B from A; the paired
    one subtracts the covariance, and can. Where the answers have nothing in common, both are equally wide.
    """
    a, b = answers(both=220, lost=12, won=28, neither=140)
    gain = task_gain(result(a), result(b))
    x, y = np.array(a, float), np.array(b, float)
    covariance = (x * y).mean() - x.mean() * y.mean()
    assert covariance == pytest.approx(220 / 400 - 232 / 400 * 248 / 400)
    paired = Z95 * math.sqrt((x.var() + y.var() - 2 * covariance) / 400)
    unpaired = Z95 * math.sqrt((x.var() + y.var()) / 400)
    low, high = gain["interval"]
    assert (high - low) / 2 == pytest.approx(paired, rel=0.03)
    assert low > 0
    assert gain["p"] == mcnemar(a, b) < 0.05
    other_low, other_high = unpaired_gain(proportion(sum(a), 400), proportion(sum(b), 400))["interval"]
    assert (other_high - other_low) / 2 == pytest.approx(unpaired, rel=0.03)
    assert other_low < 0
    assert other_high - other_low > 2 * (high - low)

    a, b = answers(both=100, lost=100, won=100, neither=100)
    widths = [
        np.ptp(found["interval"])
        for found in (paired_gain(a, b), unpaired_gain(proportion(200, 400), proportion(200, 400)))
    ]
    assert widths[0] == pytest.approx(widths[1], rel=0.02)


def test_core_gain_is_what_resampling_the_examples_gives() -> None:
    """The mean over tasks of centred differences; its interval against a bootstrap of the examples of each task."""
    rng, draw = random.Random(3), np.random.default_rng(3)
    before, after, resampled = [], [], np.zeros(4000)
    for label, count, baseline, gain in (("a", 2000, 0.25, 0.05), ("b", 800, 0.5, 0.1), ("c", 500, 0.0, 0.0)):
        ease = [rng.random() for _ in range(count)]
        one, two = ([e + 0.3 * rng.random() > 0.6 - better for e in ease] for better in (0, gain))
        before.append(result(one, baseline, label))
        after.append(result(two, baseline, label))
        difference = (np.array(two, float) - np.array(one, float)) / (1 - baseline)
        resampled += difference[draw.integers(0, count, (4000, count))].mean(1) / 3
    found = core_gain(before, after)
    assert found["value"] == pytest.approx(core_metric(after)[0]["value"] - core_metric(before)[0]["value"])
    assert found["n"] == 3300
    assert found["interval"] == pytest.approx(np.quantile(resampled, [0.025, 0.975]).tolist(), abs=0.002)
    separate = math.hypot(core_metric(before)[1], core_metric(after)[1])
    assert np.ptp(found["interval"]) / 2 < 0.7 * Z95 * separate, "less than if other examples had been asked"


def test_no_comparison_of_other_examples() -> None:
    with pytest.raises(AssertionError, match="other examples"):
        task_gain(result([True]), result([True], examples="other"))


def test_the_table() -> None:
    before, after = [result(found, 0.25, "name") for found in answers(0, 0, 8, 2)]
    low = 9 / 12 - 1 / 12 - Z95 * math.sqrt((9 / 12 + 1 / 12 - (8 / 12) ** 2) / 12)  # one more lost, one more won
    cells = comparison_row(before, after).split()
    assert cells == ["name", "0.0%", "80.0%", "+80.0%", "[", f"{low:+.1%},", "+100.0%]", "10", "p", "=", "0.008"]
    score, differ = comparison_summary([before], [after], "CORE")
    assert score.startswith("CORE: A -0.3333, B 0.7333, B - A +1.0667, 95% interval of the paired difference +0.4")
    assert differ.startswith("Tasks that differ with p < 0.05: name (")
    assert "0.1 of 1" in differ


# --- base_eval --compare ----------------------------------------------------------------------------------------------


@pytest.fixture
def two(run_here: Path) -> Path:
    """A base folder with a bundle and a model at two steps: at the first it says nothing."""
    TOKENIZER.save(run_here / "tokenizer")
    for step, gpt in ((5, pair_model({})), (10, pair_model(LOGITS))):
        save_checkpoint(run_dir("base", "d1"), step, gpt.state_dict(), {}, model_meta(gpt, RUNTIME, TOKENIZER))
    write_bundle(run_here / "eval_bundle", missing=["coqa"])
    return run_here


def test_two_steps_of_a_run(two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: without logits everything is a tie, of which the first option is taken."""
    config = parse(base_eval.Config, ["--compare", "d1:5", "d1", "--device=cpu"])
    results = base_eval.main(config)
    ties = [[not row.get("gold", 1) for row in rows] for _, rows, _ in HAND.values()]
    right = [right for _, _, right in HAND.values()]
    assert [found.correct for found in results] == [*ties, *right]
    said = capsys.readouterr().out
    assert "A is d1:5, B is d1:10\n" in said
    a, b = ((sum(ties[0]) / 4 - 0.4) / 0.6 + (sum(ties[1]) / 3 - 0.5) / 0.5) / 3, (1 / 6 + 1 / 3 + 1 / 4) / 3
    assert f"CORE over 3 of 4: A {a:.4f}, B {b:.4f}, B - A {b - a:+.4f}, 95% interval" in said
    assert "which the score leaves out: coqa" in said
    with open(two / "base_eval" / "compare_d1_000005_d1_000010.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["task"] for row in rows] == [*HAND, "CORE over 3 of 4"]
    assert float(rows[0]["difference"]) == sum(right[0]) / 4 - sum(ties[0]) / 4
    assert float(rows[3]["difference"]) == pytest.approx(b - a, abs=1e-5)
    section = json.loads((two / "report" / "core_compare.json").read_text(encoding="utf-8"))
    assert section["metrics"]["words"] == paired_gain(ties[2], right[2])
    assert section["metrics"]["CORE over 3 of 4"]["value"] == pytest.approx(b - a)
    assert section["notes"][0] == "A: Checkpoint d1 of step 5, computing in float32."
    assert not (two / "report" / "base_eval.json").exists()


def test_a_checkpoint_and_a_folder(two: Path, tmp_path: Path) -> None:
    """Its own export: no difference, and no more doubt than that one example more may be lost and one won."""
    folder = export_hf.main(export_hf.Config(out=tmp_path / "out"))
    results = base_eval.main(base_eval.Config(device="cpu", compare="d1", other=str(folder), max_per_task=3))
    assert [found.correct for found in results[:3]] == [found.correct for found in results[3:]]
    found = json.loads((two / "report" / "core_compare.json").read_text(encoding="utf-8"))["metrics"]
    assert found["choice"]["value"] == 0
    assert found["choice"]["p"] == 1
    assert (two / "base_eval" / "compare_d1_000010_out.csv").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("d2", "'d2' is neither a folder nor a base checkpoint as TAG or TAG:STEP: there are d1"),
        ("d1:7", "no checkpoint of step 7"),
        ("d1:x", "neither a folder nor a base checkpoint"),
        ("x" * 300, "neither a folder nor a base checkpoint"),
        ("/no/where", "neither a folder nor a name on the Hugging Face hub"),
    ],
)
@pytest.mark.usefixtures("two")
def test_no_such_model(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        EvalModel.from_name(name, RUNTIME, 100)


@pytest.mark.usefixtures("two")
def test_an_empty_name_is_not_ours() -> None:
    """As of a shell's variable that was never set: it must not become a score of our own model."""
    with pytest.raises(UserError, match="'' is neither a folder"):
        base_eval.main(base_eval.Config(device="cpu", hf_path=""))
    with pytest.raises(UserError, match="'' is neither a folder"):
        base_eval.main(base_eval.Config(device="cpu", compare="", other="d1"))
    with pytest.raises(UserError, match="'' is neither a folder"):
        base_loss.main(base_loss.Config(device="cpu", hf_path=""))


@pytest.mark.usefixtures("run_here")
def test_no_checkpoint_at_all() -> None:
    with pytest.raises(UserError, match="there is none in"):
        EvalModel.from_name("d2", RUNTIME, 100)


@pytest.mark.parametrize(
    "words", [["--compare", "d1"], ["d1"], ["--compare", "a", "b", "--hf-path=c"], ["-g", "a", "--hf-path=c"]]
)
def test_refused(words: list[str]) -> None:
    with pytest.raises(UserError, match=r"--compare A B|choose one of"):
        parse(base_eval.Config, words)


def test_another_random_model_is_compared_too(two: Path) -> None:
    """A tag beside a tag: both are loaded, and each answers for itself."""
    gpt = random_model(64)
    save_checkpoint(run_dir("base", "d2"), 1, gpt.state_dict(), {}, model_meta(gpt, RUNTIME, TOKENIZER))
    both = base_eval.main(base_eval.Config(device="cpu", compare="d2", other="d1"))
    alone = [base_eval.main(base_eval.Config(device="cpu", model_tag=tag)) for tag in ("d2", "d1")]
    assert [found.correct for found in both] == [found.correct for results in alone for found in results]
    assert torch.get_num_threads() == 1
    assert (two / "report" / "base_eval.json").exists()
