"""A model whose weights are not finite, saved by an earlier version: every script that loads one says so in a line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanochat.checkpoint_manager import CHECKPOINT_DIRS, list_steps, open_checkpoint, run_dir
from nanochat.common import UserError
from nanochat.data.shards import write_dataset
from nanochat.eval.eval_model import EvalModel
from nanochat.optim import OptimSettings
from nanochat.training.setup import build_or_restore
from scripts import base_loss, chat_cli, chat_eval, chat_rl, chat_sft, chat_web, export_hf, mid_train
from tests.support.damage import diverge
from tests.support.talks import save_model, sums, task_entry, write_mixture, write_talks
from tests.support.training import CPU


def resume() -> None:
    """Restore a run as every stage does that resumes."""
    checkpoint = open_checkpoint(run_dir("base", "d1"))
    build_or_restore(checkpoint, checkpoint, OptimSettings(), CPU)


Load = Callable[[str, Path], Any]
LOADS: dict[str, Load] = {
    "base_eval": lambda *_: EvalModel.from_checkpoint(CPU, 4096),
    "base_loss": lambda *_: base_loss.main(base_loss.Config(device="cpu")),
    "chat_cli": lambda *_: chat_cli.main(chat_cli.Config(device="cpu", prompt="2+2?")),
    "chat_eval": lambda *_: chat_eval.main(chat_eval.Config(device="cpu", task_name="SpellingBee")),
    "chat_rl": lambda *_: chat_rl.main(chat_rl.Config(device="cpu", tasks="SpellingBee", num_iterations=1)),
    "chat_sft": lambda mixture, _: chat_sft.main(chat_sft.Config(device="cpu", mixture=mixture)),
    "chat_web": lambda *_: chat_web.load_service(chat_web.Config(device="cpu")),
    "export_hf": lambda _, folder: export_hf.main(export_hf.Config(out=folder / "out")),
    "a resumed run": lambda *_: resume(),
    "mid_train": lambda mixture, _: mid_train.main(mid_train.Config(device="cpu", mixture=mixture)),
}


@pytest.mark.parametrize("script", LOADS)
def test_a_diverged_model(script: str, run_here: Path, tmp_path: Path) -> None:
    for source in ("base", "mid", "sft"):
        save_model(run_here, source)
        diverge(run_here / CHECKPOINT_DIRS[source] / "d1" / "step_000007")
    talks = write_talks(tmp_path / "sums.jsonl", sums(40))
    mixture = str(write_mixture(tmp_path / "mixture.toml", task_entry(talks)))
    write_dataset(["a text"], ["another"], run_here / "base_data", source="test")
    with pytest.raises(
        UserError, match=r"step_000007 cannot be used: its weights are not finite \(head.weight\)"
    ) as it:
        LOADS[script](mixture, tmp_path)
    assert str(it.value).isprintable()
    assert not (tmp_path / "out").exists()
    assert not list_steps(run_here / CHECKPOINT_DIRS["rl"] / "d1")
