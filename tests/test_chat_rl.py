"""Reinforcement learning: a bandit, the gradient by hand, what carries none, many processes, resume, pass@k.

Run as a program, this file is one of several processes: `python tests/test_chat_rl.py`, with torchrun's environment.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.checkpoint_manager import build_model, describe_model, open_checkpoint, save_checkpoint
from nanochat.common import Stopped, UserError
from nanochat.configurator import parse
from nanochat.conversation import Conversation
from nanochat.engine import Answer, Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import Optimizer, build_optimizer
from nanochat.pass_at_k import ks_of, pass_at_k
from nanochat.rl import Asking, Group, Problem, Problems, ask, micro_batches, parse_weights, tally
from nanochat.runtime import Runtime
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer
from nanochat.train import Rates
from scripts import chat_rl
from scripts.chat_rl import Config, main, step
from tasks.common import Task, chat

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
ALONE = Runtime(rank=0, local_rank=0, world_size=1, device=CPU, compute_dtype=torch.float32, seed=0)
TOKENIZER = Tokenizer(
    SPLIT_PATTERN,
    {bytes([byte]): byte for byte in range(256)},
    {name: 256 + i for i, name in enumerate(SPECIAL_TOKENS)},
)
END = TOKENIZER.encode_special("<|assistant_end|>")
SHAPE = GPTConfig(sequence_len=32, vocab_size=265, n_layer=1, n_head=1, n_kv_head=1, n_embd=32)
RUN: dict[str, Any] = {
    "tasks": "Bandit",
    "device": "cpu",
    "num_problems": 4,
    "num_samples": 256,
    "max_new_tokens": 2,
    "num_iterations": 40,
    "lr_scale": 1.0,
    "warmdown": 0.2,
    "eval_every": -1,
    "eval_samples": 4,
    "device_batch_size": 256,
}


class Bandit(Task):
    """Questions whose right answers are known: x -> b, y -> c, and then an end; half the reward for the letter alone."""

    name = "Bandit"
    right = {"x": "b", "y": "c"}

    def num_examples(self) -> int:
        return 2

    def get_example(self, index: int) -> Conversation:
        question = "xy"[index]
        return chat(question, self.right[question])

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return completion == conversation["messages"][-1]["content"]

    def reward(self, conversation: Conversation, completion: str) -> float:
        right = conversation["messages"][-1]["content"]
        return 0.5 * completion.startswith(right) + 0.5 * (completion == right)


class Indifferent(Bandit):
    """Whatever is said is worth the same, a number that a sum of floats does not hit."""

    name = "Indifferent"

    def reward(self, conversation: Conversation, completion: str) -> float:
        return 0.1


TASKS: dict[str, Callable[..., Task]] = {"Bandit": Bandit, "Indifferent": Indifferent}


def get_task(name: str, split: str, **rows: int) -> Task:
    return TASKS[name](**rows)


def prepare(folder: Path) -> None:
    """A tokenizer and an sft checkpoint, which finds all tokens alike, in a base folder."""
    TOKENIZER.save(folder / "tokenizer")
    model = build_model(SHAPE, ALONE)
    meta = describe_model(model, ALONE, TOKENIZER) | {"data_hash": "", "settings": {}}
    save_checkpoint(folder / "chatsft_checkpoints" / "d1", 7, model.state_dict(), {}, meta)


@pytest.fixture
def run(run_here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Call the script, with other settings than RUN's where given."""
    prepare(run_here)
    monkeypatch.setattr(chat_rl, "get_task", get_task)
    return lambda **changes: main(Config(**{**RUN, **changes}))


def weights_of(folder: Path, step_number: int = -1) -> dict[str, Tensor]:
    return open_checkpoint(folder / "chatrl_checkpoints" / "d1", step_number).weights()


# --- runs -------------------------------------------------------------------------------------------------------------


def test_finds_the_right_policy(run: Callable[..., Any], run_here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From one answer in 265 x 265 to nearly all: the letter by the question, and the end token, which is sampled too."""
    state = run(eval_every=40, eval_samples=64)
    measured = [(row["step"], row["Bandit pass@1"]) for row in state.history if "Bandit pass@1" in row]
    print(measured, [row["reward"] for row in state.history if "reward" in row])
    assert [number for number, _ in measured] == [0, 40]
    assert measured[0][1] < 0.05
    assert measured[1][1] > 0.95
    section = json.loads((run_here / "report" / "chat_rl.json").read_text(encoding="utf-8"))
    assert section["model"] == "rl"
    assert section["metrics"]["Bandit pass@1"]["value"] == measured[1][1]
    assert section["metrics"]["Bandit pass@1"]["n"] == 2
    assert len(section["curves"]["Bandit"]["x"]) == 40
    model, _, _ = chat_rl_model(run_here)
    prompt = TOKENIZER.render_for_completion(chat("y", ""))
    assert next(model.generate(prompt, 1, temperature=0)) == ord("c")
    assert "Bandit: pass@1" in capsys.readouterr().out


def chat_rl_model(folder: Path) -> Any:
    from nanochat.checkpoint_manager import load_model

    return load_model("rl", ALONE)
