"""A `ModelStep` whose logits are a hash of the whole prefix, read back from the cache blocks.

A wrong block, a wrong position, a block that is shared by mistake or written while shared: each changes the tokens.
"""

from __future__ import annotations

import zlib
from collections import Counter

import numpy as np
import torch
from torch import Tensor

from nanochat.gpt import GPTConfig
from nanochat.inference.generation_request import FinishEvent, GenerationRequest, TokenEvent
from nanochat.inference.model_step import StepTokens
from nanochat.inference.tool_use import RowState, Tool
from nanochat.layers.sampler import sample_at, uniforms
from nanochat.layers.sampling_params import SamplingParams
from nanochat.tokenizer import SPECIAL_TOKENS
from tests.support.talks import TOKENIZER

TOOL = Tool(TOKENIZER)
BOS, _, _, _, END, CALL, CALL_END, _, _ = (TOKENIZER.encode_special(name) for name in SPECIAL_TOKENS)
# Likely: an end, digits and operators between the marks of a call.
_FAVOURITES = {END: 3.5, BOS: 1.5, CALL: 5.5, CALL_END: 5.5, **{ord(letter): 4.5 for letter in "0123+-*"}}


def prefix_logits(tokens: list[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """Return logits (V,), float32, that follow from all of the tokens and their order."""
    digest = zlib.crc32(np.asarray(tokens, np.int32).tobytes())
    mixed = (np.arange(vocab_size, dtype=np.uint64) + np.uint64(digest)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
    logits = (mixed >> np.uint64(40)).astype(np.float32) / np.float32(2**22)  # 0 to 4
    for token, bias in _FAVOURITES.items():
        if token < vocab_size:
            logits[token] += bias
    return logits


class FakeStep:
    """Keeps the tokens themselves in its blocks. `shapes`: (tokens, rows) of each step; `fail`: raise at the next."""

    def __init__(self, num_blocks: int, block_len: int = 4, sequence_len: int = 64, vocab_size: int = 265) -> None:
        self.config = GPTConfig(
            sequence_len=sequence_len, vocab_size=vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=2
        )
        self.device = torch.device("cpu")
        self.block_len = block_len
        self.num_blocks = num_blocks
        self.slots = np.full(num_blocks * block_len, -1, np.int32)
        self.shapes: list[tuple[int, int]] = []
        self.fail: Exception | None = None

    def forward(self, step: StepTokens) -> Tensor:
        if self.fail is not None:
            error, self.fail = self.fail, None
            raise error
        step.check(self.config, self.block_len, self.num_blocks)
        self.shapes.append((len(step.tokens), len(step.block_tables)))
        written = step.block_tables[step.rows, step.positions // self.block_len]
        users = Counter(step.block_tables[step.block_tables >= 0].tolist())
        assert all(users[block] == 1 for block in written.tolist()), "a shared block is written"
        self.slots[written * self.block_len + step.positions % self.block_len] = step.tokens
        logits = [self._logits(step, index) for index in step.wanted.tolist()]
        return torch.from_numpy(np.array(logits, np.float32).reshape(len(logits), self.config.vocab_size))

    def _logits(self, step: StepTokens, index: int) -> np.ndarray:
        positions = np.arange(step.positions[index] + 1)
        blocks = step.block_tables[step.rows[index], positions // self.block_len]
        return prefix_logits(self.slots[blocks * self.block_len + positions % self.block_len], self.config.vocab_size)

    def copy_block(self, source: int, target: int) -> None:
        blocks = self.slots.reshape(-1, self.block_len)
        blocks[target] = blocks[source]


class Receiver:
    """Collects the events of a request."""

    def __init__(self) -> None:
        self.events: list[TokenEvent | FinishEvent] = []

    def __call__(self, event: TokenEvent | FinishEvent) -> None:
        assert self.finish is None, "an event after the end"
        self.events.append(event)

    @property
    def tokens(self) -> list[tuple[int, bool]]:
        """The tokens so far: (id, is_forced)."""
        return [(event.token, event.is_forced) for event in self.events if isinstance(event, TokenEvent)]

    @property
    def finish(self) -> FinishEvent | None:
        """The last event, if it is the end."""
        last = self.events[-1] if self.events else None
        return last if isinstance(last, FinishEvent) else None


def make_request(
    tokens: list[int], params: SamplingParams | None = None, key: int = 0, num_logprobs: int | None = None
) -> tuple[GenerationRequest, Receiver]:
    """Return a request and what receives its events."""
    receiver = Receiver()
    params = params or SamplingParams()
    request = GenerationRequest(tokens=tokens, params=params, rng_key=key, num_logprobs=num_logprobs, on_event=receiver)
    return request, receiver


def completion_alone(
    request: GenerationRequest, context_len: int, vocab_size: int = 265
) -> tuple[list[tuple[int, bool]], str]:
    """Return the tokens of a completion, (id, is_forced), and the reason of its end: slowly, without a cache."""
    limit = context_len - len(request.tokens)
    if request.params.max_tokens is not None:
        limit = min(limit, request.params.max_tokens)
    state = RowState(TOOL, limit)
    while not state.is_done:
        logits = torch.from_numpy(prefix_logits([*request.tokens, *state.tokens], vocab_size))
        u = torch.from_numpy(uniforms(np.array([request.rng_key], np.uint64), np.array([len(state.tokens)])))
        state.append(int(sample_at(logits[None], request.params, u)))
    pairs = [(token, not mask) for token, mask in zip(state.tokens, state.mask, strict=True)]
    return pairs, "stop" if state.has_ended else "length"
