"""What a base model writes: samples for the log and the report, judged where the training text is the story world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nanochat.data import storyworld
from nanochat.engine import Engine
from nanochat.gpt import GPT
from nanochat.tokenizer import Tokenizer

PROMPTS = ("Once upon a time", "One morning", "The capital of France is", "If you are cold, you should", "The sun")


def prompts_for(source: str, count: int, seed: int) -> list[str]:
    """`count` beginnings to write on from; where the training text is the story world, of stories that it kept back."""
    if source == "storyworld":
        return storyworld.generate_prompts(count, seed)
    return [PROMPTS[index % len(PROMPTS)] for index in range(count)]


def write_samples(
    model: GPT, tokenizer: Tokenizer, prompts: Sequence[str], max_tokens: int, temperature: float = 0.0, seed: int = 42
) -> list[dict[str, Any]]:
    """`{"prompt", "text", "whole"}` for each prompt: what follows it, and whether the model ended the document itself.

    Each prompt has a seed of its own, so that a sample does not depend on those before it. Of a prompt that would take
    more than half of the context only the beginning is used, and given back.
    """
    engine, bos = Engine(model, tokenizer), tokenizer.get_bos_token_id()
    context = model.config.sequence_len
    samples = []
    for index, prompt in enumerate(prompts):
        tokens = tokenizer.encode(prompt, prepend=bos)[: max(1, context // 2)]
        [ids], _ = engine.generate_batch(tokens, max_tokens=max_tokens, temperature=temperature, seed=seed + index)
        used, text = tokenizer.decode(tokens[1:]), tokenizer.decode(ids[len(tokens) :])
        whole = len(ids) < min(context, len(tokens) + max_tokens)
        samples.append({"prompt": used, "text": text, "whole": whole})
    return samples
