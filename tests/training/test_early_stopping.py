"""Early stopping: which checkpoint is kept, when a run ends, and that a run that was killed ends in the same place."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.checkpoint_manager import Checkpoint, list_steps, open_checkpoint
from nanochat.common import UserError
from nanochat.configurator import parse
from nanochat.data.shards import write_dataset
from nanochat.report import read_sections
from nanochat.train import LoopState
from nanochat.training import early_stopping
from nanochat.training.early_stopping import best_step, check_patience, is_exhausted
from scripts import base_train, chat_sft, mid_train
from scripts.base_train import Config, main
from tests.support.finetune import FAST
from tests.support.talks import TOKENIZER, save_model, talk, task_entry, write_mixture, write_talks

FLAGS = [
    *("--depth=1", "--head_dim=32", "--max_seq_len=32", "--total_batch_size=256", "--sample_every=-1"),
    *("--num_iterations=40", "--eval_tokens=512", "--core_metric_every=-1", "--device=cpu", "--compile=off"),
    *("--device_batch_size=8", "--save_every=2", "--keep_last=1", "--eval_every=4"),
]
PATIENT = [*FLAGS, "--patience=2"]


def history_of(values: Sequence[float]) -> list[dict[str, float]]:
    """A history with an evaluation at every tenth step, and losses in between."""
    return [
        row
        for step, value in enumerate(values, 1)
        for row in ({"step": 10 * step - 5, "loss": 1.0}, {"step": 10 * step, "val_bpb": value})
    ]


@given(st.lists(st.sampled_from([1.0, 1.5, 2.0, 2.5]), max_size=12), st.integers(1, 4))
def test_a_run_ends_after_so_many_evaluations_without_a_better_one(values: list[float], patience: int) -> None:
    best, num_worse, ends = float("inf"), 0, []
    for value in values:  # the rule as a loop that remembers
        num_worse = 0 if value < best else num_worse + 1
        best = min(best, value)
        ends.append(num_worse >= patience)
    histories = [history_of(values[:count]) for count in range(1, len(values) + 1)]
    assert [is_exhausted(history, patience) for history in histories] == ends
    assert not any(is_exhausted(history, -1) for history in histories)
    assert best_step(history_of(values)) == (10 * (values.index(best) + 1) if values else None)


def test_every_evaluated_step_needs_a_checkpoint() -> None:
    check_patience(-1, -1, -1)
    check_patience(3, 20, 10)
    for eval_every, save_every in ((20, -1), (-1, 10), (20, 15), (10, 20)):
        with pytest.raises(UserError, match="patience is 3"):
            check_patience(3, eval_every, save_every)


@pytest.mark.parametrize("script", [base_train, mid_train, chat_sft], ids=lambda script: script.__name__)
def test_refused_as_a_setting(refusal: Callable[..., str], script: ModuleType) -> None:
    assert "eval_every must be a multiple of save_every" in refusal(
        script, "--patience=1", "--eval_every=10", "--save_every=4"
    )


# --- runs that learn their text by heart ------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Save a data set whose validation text has other words than the training text, and a tokenizer of bytes."""
    draw = random.Random(1)

    def words(count: int) -> str:
        return " ".join("".join(draw.choices("abcdefgh", k=5)) for _ in range(count))

    TOKENIZER.save(folder / "tokenizer")
    write_dataset([words(40)] * 4, [words(80)], folder / "base_data", source="words")


def run_folder(folder: Path) -> Path:
    return folder / "base_checkpoints" / "d1"


def assert_same(checkpoint: Checkpoint, other: Checkpoint) -> None:
    assert checkpoint.step == other.step
    for tensors, others in (
        (checkpoint.load_weights(), other.load_weights()),
        (checkpoint.load_optimizer_state(), other.load_optimizer_state()),
    ):
        assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []


@pytest.mark.slow
def test_the_run_ends_with_its_best_checkpoint(run_here: Path) -> None:
    prepare(run_here)
    whole = main(parse(Config, [*FLAGS, "--keep_last=-1", "--model_tag=whole"])).history
    value_of = {int(row["step"]): row["val_bpb"] for row in whole if "val_bpb" in row}
    end = next(step for step in value_of if is_exhausted([row for row in whole if row["step"] <= step], 2))
    assert end < 40  # it learns its text by heart
    best = min((value, step) for step, value in value_of.items() if step <= end)[1]

    assert main(parse(Config, PATIENT)).step == end
    assert list(list_steps(run_folder(run_here))) == [best]
    folder = run_here / "base_checkpoints" / "whole"
    assert_same(open_checkpoint(run_folder(run_here)), open_checkpoint(folder, best))
    section = read_sections(run_here / "report")[0]["base_train"]
    assert section["metrics"]["validation bits per byte"] == value_of[best]
    assert f"that of step {best}" in " ".join(section["notes"])


