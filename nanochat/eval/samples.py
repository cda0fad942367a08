"""Samples of a base model, for the log and the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nanochat.data import storyworld
from nanochat.engine import Engine
from nanochat.gpt import GPT
from nanochat.tokenizer import Tokenizer

PROMPTS = ("Once upon a time", "One morning", "The capital of France is", "If you are cold, you should", "The sun")


def sample_prompts(source: str, count: int, seed: int) -> list[str]:
    """Return `count` prompts: for the data source "storyworld" from its validation stories, else those of PROMPTS."""
    if source == "storyworld":
        return storyworld.generate_prompts(count, seed)
    return [PROMPTS[index % len(PROMPTS)] for index in range(count)]


def generate_samples(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], max_tokens: int, temperature: float = 0.0, seed: int = 42
) -> list[dict[str, Any]]:
    """Continue each prompt. Returns `{"prompt": str, "text": str, "whole": bool}` for each.

    `whole`: True if the model ended the document itself. A prompt that takes more than half of the context is cut, and
    "prompt" is the part that remains. The i-th prompt has the seed `seed + i`, so a sample does not depend on the
    prompts before it.
    """
    engine = Engine(model, tokenizer)
    bos = tokenizer.get_bos_token_id()
    context = model.config.sequence_len
    samples = []
    for index, prompt in enumerate(prompts):
        tokens = tokenizer.encode(prompt, prepend=bos)[: max(1, context // 2)]
        [ids], _ = engine.generate_batch(tokens, max_tokens=max_tokens, temperature=temperature, seed=seed + index)
        samples.append(
            {
                "prompt": tokenizer.decode(tokens[1:]),
                "text": tokenizer.decode(ids[len(tokens) :]),
                "whole": len(ids) < min(context, len(tokens) + max_tokens),
            }
        )
    return samples
