"""Five steps of each stage on the CPU give the numbers that they have always given.

A refactor must leave them as they are. A change of the numbers on purpose prints new ones (they stand in the
failure's output), and a line in dev/LOG.md says why.

The run is exact on one machine: float32, eager, one thread, deterministic algorithms. Other processors and libraries
add up in another order: with other vector widths and other kernels the numbers differed by up to 3e-7 of themselves.
The tolerance of 1e-4 leaves room for machines that were not seen; a change that means something exceeds it.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nanochat.checkpoint_manager import build_model, open_checkpoint
from nanochat.data.shards import write_dataset
from nanochat.runtime import Runtime
from scripts import base_train, chat_sft, mid_train
from tests.support.talks import TOKENIZER, save_model, sums, talk, write_mixture, write_talks

LOSSES = [5.5797305, 4.7115970, 3.3075283, 2.3225455, 1.8917420]  # nats per token
VAL_BPB = 2.5492262
UPDATES = {  # norm of what five steps have added
    "embed.weight": 63.884791,
    "head.weight": 8.1267860,
    "blocks.0.attn.q_proj.weight": 0.26945379,
    "blocks.0.attn.k_proj.weight": 0.26681474,
    "blocks.0.attn.v_proj.weight": 0.23392386,
    "blocks.0.attn.o_proj.weight": 0.38546731,
    "blocks.0.mlp.up_proj.weight": 0.55970298,
    "blocks.0.mlp.down_proj.weight": 0.38827904,
    "blocks.1.attn.q_proj.weight": 0.27849187,
    "blocks.1.attn.k_proj.weight": 0.27062069,
    "blocks.1.attn.v_proj.weight": 0.23969605,
    "blocks.1.attn.o_proj.weight": 0.39143601,
    "blocks.1.mlp.up_proj.weight": 0.56662925,
    "blocks.1.mlp.down_proj.weight": 0.38387955,
}


def test_base_train(run_here: Path) -> None:
    """Losses of the steps, validation bits per byte, and how far each parameter has moved."""
    TOKENIZER.save(run_here / "tokenizer")
    texts = [f"{i} and {i} make {2 * i}, and {i} times {i} makes {i * i}." for i in range(120)]
    write_dataset(texts[:100], texts[100:], source="arithmetic")
    config = base_train.Config(
        depth=2,
        head_dim=32,
        max_seq_len=64,
        device_batch_size=4,
        total_batch_size=512,
        num_iterations=5,
        eval_tokens=512,
        sample_every=-1,
        device="cpu",
        compile="off",
    )
    state = base_train.main(config)
    losses = [row["loss"] for row in state.history if "loss" in row]
    val_bpb = state.history[-1]["val_bpb"]
    runtime = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, config.seed)
    first = build_model(config.model_config(vocab_size=265), runtime).state_dict()
    weights = open_checkpoint(run_here / "base_checkpoints" / "d2").load_weights()
    updates = {name: (weights[name] - first[name]).double().norm().item() for name in weights}
    print(f"LOSSES = {losses}\nVAL_BPB = {val_bpb}\nUPDATES = {updates}")
    assert losses == pytest.approx(LOSSES, rel=1e-4)
    assert val_bpb == pytest.approx(VAL_BPB, rel=1e-4)
    assert updates == pytest.approx(UPDATES, rel=1e-4)


CONVERSATIONS = {  # nats per trained token
    "mid": {"losses": [5.5797300, 5.3775835, 5.1629558, 4.7544255, 4.3903565], "val_loss": 3.8884477},
    "sft": {"losses": [5.5797300, 5.3775835, 5.2253098, 5.0109797, 4.9531922], "val_loss": 4.6544993},
}


@pytest.mark.parametrize("stage", [mid_train, chat_sft], ids=lambda script: script.STAGE.script)
def test_conversations(run_here: Path, tmp_path: Path, stage: ModuleType) -> None:
    """Five steps of midtraining, and of SFT, on packed conversations; the last step is not full."""
    save_model(run_here, "base" if stage is mid_train else "mid")
    talks = write_talks(
        tmp_path / "sums.jsonl", [*sums(40), *[talk(f"{n} x 9?", (f"{n}*9", f"{9 * n}")) for n in range(6)]]
    )
    entry = f"task = 'CustomJSON'\noptions = {{path = '{talks}'}}"
    config = stage.Config(
        mixture=str(write_mixture(tmp_path / "mixture.toml", entry)),
        device_batch_size=2,
        total_batch_size=256,
        init_lr_frac=0.5,
        device="cpu",
        compile="off",
    )
    state = stage.main(config)
    found: dict[str, Any] = {
        "losses": [row["loss"] for row in state.history if "loss" in row],
        "val_loss": state.history[-1]["val_loss"],
    }
    print(found)
    assert (state.step, (state.cursor or {})["rows"]) == (5, 18)
    assert found == {key: pytest.approx(value, rel=1e-4) for key, value in CONVERSATIONS[stage.STAGE.name].items()}
