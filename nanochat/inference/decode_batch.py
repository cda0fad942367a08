"""Batched decoding: many completions advance together, one token a step, and leave the batch when they are done.

Letters in shape comments: B rows (unfinished completions), P prompts of a pass, T tokens, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nanochat.gpt import GPT
from nanochat.inference.kv_cache import KVCache
from nanochat.inference.tool_use import RowState
from nanochat.layers.attention import varied_shapes
from nanochat.layers.padding import pad_right

MAX_PREFILL_TOKENS = 16_384  # in one prefill pass, padding included; a longer prompt has a pass to itself


class DecodeBatch:
    """A batch of completions, one row each, over one KV cache.

    A step is `append(sampled)`, with a token for each row of `logits`, then `advance()`, which removes the rows that
    are done and computes the next logits. They are separate methods so that a caller can show a token before the next
    forward pass, and so that no pass follows the last token.
    """

    def __init__(self, model: GPT, prompts: Sequence[list[int]], rows: Sequence[Sequence[RowState]]) -> None:
        """Prefill each prompt once and copy it to its rows. `rows`: for each prompt its completions, at least one."""
        self.model = model
        self.rows = [row for prompt_rows in rows for row in prompt_rows]
        counts = [len(prompt_rows) for prompt_rows in rows]
        lengths = [len(prompt) for prompt, count in zip(prompts, counts, strict=True) for _ in range(count)]
        self.cache = KVCache(model.config, len(self.rows), model.compute_dtype, model.device)
        self.cache.reserve(lengths)
        logits = []
        first_row = 0
        for group in prefill_groups(prompts, MAX_PREFILL_TOKENS):
            prefix_cache, hidden = self._prefill(prompts[group])
            for prefix_row, count in enumerate(counts[group]):
                self.cache.copy_prefix(first_row, count, prefix_cache, prefix_row)
                first_row += count
            repeats = torch.tensor(counts[group], device=model.device)
            num_rows = sum(counts[group])  # without it, repeat_interleave would wait for the device to add them up
            last = model.logits(hidden).repeat_interleave(repeats, 0, output_size=num_rows)
            logits.append(last)  # (P, C) -> (P, V) -> (rows, V)
        self.logits = torch.cat(logits)  # (B, V)

    def _prefill(self, prompts: Sequence[list[int]]) -> tuple[KVCache, Tensor]:
        """Run whole prompts in one pass. Returns their cache, and each prompt's last hidden state (P, C)."""
        device = self.model.device
        lengths = [len(prompt) for prompt in prompts]
        cache = KVCache(self.model.config, len(prompts), self.model.compute_dtype, device)
        idx = pad_right(prompts, fill=0, device=device)  # (P, T)
        with varied_shapes(device):
            hidden = self.model.hidden_states(idx, cache)  # (P, T) -> (P, T, C)
        last = torch.tensor(lengths, device=device) - 1
        return cache, hidden[torch.arange(len(prompts), device=device), last]

    def append(self, sampled: list[int]) -> None:
        """Append to each row the token that was sampled for it, or a token that its tool forces."""
        for row, token in zip(self.rows, sampled, strict=True):
            row.append(token)

    def advance(self) -> bool:
        """Remove the rows that are done and compute the logits of the others. Returns False if none is left."""
        done = [index for index, row in enumerate(self.rows) if row.is_done]
        if len(done) == len(self.rows):
            return False
        if done:
            self.rows = [self.rows[index] for index in self.cache.remove_rows(done)]
        last = torch.tensor([row.tokens[-1:] for row in self.rows], device=self.model.device)
        with varied_shapes(self.model.device):
            hidden = self.model.hidden_states(last, self.cache)  # (B, 1) -> (B, 1, C)
        self.logits = self.model.logits(hidden[:, -1])  # (B, C) -> (B, V)
        return True


def prefill_groups(prompts: Sequence[list[int]], max_tokens: int) -> Iterator[slice]:
    """Split prompts, in order, into prefill passes of at most `max_tokens` tokens, padding included.

    A pass has at least one prompt, which may be longer.

    >>> [(group.start, group.stop) for group in prefill_groups([[0] * 3, [0] * 4, [0] * 9], max_tokens=8)]
    [(0, 2), (2, 3)]
    """
    start = 0
    longest = 0
    for end, prompt in enumerate(prompts):
        longest = max(longest, len(prompt))
        if end > start and longest * (end + 1 - start) > max_tokens:
            yield slice(start, end)
            start = end
            longest = len(prompt)
    yield slice(start, len(prompts))
