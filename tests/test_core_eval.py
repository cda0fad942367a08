"""CORE: results computed by hand, any number of processes, and the real bundle with random guesses."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import model_meta, run_dir, save_checkpoint
from nanochat.common import UserError
from nanochat.core_eval import core_metric, evaluate_task
from nanochat.data.shards import write_dataset
from nanochat.eval.core_bundle import read_bundle
from nanochat.eval.core_prompts import TASK_TYPES, CoreExample, CoreTask, EncodedExample
from nanochat.eval.core_scorer import ModelScorer, OptionScore
from nanochat.eval.core_tables import core_name
from nanochat.eval.task_eval import choose_rows
from nanochat.eval.task_result import TaskResult
from nanochat.runtime import Runtime
from nanochat.train import LoopState
from nanochat.training.events import core_events
from scripts import base_eval, base_train
from tests.support.bundles import HAND_RESULTS, LOGITS, deep_model, pair_model, write_hand_bundle
from tests.support.processes import Forker
from tests.support.talks import TOKENIZER

CPU = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 0)


def test_by_hand(tmp_path: Path) -> None:
    """All three types of task: correct examples, centred accuracies, CORE and its standard error."""
    bundle = read_bundle(write_hand_bundle(tmp_path / "bundle", missing=["coqa"]))
    scorer = ModelScorer(pair_model(LOGITS))
    results = [evaluate_task(task, scorer, TOKENIZER, 64, CPU) for task in bundle.tasks]
    assert [result.correct for result in results] == list(HAND_RESULTS.values())
    assert [result.centred for result in results] == pytest.approx([0.1 / 0.6, 1 / 3, 0.25])
    assert [result.chance for result in results] == pytest.approx([(1 / 2 + 1 / 2 + 1 / 3 + 1 / 3) / 4, 0.5, 0])
    core, standard_error, guessing = core_metric(results)
    assert core_name(bundle) == "CORE over 3 of 4"
    assert core["value"] == pytest.approx((1 / 6 + 1 / 3 + 1 / 4) / 3)
    assert core["n"] == 11
    variances = [3 / 6 * 3 / 6 / 4 / 0.6**2, 3 / 5 * 2 / 5 / 3 / 0.5**2, 2 / 6 * 4 / 6 / 4]
    assert standard_error == pytest.approx(math.sqrt(sum(variances)) / 3)
    assert core["interval"] == pytest.approx(
        [core["value"] - 1.959964 * standard_error, core["value"] + 1.959964 * standard_error]
    )
    assert guessing == pytest.approx(((5 / 12 - 0.4) / 0.6 + 0 + 0) / 3)


def test_standard_error_of_a_mean() -> None:
    """3 of 4 correct with a baseline of a half: sqrt(p (1 - p) / 4) / 0.5 with p = 4 / 6; and all or none correct."""
    core, standard_error, guessing = core_metric([TaskResult("t", [1, 1, 1, 0], 0.5, 0.5, 0, "", 0.0)])
    assert (core["value"], guessing) == (0.5, 0.0)
    assert standard_error == pytest.approx(0.4714045)
    for num_correct in (0, 1):
        assert core_metric([TaskResult("t", [num_correct], 0.0, 0.0, 0, "", 0.0)])[1] == pytest.approx(math.sqrt(2) / 3)
    assert core_metric([TaskResult("t", [0] * 98, 0.0, 0.0, 0, "", 0.0)])[1] == pytest.approx(math.sqrt(0.99 / 9800))


@pytest.mark.parametrize("num", [1, 2, 20])
def test_the_interval_holds_with_few_examples(num: int) -> None:
    """It covers the true CORE in about 95 of 100 draws of `num` examples from each of 21 tasks like the bundle's."""
    rng = random.Random(num)
    tasks = [(0.02, 0.0)] * 6 + [(0.3, 0.25)] * 7 + [(0.52, 0.5)] * 8  # probability of a correct example, baseline
    truth = math.fsum((p - baseline) / (1 - baseline) for p, baseline in tasks) / 21
    num_covered = 0
    for _ in range(800):
        drawn = [TaskResult("t", [int(rng.random() < p) for _ in range(num)], 0.0, b, 0, "", 0.0) for p, b in tasks]
        low, high = core_metric(drawn)[0]["interval"]
        num_covered += low <= truth <= high
    assert 0.93 < num_covered / 800 < 0.97


