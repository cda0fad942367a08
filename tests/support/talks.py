"""Conversations, mixture files and a tiny model for tests, and a tokenizer in which each byte is a token."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st

from nanochat.checkpoint_manager import build_model, model_meta, run_dir
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import build_optimizer
from nanochat.runtime import Runtime
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer
from nanochat.train import LoopState
from nanochat.training.checkpoint_saver import CheckpointSaver

SPECIAL = {name: 256 + i for i, name in enumerate(SPECIAL_TOKENS)}
BOS = SPECIAL["<|bos|>"]
TOKENIZER = Tokenizer(SPLIT_PATTERN, {bytes([b]): b for b in range(256)}, SPECIAL)

Talk = dict[str, Any]


def talk(*contents: Any, system: str | None = None) -> Talk:
    """A conversation of user and assistant in turn. A pair (expression, result) is an answer with a tool call only."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    for index, content in enumerate(contents):
        if isinstance(content, tuple):
            content = [{"type": "python", "text": content[0]}, {"type": "python_output", "text": content[1]}]
        messages.append({"role": ("user", "assistant")[index % 2], "content": content})
    return {"messages": messages}


def sums(count: int, first: int = 0) -> list[Talk]:
    """Different conversations of one to three questions about numbers."""
    talks = []
    for i in range(first, first + count):
        turns = [part for turn in range(1 + i % 3) for part in (f"{i}+{turn}?", f"{i + turn}")]
        talks.append(talk(*turns, system="Be brief." if i % 5 == 0 else None))
    return talks


_TEXT = st.one_of(st.text("ab c", max_size=6), st.text("xyz", max_size=40), st.integers(1, 700).map("w".__mul__))
_ANSWER = st.one_of(_TEXT, st.tuples(st.text("0123+", max_size=9), st.text("45", max_size=9)))


@st.composite
def any_talk(draw: st.DrawFn) -> Talk:
    """Conversations of any kind: short, too long, without an answer, empty, or with tool calls only."""
    turns = draw(st.lists(st.tuples(_TEXT, _ANSWER), min_size=1, max_size=4))
    contents = [part for turn in turns for part in turn]
    return talk(*contents[: len(contents) - draw(st.integers(0, 1))], system=draw(st.none() | st.text("s", max_size=9)))


MIXTURES = st.lists(any_talk(), min_size=1, max_size=40)


def write_talks(path: Path, talks: Sequence[Talk]) -> Path:
    """Write a JSONL file of conversations."""
    path.write_text("".join(json.dumps(conversation) + "\n" for conversation in talks), encoding="utf-8")
    return path


def task_entry(path: Path) -> str:
    """The entry of a mixture file that names a file of conversations."""
    return f"task = 'CustomJSON'\noptions = {{path = '{path}'}}"


def write_mixture(path: Path, *blocks: str) -> Path:
    """Write a mixture file; each block is the content of one `[[entry]]`."""
    path.write_text("".join(f"[[entry]]\n{block}\n" for block in blocks), encoding="utf-8")
    return path


def save_model(folder: Path, source: str = "base", tag: str = "d1", step: int = 7, context: int = 64) -> GPT:
    """Save the tokenizer and an untrained tiny model. Its optimizer state is damaged: no other stage may read it."""
    TOKENIZER.save(folder / "tokenizer")
    runtime = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 3)
    shape = GPTConfig(sequence_len=context, vocab_size=265, n_layer=1, n_head=2, n_kv_head=2, n_embd=32)
    model = build_model(shape, runtime)
    optimizer = build_optimizer(model, runtime)
    settings = {"max_seq_len": context, "total_batch_size": 4 * context}
    meta = {"settings": settings, "data_hash": "0", "device_batch_size": 2, **model_meta(model, runtime, TOKENIZER)}
    CheckpointSaver(run_dir(source, tag), model, optimizer, meta, -1)(LoopState(step=step, progress=1.0))
    (run_dir(source, tag) / f"step_{step:06d}" / "optimizer.safetensors").write_bytes(b"damaged")
    return model
