"""GGUF files of small models, and llama.cpp to run them where it is installed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nanochat.export.gguf_file import GGUFFile, GGUFOptions, write_gguf
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.llama_cpp import LlamaCppEngine
from nanochat.tokenizer import RustBPETokenizer, Tokenizer, split_pattern
from tests.support.exports import CONFIGS, TOKENIZER
from tests.support.hf_models import TEXTS

# Depth 5 is 320 wide, which 256 does not divide.
SHAPES = {
    **{name: dataclasses.replace(config, softcap=15.0) for name, config in CONFIGS.items()},
    "d5": GPTConfig(96, TOKENIZER.get_vocab_size(), n_layer=5, n_head=5, n_kv_head=5, n_embd=320),
}
NUMBERS = "In 1987 there were 12 houses, 345 people, 6789 trees and 1000000 ants. 2024 was 25 years after 1999.\n"


def digits_tokenizer(digits: int) -> Tokenizer:
    """Return a tokenizer of up to `digits` digits a token, which has tokens of as many."""
    texts = [*TEXTS[:2], NUMBERS] * 3
    return RustBPETokenizer.train_from_iterator(texts, 400, pattern=split_pattern(digits))


def write(
    path: Path,
    model: GPT,
    tokenizer: Tokenizer = TOKENIZER,
    weight_type: str = "f32",
    form: str = "apertus",
    **about: Any,
) -> GGUFFile:
    """Write a model and open the file."""
    options = GGUFOptions(weight_type, form, allow_other_digits=True)
    write_gguf(path, model.state_dict(), model.config, tokenizer, options, about)
    return GGUFFile.open(path)


@contextmanager
def running(file: GGUFFile) -> Iterator[LlamaCppEngine]:
    """Run a file in llama.cpp, in one thread, with a cache of float32. Skips the test where llama.cpp is absent."""
    pytest.importorskip("xllamacpp", reason="llama.cpp (the package xllamacpp) is not installed")
    engine = LlamaCppEngine(file.path, file.tokenizer(), file.context_len, num_threads=1, exact=True)
    try:
        yield engine
    finally:
        engine.close()


def log_probs(engine: LlamaCppEngine, prompt: list[int], vocab_size: int) -> list[float]:
    """Return the log-probabilities of all ids after a prompt, at temperature 1."""
    for seed in range(100):
        body = {"prompt": prompt, "n_predict": 1, "n_probs": vocab_size, "temperature": 1.0, "seed": seed}
        answer = engine.post("/completion", body).json()
        if "completion_probabilities" in answer:  # not if the token that was drawn ends within a character
            by_id = {entry["id"]: entry["logprob"] for entry in answer["completion_probabilities"][0]["top_logprobs"]}
            return [by_id[i] for i in range(vocab_size)]
    raise AssertionError("the server returned no log-probabilities")