def test_cut_prompts_are_counted() -> None:
    """They are scored, too: this model looks at the last token only, so a cut changes nothing."""
    examples = tuple(CoreExample((("L" * length, "ok"),)) for length in (3, 60, 61, 62, 200))
    task = CoreTask("t", "language_modeling", 0, " ", 0.0, examples)
    result = evaluate_task(task, ModelScorer(pair_model(LOGITS)), TOKENIZER, 64, CPU)
    assert (result.correct, result.num_cut) == (
        [True] * 5,
        2,
    )  # 61 letters, a space and "ok": 64 tokens are read, <|bos|> included


def test_the_hash_of_the_examples_stays_the_same() -> None:
    """Reports of earlier versions hold it: their results can be compared with new ones."""
    task = CoreTask("t", "schema", 0, " ", 0.0, (CoreExample((("It's", 'a "b"'), ("c", "d")), 1),))
    result = evaluate_task(task, ModelScorer(pair_model(LOGITS)), TOKENIZER, 64, CPU)
    assert result.examples_hash == "92dc0023c599cdb8"


# --- processes --------------------------------------------------------------------------------------------------------


def test_processes_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process scores every second example; the sum is the whole result. A choice of examples has another hash."""
    rng = random.Random(5)
    examples = tuple(CoreExample(tuple((f"q{n}", rng.choice("abcde") * 2) for _ in range(3)), n % 3) for n in range(11))
    task = CoreTask("t", "multiple_choice", 1, " ", 0.25, examples)
    scorer = ModelScorer(deep_model())
    whole = evaluate_task(task, scorer, TOKENIZER, 96, CPU)
    part = evaluate_task(task, scorer, TOKENIZER, 96, CPU, max_examples=4)
    assert 0 < sum(whole.correct) < 11
    assert part.num_examples == 4
    assert part.examples_hash != whole.examples_hash
    monkeypatch.setattr(dist, "all_reduce", lambda _: None)
    parts = [
        evaluate_task(task, scorer, TOKENIZER, 96, replace(CPU, rank=rank, world_size=2)).correct for rank in (0, 1)
    ]
    assert not any(parts[0][1::2])
    assert [a or b for a, b in zip(*parts, strict=True)] == whole.correct


def results_of(runtime: Runtime) -> list[dict[str, Any]]:
    """Results of tasks of all types, each with an odd number of examples and with one, so that rank 1 has none."""
    rng = random.Random(7)

    def text(max_len: int) -> str:
        return "".join(rng.choice("abc de") for _ in range(rng.randint(1, max_len))) + "."

    choices = [CoreExample(tuple((f"q{n}", text(9)) for _ in range(3)), n % 3) for n in range(9)]
    schemas = [CoreExample(tuple((text(120), f"e{n}") for _ in range(2)), n % 2) for n in range(7)]
    words = [CoreExample(((f"{n}L", "ok" if n % 3 else "oz"),)) for n in range(5)]
    scorers = (ModelScorer(deep_model(), 300), ModelScorer(deep_model(), 300), ModelScorer(pair_model(LOGITS)))
    results = []
    for task_type, examples, scorer in zip(TASK_TYPES, (choices, schemas, words), scorers, strict=True):
        for part in (examples, examples[:1]):
            task = CoreTask(task_type, task_type, 2, " ", 0.25, tuple(part))
            results.append({**vars(evaluate_task(task, scorer, TOKENIZER, 64, runtime)), "seconds": 0})
    return results


def test_two_processes_equal_one(forker: Forker, tmp_path: Path) -> None:
    """Each scores its own examples, and both get the whole result."""
    forker.run_ranks(write_results, tmp_path, NANOCHAT_DTYPE="float32")
    results = [json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    assert results[0] == results[1] == results_of(CPU)
    assert [len(result["num_correct"]) for result in results[0]] == [9, 1, 7, 1, 5, 1]
    assert all(True in result["num_correct"] and False in result["num_correct"] for result in results[0][::2])
    assert results[0][2]["num_cut"] > 1


def write_results(folder: Path) -> None:
    """Run one of the processes."""
    runtime = Runtime.start(device="cpu")
    (folder / f"{runtime.rank}.json").write_text(json.dumps(results_of(runtime)), encoding="utf-8")
    runtime.finish()


# --- the real bundle --------------------------------------------------------------------------------------------------


@pytest.mark.shared_data
def test_random_guesses(shared_data: Path) -> None:
    """With random scores CORE is within three standard errors of the value that the numbers of options imply."""
    bundle = read_bundle(shared_data / "eval_bundle.zip")
    assert core_name(bundle) == "CORE over 21 of 22"
    assert bundle.missing == ("coqa",)
    guesses = [
        (sum(task.guess_probabilities) / len(task.examples) - task.baseline) / (1 - task.baseline)
        for task in bundle.tasks
    ]
    assert sum(guesses) / 21 == pytest.approx(-0.0272, abs=1e-4)
    rng = random.Random(1)

    def guess(examples: Sequence[EncodedExample]) -> Iterator[tuple[EncodedExample, list[OptionScore]]]:
        for example in examples:
            yield example, [OptionScore(rng.random(), False) for _ in example.options]

    zero_shot = [replace(task, num_fewshot=0) for task in bundle.tasks]  # the guesses do not depend on the prompts
    results = [evaluate_task(task, guess, TOKENIZER, 2048, CPU, max_examples=200) for task in zero_shot]
    core, standard_error, guessing = core_metric(results)
    variances = []
    for task, result in zip(zero_shot, results, strict=True):
        chances = [task.guess_probabilities[row] for row in choose_rows(len(task.examples), 200)]
        assert result.chance == pytest.approx(math.fsum(chances) / len(chances))
        variance = math.fsum(p * (1 - p) for p in chances) / result.num_examples**2
        variances.append(variance / (1 - result.baseline) ** 2)
    assert standard_error == pytest.approx(math.sqrt(sum(variances)) / 21, rel=0.15)
    assert abs(core["value"] - guessing) < 3 * math.sqrt(sum(variances)) / 21
    assert guessing == pytest.approx(-0.0272, abs=2e-3)


# --- in a training run ------------------------------------------------------------------------------------------------


def test_in_a_training_run(run_here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every 2 steps and at the end, with a bundle. Without one, one line says so; with -1, none."""
    TOKENIZER.save(run_here / "tokenizer")
    write_dataset(["some text " * 9] * 9, ["some text"], source="folder")
    config = base_train.Config(
        depth=1,
        head_dim=32,
        max_seq_len=64,
        total_batch_size=128,
        num_iterations=3,
        eval_tokens=64,
        sample_every=-1,
        core_metric_every=2,
        device="cpu",
    )
    state = base_train.main(config)
    assert capsys.readouterr().out.count(f"No evaluation bundle at {run_here / 'eval_bundle'}: CORE") == 1
    assert not any("core" in row for row in state.history)
    base_train.main(replace(config, core_metric_every=-1))
    assert "CORE" not in capsys.readouterr().out
    write_hand_bundle(run_here / "eval_bundle")
    state = base_train.main(config)
    assert [row["step"] for row in state.history if "core" in row] == [2, 3]
    assert "CORE: " in capsys.readouterr().out


