"""Five steps of each stage on the CPU give the numbers that they have always given.

A refactor must not change them. A change that is meant to change them replaces the numbers below by those that the
failing test prints, and a line in dev/LOG.md says why.

The runs use float32, eager mode, one thread and deterministic algorithms. On a machine like the one that made the
numbers (`MACHINE`) they are compared exactly. Other processors and libraries round sums in another order. Relative
differences of up to 3e-7 have been seen between vector widths and kernels; `TOLERANCE` is thirty times as large, and
far below the effect of a real change.
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
from tests.support.machine import fingerprint
from tests.support.talks import TOKENIZER, save_model, sums, talk, write_mixture, write_talks

MACHINE = "x86_64 GenuineIntel 6 207 2 flags 86d9ce9c, AVX512, torch 2.15.0+cu132, Python 3.11"
TOLERANCE = 1e-5  # relative, on other machines

Numbers = dict[str, Any]  # name -> number, list of numbers, or dictionary of numbers


def assert_golden(numbers: Numbers, golden: Numbers) -> None:
    """Compare exactly on the machine that made the golden numbers, within TOLERANCE elsewhere."""
    machine = fingerprint()
    print(f"MACHINE = {machine!r}\n{numbers!r}")
    assert numbers.keys() == golden.keys()
    for name, expected in golden.items():
        if machine == MACHINE:
            assert numbers[name] == expected, name
        else:
            assert numbers[name] == pytest.approx(expected, rel=TOLERANCE), name


PRETRAINING: Numbers = {
    "losses": [5.57973051071167, 4.711596488952637, 3.307528495788574, 2.3225455284118652, 1.8917421102523804],
    "val_bpb": 2.549226303561028,
    "updates": {  # norm of the change of each parameter in five steps
        "embed.weight": 63.884788911735406,
        "head.weight": 8.126785622873253,
        "blocks.0.attn.q_proj.weight": 0.26945377339622334,
        "blocks.0.attn.k_proj.weight": 0.2668147519686311,
        "blocks.0.attn.v_proj.weight": 0.23392385853891162,
        "blocks.0.attn.o_proj.weight": 0.38546732007633794,
        "blocks.0.mlp.up_proj.weight": 0.5597029371584973,
        "blocks.0.mlp.down_proj.weight": 0.38827911463205506,
        "blocks.1.attn.q_proj.weight": 0.27849183505141906,
        "blocks.1.attn.k_proj.weight": 0.27062058666373673,
        "blocks.1.attn.v_proj.weight": 0.2396960631506903,
        "blocks.1.attn.o_proj.weight": 0.39143598883589603,
        "blocks.1.mlp.up_proj.weight": 0.5666292690938353,
        "blocks.1.mlp.down_proj.weight": 0.383879592133601,
    },
}


def test_base_train(run_here: Path) -> None:
    """Losses of the steps (nats per token), validation bits per byte, and how far each parameter has moved."""
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
    runtime = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, config.seed)
    initial = build_model(config.model_config(vocab_size=265), runtime).state_dict()
    weights = open_checkpoint(run_here / "base_checkpoints" / "d2").load_weights()
    numbers = {
        "losses": [row["loss"] for row in state.history if "loss" in row],
        "val_bpb": state.history[-1]["val_bpb"],
        "updates": {name: (weights[name] - initial[name]).double().norm().item() for name in weights},
    }
    assert_golden(numbers, PRETRAINING)


CONVERSATIONS: dict[str, Numbers] = {  # nats per trained token
    "mid": {
        "losses": [5.579730033874512, 5.3775835037231445, 5.1629557609558105, 4.754425525665283, 4.390355587005615],
        "val_loss": 3.8884471787346735,
    },
    "sft": {
        "losses": [5.579730033874512, 5.3775835037231445, 5.225310802459717, 5.010979652404785, 4.953192234039307],
        "val_loss": 4.654499265882704,
    },
}


@pytest.mark.parametrize("script", [mid_train, chat_sft], ids=lambda script: script.STAGE.script)
def test_conversations(run_here: Path, tmp_path: Path, script: ModuleType) -> None:
    """Five steps of midtraining and of SFT on packed conversations; the last step is not full."""
    save_model(run_here, "base" if script is mid_train else "mid")
    talks = write_talks(
        tmp_path / "sums.jsonl", [*sums(40), *[talk(f"{n} x 9?", (f"{n}*9", f"{9 * n}")) for n in range(6)]]
    )
    entry = f"task = 'CustomJSON'\noptions = {{path = '{talks}'}}"
    config = script.Config(
        mixture=str(write_mixture(tmp_path / "mixture.toml", entry)),
        device_batch_size=2,
        total_batch_size=256,
        init_lr_frac=0.5,
        device="cpu",
        compile="off",
    )
    state = script.main(config)
    numbers = {
        "losses": [row["loss"] for row in state.history if "loss" in row],
        "val_loss": state.history[-1]["val_loss"],
    }
    assert (state.step, (state.cursor or {})["rows"]) == (5, 18)
    assert_golden(numbers, CONVERSATIONS[script.STAGE.name])