@pytest.mark.parametrize("script", [mid_train, chat_sft], ids=lambda script: script.__name__)
def test_a_fine_tuning_run_ends_with_its_best_checkpoint(run_here: Path, tmp_path: Path, script: ModuleType) -> None:
    """On answers that nobody can foresee: each step makes the held-out ones less likely from some step on."""
    save_model(run_here)
    draw = random.Random(1)
    talks = [talk("".join(draw.choices("abcdefgh", k=8)), "".join(draw.choices("abcdefgh", k=8))) for _ in range(60)]
    mixture = write_mixture(tmp_path / "mixture.toml", task_entry(write_talks(tmp_path / "talks.jsonl", talks)))
    flags = [f"--mixture={mixture}", "--source=base", "--num_iterations=60", "--init_lr_frac=1", "--eval_every=2"]
    flags += [*FAST, "--save_every=2", "--warmdown_ratio=0"]
    whole = script.main(parse(script.Config, flags)).history
    value_of = {int(row["step"]): row["val_loss"] for row in whole if "val_loss" in row}
    end = next(step for step in value_of if is_exhausted([row for row in whole if row["step"] <= step], 3))
    assert end < 60  # it learns the answers by heart
    best = min((value, step) for step, value in value_of.items() if step <= end)[1]
    folder = run_here / f"{'mid' if script is mid_train else 'chatsft'}_checkpoints" / "d1"
    expected = open_checkpoint(folder, best).load_weights()
    shutil.rmtree(folder)

    assert script.main(parse(script.Config, [*flags, "--patience=3", "--keep_last=1"])).step == end
    assert list(list_steps(folder)) == [best]
    weights = open_checkpoint(folder).load_weights()
    assert [name for name in weights if not torch.equal(weights[name], expected[name])] == []
    section = read_sections(run_here / "report")[0][script.STAGE.script]
    assert section["metrics"]["held-out loss (nats per trained token)"] == value_of[best]
    assert f"that of step {best}" in " ".join(section["notes"])


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["save", "removal"])
def test_killed_and_run_again(run_here: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Killed while it trains, or while it goes back to its best checkpoint, a run ends as an undisturbed one."""
    prepare(run_here)
    monkeypatch.setenv("NANOCHAT_RUN_ID", "1")
    main(parse(Config, [*PATIENT, "--model_tag=undisturbed"]))
    with monkeypatch.context() as patch:
        if moment == "save":
            is_exhausted = early_stopping.is_exhausted

            def kill(history: list[dict[str, float]], patience: int) -> bool:
                if len(early_stopping.evaluations(history)) == 3:
                    raise KeyboardInterrupt
                return is_exhausted(history, patience)

            patch.setattr(base_train, "is_exhausted", kill)
        else:
            patch.setattr(early_stopping, "remove_checkpoint", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(parse(Config, PATIENT))
    main(parse(Config, PATIENT))
    assert_same(open_checkpoint(run_folder(run_here)), open_checkpoint(run_here / "base_checkpoints" / "undisturbed"))


def test_a_best_checkpoint_that_could_not_be_saved(run_here: Path) -> None:
    """The best of those that are there is kept; without any that was evaluated nothing is removed."""
    prepare(run_here)
    state = main(parse(Config, [*FLAGS, "--keep_last=-1", "--num_iterations=12"]))
    first_serial = open_checkpoint(run_folder(run_here)).meta["first_serial"]
    history = [{"step": 3, "val_bpb": 0.5}, {"step": 8, "val_bpb": 1.0}, {"step": 4, "val_bpb": 1.5}]
    assert early_stopping.return_to_best(run_folder(run_here), LoopState().history, first_serial) is None
    assert len(list_steps(run_folder(run_here))) == state.step // 2
    assert early_stopping.return_to_best(run_folder(run_here), history, first_serial + 1) is None
    assert early_stopping.return_to_best(run_folder(run_here), history, first_serial) == 8
    assert list(list_steps(run_folder(run_here))) == [2, 4, 6, 8]
    assert early_stopping.return_to_best(run_folder(run_here), history, first_serial, 3) == 8
    assert list(list_steps(run_folder(run_here))) == [4, 6, 8]
    assert early_stopping.return_to_best(run_folder(run_here), history, first_serial, 1) == 8
    assert list(list_steps(run_folder(run_here))) == [8]
