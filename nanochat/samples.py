"""What a base model writes: samples for the log and the report, judged where the training text is the story world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nanochat.engine import Engine
from nanochat.gpt import GPT
from nanochat.tokenizer import Tokenizer

PROMPTS = ("Once upon a time", "One morning", "The capital of France is", "If you are cold, you should", "The sun")


def write_samples(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], max_tokens: int, temperature: float = 0.0, seed: int = 42
) -> list[dict[str, Any]]:
    """`{"prompt", "text", "whole"}` for each prompt: what follows it, and whether the model ended the document itself.

    Each prompt has a seed of its own, so that a sample does not depend on those before it.
    """
    engine, bos = Engine(model, tokenizer), tokenizer.get_bos_token_id()
    samples = []
    for index, prompt in enumerate(prompts):
        tokens = tokenizer.encode(prompt, prepend=bos)
        room = min(max_tokens, model.config.sequence_len - len(tokens))
        [ids], _ = engine.generate_batch(tokens, max_tokens=room, temperature=temperature, seed=seed + index)
        text = tokenizer.decode(ids[len(tokens) :])
        samples.append({"prompt": prompt, "text": text, "whole": len(ids) < len(tokens) + room})
    return samples
