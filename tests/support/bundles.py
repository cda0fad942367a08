"""Small evaluation bundles for tests: one to run on, and one whose results are computed by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nanochat.gpt import GPT, GPTConfig
from tests.support.models import random_model
from tests.support.talks import TOKENIZER

VOCAB_SIZE = TOKENIZER.get_vocab_size()  # a token for each byte, and the special tokens

TASKS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "choice": (
        "multiple_choice",
        [{"query": f"Is {n} red?", "choices": ["yes", "not at all"], "gold": n % 2} for n in range(5)],
    ),
    "schema": (
        "schema",
        [{"context_options": [f"{n} is", f"{n} was"], "continuation": "it", "gold": 0} for n in range(5)],
    ),
    "words": ("language_modeling", [{"context": f"{n} and {n}", "continuation": "a few words"} for n in range(5)]),
}


def write_bundle(
    folder: Path,
    tasks: Mapping[str, tuple[str, Sequence[Mapping[str, Any]]]] = TASKS,
    num_fewshot: int = 1,
    delimiter: str = " ",
    missing: Sequence[str] = (),
    baselines: Mapping[str, int] | None = None,
) -> Path:
    """Write a bundle and return its folder.

    `tasks`: label -> (type, rows). `missing`: labels of tasks without data. `baselines`: label -> percent; default: 0.
    """
    data_folder = folder / "eval_data" / "sub"
    data_folder.mkdir(parents=True)
    task_list = ["icl_tasks:"]
    table = ["Eval Task,Random baseline,Note"]
    for label in (*tasks, *missing):
        task_type = tasks[label][0] if label in tasks else "schema"
        task_list += [f"- label: {label}", f"  dataset_uri: sub/{label}.jsonl", "  num_fewshot:", f"  - {num_fewshot}"]
        task_list += [f"  icl_task_type: {task_type}", f"  continuation_delimiter: {json.dumps(delimiter)}"]
        table.append(f"{label},{(baselines or {}).get(label, 0)},")
    for label, (_, rows) in tasks.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (data_folder / f"{label}.jsonl").write_text(text, encoding="utf-8")
    (folder / "core.yaml").write_text("\n".join(task_list), encoding="utf-8")
    (folder / "eval_meta_data.csv").write_text("\n".join(table), encoding="utf-8")
    return folder


# --- by hand ----------------------------------------------------------------------------------------------------------

# `pair_model` with these logits: after " " the letter "o" is the most likely, after "c" the letter "c", and so on.
LOGITS = {" a": 2.0, " c": 1.0, " o": 2.5, "cc": 5.0, "x ": 3.0, "L ": 1.0, "ok": 1.0}

HAND_TASKS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "choice": (
        "multiple_choice",
        [  # "Q ccc" has the larger loss in all, and the smaller one per token
            {"query": "Q", "choices": ["a", "ccc"], "gold": 1},
            {"query": "Q", "choices": ["ccc", "a"], "gold": 1},
            {"query": "Q", "choices": ["d", "e", "d"], "gold": 0},  # a tie: the first option counts
            {"query": "Q", "choices": ["d", "e", "d"], "gold": 2},
        ],
    ),
    "schema": (
        "schema",
        [
            {"context_options": ["ky", "kx"], "continuation": "k", "gold": 1},
            {"context_options": ["kx", "a longer one, y"], "continuation": "k", "gold": 1},
            {"context_options": ["y", "z"], "continuation": "k", "gold": 0},
        ],
    ),
    "words": (
        "language_modeling",
        [
            {"context": "L", "continuation": "ok"},
            {"context": "L", "continuation": "oz"},
            {"context": "L", "continuation": "a"},  # likely after a space, but "o" is more likely
            {"context": "Lo", "continuation": "k"},  # after "o" the model does not expect a space
        ],
    ),
}
# Which examples `pair_model(LOGITS)` solves without few-shot examples.
HAND_RESULTS = {
    "choice": [True, False, True, False],
    "schema": [True, False, True],
    "words": [True, False, False, False],
}


def write_hand_bundle(folder: Path, num_fewshot: int = 0, delimiter: str = " ", missing: Sequence[str] = ()) -> Path:
    """Write HAND_TASKS as a bundle and return its folder."""
    baselines = {"choice": 40, "schema": 50, **dict.fromkeys(missing, 25)}
    return write_bundle(folder, HAND_TASKS, num_fewshot, delimiter, missing, baselines)


def pair_model(logits: Mapping[str, float], context_len: int = 64) -> GPT:
    """A model that looks at the last token only: after "a" the logit of "b" is `logits["ab"]`, by default 0."""
    width = VOCAB_SIZE + 1  # even
    config = GPTConfig(sequence_len=context_len, vocab_size=VOCAB_SIZE, n_layer=1, n_head=1, n_kv_head=1, n_embd=width)
    model = GPT(config)
    model.init_weights()  # the block's outputs and all logits are 0
    with torch.no_grad():
        model.embed.weight.zero_()
        model.embed.weight[:VOCAB_SIZE, :VOCAB_SIZE] = torch.eye(VOCAB_SIZE)  # the norm makes sqrt(width) of each 1
        for (before, after), logit in logits.items():
            model.head.weight[ord(after), ord(before)] = 15 * math.atanh(logit / 15) / math.sqrt(width)
    return model


def deep_model(context_len: int = 96) -> GPT:
    """A model in which every output depends on every token before it."""
    return random_model(context_len, VOCAB_SIZE, scale=0.5, n_layer=2, n_head=2, n_kv_head=1)
