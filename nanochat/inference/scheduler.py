"""Continuous batching: at every step requests join and leave, and each completion is what it would be alone.

A request waits, then its prompt is prefilled in chunks, then it decodes, a token a step, until it is done:

    waiting ──> prefilling ──> decoding ──> done
       ^             │             │
       └─────────────┴─────────────┘  the cache is full: the youngest gives up its blocks and begins again

A step computes the next token of every row that decodes and at most `max_prefill_tokens` tokens of prompts, which share
them, so that a long prompt holds up neither the rows nor other prompts. Prompts use the blocks of what others have
computed (`block_cache.py`). Tokens are drawn by keyed random numbers (`layers/sampler.py`), and a token's logits do not
depend on its company if the `ModelStep` guarantees it, so a completion depends on its request alone.

Letters in shape comments: R rows that decode, L rows of logits, V vocabulary.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable
from operator import attrgetter

import numpy as np
import torch
from torch import Tensor

from nanochat.common import UserError
from nanochat.inference.block_cache import BlockCache
from nanochat.inference.decode_rows import Chunk, DecodeRows, Generation
from nanochat.inference.generation_request import FinishEvent, FinishReason, GenerationRequest, TokenEvent
from nanochat.inference.model_step import ModelStep, to_device
from nanochat.inference.tool_use import RowState, Tool
from nanochat.layers.sampler import NO_PROBABILITIES, log_probabilities

MAX_RUNNING = 64  # requests that prefill or decode at once
# Tokens of all prompts together in one step, by the kind of device. The native step reads prompts in pieces of 128
# nearly as fast as in longer ones (12 layers, width 768, two cores, bfloat16: 64 tokens in 32 ms, 128 in 42, 512 in
# 160), and rows that decode wait no longer than it takes. The number for GPUs is not measured.
MAX_PREFILL_TOKENS = {"cpu": 128, "cuda": 512}
MAX_PREFILLING = 8  # long prompts that share the tokens of a step: a short one that comes later soon has its turn
MAX_SKIPPED = 256  # waiting requests that a step looks past because they wait for another one's prefix

_arrival = attrgetter("arrival")


class Scheduler:
    """Requests on one `ModelStep`. Not thread-safe: `GenerationLoop` runs it in a thread.

    `max_prefill_tokens`: None = that of the device in MAX_PREFILL_TOKENS.
    `draw`: draws a token for each row of logits (L, V) together, instead of each row by the key of its request.
    `cache`: the blocks; several schedulers on the same `ModelStep` must share one.
    """

    def __init__(
        self,
        model_step: ModelStep,
        tool: Tool,
        *,
        max_running: int = MAX_RUNNING,
        max_prefill_tokens: int | None = None,
        cache: BlockCache | None = None,
        draw: Callable[[Tensor], list[int]] | None = None,
    ) -> None:
        self._model_step = model_step
        self._tool = tool
        self._max_running = max_running
        self._max_prefill_tokens = max_prefill_tokens or MAX_PREFILL_TOKENS.get(model_step.device.type, 64)
        self._max_prefilling = min(MAX_PREFILLING, self._max_prefill_tokens)
        self._draw = draw
        self._block_len = model_step.block_len
        self.context_len = min(model_step.config.sequence_len, model_step.num_blocks * self._block_len)
        self._cache = cache or BlockCache(model_step.num_blocks, self._block_len)
        self._generations: dict[GenerationRequest, Generation] = {}  # all that are not done
        self._waiting: list[Generation] = []  # by arrival
        self._prefilling: list[Generation] = []
        self._rows = DecodeRows(max_running, math.ceil(self.context_len / self._block_len), self._block_len)
        self._num_arrivals = 0
        self._counts = dict.fromkeys(
            ("steps", "generated_tokens", "prefilled_tokens", "shared_tokens", "preemptions", "finished_requests"), 0
        )

    # --- requests -----------------------------------------------------------------------------------------------------

    def check_prompt(self, tokens: list[int]) -> None:
        """Raise `UserError` for a prompt that is empty or longer than the context, or than the cache."""
        check_prompt(tokens, self.context_len, self._model_step.config.sequence_len)

    def submit(self, request: GenerationRequest) -> RowState:
        """Take a request, whose events begin with the next step. Returns the state of its completion, to be read.

        A prompt that fills the context is finished at once ("length"). Raises `UserError` as `check_prompt` does.
        """
        self.check_prompt(request.tokens)
        assert request not in self._generations, "a request was submitted twice"
        free = self.context_len - len(request.tokens)
        limit = request.params.max_tokens
        state = RowState(self._tool, free if limit is None else min(free, limit))
        generation = Generation(request, state, self._num_arrivals)
        self._num_arrivals += 1
        self._generations[request] = generation
        if state.is_done:
            self._finish(generation, FinishEvent("length"))
        else:
            self._waiting.append(generation)
        return state

    def cancel(self, request: GenerationRequest, reason: FinishReason = "cancelled", message: str = "") -> None:
        """End a request now, with a `FinishEvent` of this reason. A request that is done already stays as it is."""
        generation = self._generations.get(request)
        if generation is not None:
            self._remove(generation)
            self._finish(generation, FinishEvent(reason, message))

    def cancel_all(self, reason: FinishReason, message: str = "", *, only_waiting: bool = False) -> None:
        """Cancel all requests, or those that wait and have not begun."""
        for generation in list(self._generations.values()):
            has_begun = not self._is_waiting(generation) or generation.state.tokens
            if not (only_waiting and has_begun):
                self.cancel(generation.request, reason, message)

    def fail_running(self, message: str) -> None:
        """End all requests that were in a step that raised an error; those that wait are not touched.

        Rows and blocks begin anew, and all shared prefixes are forgotten: the error may have left them half-changed.
        """
        waiting = set(self._waiting)
        for generation in waiting:
            generation.forget_blocks()  # that a fork may have given it
        failed = [generation for generation in self._generations.values() if generation not in waiting]
        self._prefilling = []
        self._rows = DecodeRows(self._max_running, self._rows.block_tables.shape[1], self._block_len)
        self._cache = BlockCache(self._cache.num_blocks, self._block_len)
        for generation in failed:
            self._finish(generation, FinishEvent("error", message))

    def _is_waiting(self, generation: Generation) -> bool:
        return not generation.is_prefilling and generation.row < 0

    def place(self, request: GenerationRequest) -> int:
        """Return 0 for a request that runs or is done, else its place in the queue, from 1."""
        generation = self._generations.get(request)
        if generation is None or not self._is_waiting(generation):
            return 0
        return bisect_left(self._waiting, generation.arrival, key=_arrival) + 1

    @property
    def waiting(self) -> list[GenerationRequest]:
        """The requests that wait, in order."""
        return [generation.request for generation in self._waiting]

    @property
    def num_unfinished(self) -> int:
        """Number of requests that wait or run."""
        return len(self._generations)

    @property
    def num_finished(self) -> int:
        """Number of requests that are done. It grows before the `FinishEvent` is passed on."""
        return self._counts["finished_requests"]

    @property
    def num_running(self) -> int:
        """Number of requests that prefill or decode."""
        return len(self._prefilling) + len(self._rows)

    def stats(self) -> dict[str, int]:
        """Return numbers of requests, tokens, steps and blocks. Counts begin with the scheduler."""
        return {
            "waiting": len(self._waiting),
            "prefilling": len(self._prefilling),
            "running": self.num_running,
            **self._counts,
            "blocks": self._cache.num_blocks,
            "blocks_used": self._cache.num_blocks - self._cache.num_available,
            "blocks_free": self._cache.num_available,
            "blocks_kept": self._cache.num_kept,
        }

    # --- a step -------------------------------------------------------------------------------------------------------

    def admit(self) -> None:
        """Decide which requests the next step runs. `step` does it itself; call it before, to know them sooner."""
        self._grow_rows()
        self._begin_waiting()

    @torch.inference_mode()
    def step(self) -> bool:
        """Compute one forward pass and append a token to each row. Returns False if no request is left.

        An error of the `ModelStep` passes through; call `fail_running` then, and go on.
        """
        self.admit()
        chunks = self._next_chunks()
        if not chunks and not self._rows:
            if self._waiting:
                raise UserError("the cache has no room: others on the same model hold it")
            return False
        logits = self._model_step.forward(self._rows.step_tokens(chunks))  # (L, V)
        self._counts["steps"] += 1
        self._register_rows()
        logits = self._end_chunks(chunks, logits)
        if self._rows:
            self._append_tokens(logits)
        return True

    def _grow_rows(self) -> None:
        """Give a block to each row that begins one. If there is none, the youngest request gives up its own."""
        for generation in sorted(self._rows.at_block_start(), key=_arrival):
            while generation.row >= 0 and not self._cache.num_available:
                self._preempt(max((*self._prefilling, *self._rows.generations), key=_arrival))
            if generation.row >= 0 and len(generation.blocks) * self._block_len < len(generation.tokens):
                block = self._cache.allocate()
                self._rows.block_tables[generation.row, len(generation.blocks)] = block
                generation.blocks.append(block)

    def _preempt(self, generation: Generation) -> None:
        """Send a request back to those that wait. It keeps its tokens, and will prefill what is not cached any more."""
        self._remove(generation)
        insort(self._waiting, generation, key=_arrival)
        self._counts["preemptions"] += 1

    def _begin_waiting(self) -> None:
        """Begin to prefill waiting requests, in order of arrival, as far as this step can begin with them."""
        index = 0
        num_tokens = sum(len(generation.tokens) - generation.num_computed for generation in self._prefilling)
        while (
            index < min(len(self._waiting), MAX_SKIPPED)
            and self.num_running < self._max_running
            and (num_tokens < self._max_prefill_tokens or len(self._prefilling) < self._max_prefilling)
        ):
            generation = self._waiting[index]
            if _is_still_waiting_for_prefix(generation):
                index += 1
                continue
            # The logits of the last token are wanted, so it is always computed.
            shared = self._cache.match(generation.tokens, (len(generation.tokens) - 1) // self._block_len)
            if self._will_be_computed(generation, len(shared)):
                index += 1
                continue
            num_blocks = math.ceil(len(generation.tokens) / self._block_len) - len(shared)
            # A block for each row that decodes is left: else the next steps would send this request back.
            if self._cache.num_available_beside(shared) < num_blocks + len(self._rows):
                break
            del self._waiting[index]
            self._begin(generation, shared, num_blocks)
            num_tokens += len(generation.tokens) - generation.num_computed

    def _will_be_computed(self, generation: Generation, num_shared: int) -> bool:
        """Check if another request is about to compute more of the prefix; if so, it is noted in `waits_for`."""
        tokens = generation.tokens
        for other in self._prefilling:
            if other.tokens == tokens:
                generation.waits_for, generation.wait_len = other, len(tokens)
                return True
            length = _common_len(tokens, other.tokens, self._block_len)
            if length > num_shared * self._block_len:
                generation.waits_for, generation.wait_len = other, length
                return True
        return False

    def _begin(self, generation: Generation, shared: list[int], num_blocks: int) -> None:
        """Take the shared blocks and all others that the tokens need."""
        self._cache.use(shared)
        generation.blocks = [*shared, *(self._cache.allocate() for _ in range(num_blocks))]
        generation.num_known = len(shared)
        generation.num_computed = len(shared) * self._block_len
        generation.is_prefilling = True
        self._prefilling.append(generation)
        self._note_shared(generation)

    def _next_chunks(self) -> list[Chunk]:
        """Return the chunks of prompts of this step: equal shares; what a short one does not need is for the longer."""
        chunks = []
        num_left = self._max_prefill_tokens
        by_length = sorted(self._prefilling, key=lambda other: len(other.tokens) - other.num_computed)
        for index, generation in enumerate(by_length):
            share = num_left // (len(by_length) - index)  # at least 1: no more prefill than there are tokens
            count = min(share, len(generation.tokens) - generation.num_computed)
            chunks.append((generation, count))
            num_left -= count
        return chunks

    def _register_rows(self) -> None:
        """Make the blocks known that the rows have filled in this step."""
        for generation in self._rows.at_block_end():
            generation.num_computed = len(generation.tokens)
            self._register(generation)

    def _register(self, generation: Generation) -> None:
        blocks, size = generation.blocks, self._block_len
        while (generation.num_known + 1) * size <= generation.num_computed:
            index = generation.num_known
            tokens = generation.tokens[index * size : (index + 1) * size]
            block = self._cache.register(blocks[index - 1] if index else None, tokens, blocks[index])
            generation.num_known += 1
            if block != blocks[index]:
                blocks[index] = block
                if generation.row >= 0:
                    self._rows.block_tables[generation.row, index] = block

    def _end_chunks(self, chunks: list[Chunk], logits: Tensor) -> Tensor:
        """Note what the chunks have computed; complete prompts become rows. Returns the logits of all rows, (R, V)."""
        source = list(range(len(self._rows)))  # for each row, its row of the logits
        num_forks = 0
        for generation, count in chunks:
            generation.num_computed += count
            self._counts["prefilled_tokens"] += count
            self._register(generation)
            if generation.num_computed < len(generation.tokens):
                continue
            self._prefilling.remove(generation)
            generation.is_prefilling = False
            self._rows.append(generation)
            row_of_logits = len(source) - num_forks
            source.append(row_of_logits)
            for copy in self._fork(generation):
                self._rows.append(copy)
                source.append(row_of_logits)
                num_forks += 1
        if num_forks:
            logits = logits[to_device(np.array(source), logits.device)]
        return logits

    def _fork(self, generation: Generation) -> list[Generation]:
        """Return the waiting requests whose prompt is this one, with its blocks: they need not read it again.

        None of them takes the row or the blocks of another request that came before it and waits.
        """
        copies: list[Generation] = []
        num_full = len(generation.tokens) // self._block_len
        has_tail = num_full < len(generation.blocks)
        num_ahead = 0  # requests that came before, and the blocks that they need at most
        blocks_ahead = 0
        for other in self._waiting:
            if self.num_running + len(copies) + num_ahead >= self._max_running:
                break
            if other.tokens != generation.tokens:
                num_ahead += 1
                blocks_ahead += math.ceil(len(other.tokens) / self._block_len)
                continue
            if self._cache.num_available - blocks_ahead < has_tail:
                break
            self._cache.use(generation.blocks[:num_full])
            other.blocks = generation.blocks[:num_full]
            if has_tail:
                other.blocks.append(self._cache.allocate())
                self._model_step.copy_block(generation.blocks[num_full], other.blocks[num_full])
            other.num_known = num_full
            other.num_computed = len(other.tokens)
            self._note_shared(other)
            copies.append(other)
        if copies:
            self._waiting = [other for other in self._waiting if not other.blocks]
        return copies

    def _note_shared(self, generation: Generation) -> None:
        """Note the tokens that a request has got without computing them."""
        generation.waits_for = None
        self._counts["shared_tokens"] += generation.num_computed
        if not generation.state.tokens:
            generation.request.num_cached = generation.num_computed

    # --- tokens -------------------------------------------------------------------------------------------------------

    def _append_tokens(self, logits: Tensor) -> None:
        """Draw a token for each row and append it, or the token that its tool forces; end the rows that are done."""
        drawn = self._rows.draw(logits) if self._draw is None else self._draw(logits)
        vocab_size = logits.size(-1)
        tokens = []
        ends: list[tuple[Generation, FinishEvent]] = []
        for row, (generation, sampled) in enumerate(zip(self._rows.generations, drawn, strict=True)):
            state = generation.state
            num_logprobs = generation.request.num_logprobs
            is_broken = sampled >= vocab_size and not state.has_forced_tokens
            if num_logprobs is not None and not is_broken:  # NaN is no log-probability, and no JSON
                is_broken = not bool(logits[row].isfinite().all())
            if is_broken:
                ends.append((generation, FinishEvent("error", NO_PROBABILITIES)))
                tokens.append(0)
                continue
            state.append(sampled)
            token = state.tokens[-1]
            tokens.append(token)
            generation.tokens.append(token)
            is_forced = not state.mask[-1]
            if num_logprobs is None:
                event = TokenEvent(token, is_forced)
            else:
                event = TokenEvent(token, is_forced, *log_probabilities(logits[row], token, num_logprobs))
            error = _emit(generation, event)
            if error is not None:
                ends.append((generation, FinishEvent("error", f"the receiver of the tokens failed: {error!r}")))
            elif state.is_done:
                ends.append((generation, FinishEvent("stop" if state.has_ended else "length")))
        self._counts["generated_tokens"] += len(tokens)
        self._rows.advance(tokens)
        self._end_rows(ends)

    def _end_rows(self, ends: list[tuple[Generation, FinishEvent]]) -> None:
        if not ends:
            return
        self._rows.remove([generation.row for generation, _ in ends])
        for generation, event in ends:
            self._cache.release(generation.blocks)
            self._finish(generation, event)

    def _remove(self, generation: Generation) -> None:
        """Take a request out of wherever it is, and release its blocks."""
        if generation.row >= 0:
            self._rows.remove([generation.row])
        elif generation.is_prefilling:
            self._prefilling.remove(generation)
            generation.is_prefilling = False
        else:
            del self._waiting[bisect_left(self._waiting, generation.arrival, key=_arrival)]
        self._cache.release(generation.blocks)
        generation.forget_blocks()

    def _finish(self, generation: Generation, event: FinishEvent) -> None:
        del self._generations[generation.request]
        generation.waits_for = None
        self._counts["finished_requests"] += 1
        _emit(generation, event)


def check_prompt(tokens: list[int], context_len: int, sequence_len: int) -> None:
    """Raise `UserError` for a prompt that is empty, longer than a model's context, or than its cache has room for.

    `sequence_len`: the model's context. `context_len`: the part of it that the cache has room for.
    """
    if not tokens:
        raise UserError("the prompt is empty: pass at least one token, such as <|bos|>")
    if len(tokens) > sequence_len:
        raise UserError(
            f"the prompt has {len(tokens)} tokens, but the context of this model is {sequence_len}: shorten it"
        )
    if len(tokens) > context_len:
        raise UserError(
            f"the prompt has {len(tokens)} tokens, but the cache has room for {context_len}: shorten it, or give the "
            "cache more memory"
        )


def _is_still_waiting_for_prefix(generation: Generation) -> bool:
    other = generation.waits_for
    return other is not None and other.is_prefilling and other.num_computed < generation.wait_len


def _common_len(first: list[int], second: list[int], block_len: int) -> int:
    """Return the length of the common prefix in whole blocks, of which `first` must have a token left."""
    length = 0
    longest = min(len(first) - 1, len(second))
    while length + block_len <= longest and first[length : length + block_len] == second[length : length + block_len]:
        length += block_len
    return length


def _emit(generation: Generation, event: TokenEvent | FinishEvent) -> Exception | None:
    """Pass an event on. Returns the error if the receiver raises one, which must not end the step of the others."""
    try:
        generation.request.on_event(event)
    except Exception as error:
        return error
    return None