def test_a_model_without_a_finite_loss(
    run_here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """base_eval ends with an error, also if loading has found nothing; a training run prints it and continues."""
    monkeypatch.setattr(checkpoint_manager, "find_weight_fault", lambda _: None)
    model = pair_model(LOGITS)
    with torch.no_grad():
        model.head.weight[ord("a"), ord(" ")] = torch.nan  # after a space all probabilities are NaN
    TOKENIZER.save(run_here / "tokenizer")
    save_checkpoint(run_dir("base", "d1"), 5, model.state_dict(), {}, model_meta(model, CPU, TOKENIZER))
    path = write_hand_bundle(run_here / "eval_bundle")
    message = "choice: the loss is not finite on 4 of 4 examples: evaluate an earlier checkpoint"
    with pytest.raises(UserError, match=message):
        base_eval.main(base_eval.Config(device="cpu"))
    [event] = core_events(1, -1, model, TOKENIZER, CPU)
    capsys.readouterr()
    assert event.run(LoopState(step=1)) == {}
    assert capsys.readouterr().out.startswith(f"CORE is not measured: {message}")

    def one_in_two(examples: Sequence[EncodedExample]) -> Iterator[tuple[EncodedExample, list[OptionScore]]]:
        for example in examples:
            yield example, [OptionScore((1.0, math.inf)[example.index % 2], True)]

    with pytest.raises(UserError, match="words: the loss is not finite on 2 of 4"):
        evaluate_task(read_bundle(path).tasks[2], one_in_two, TOKENIZER, 64, CPU)
