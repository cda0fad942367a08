"""Writes text with a model: a cache of keys and values, many answers at once, a calculator at their hand.

Letters in shape comments: B rows (answers still being written), P prompts, T new tokens, C width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nanochat.common import UserError
from nanochat.gpt import GPT
from nanochat.inference.kv_cache import KVCache
from nanochat.inference.tool_use import RowState, Tool
from nanochat.layers.padding import pad_right
from nanochat.layers.sampler import check_sampling, numbers, sample_at, sample_next, streams
from nanochat.tokenizer import Tokenizer

PREFILL_TOKENS = 16_384  # at most, padding included, of prompts in one pass (a longer prompt goes alone)

Column = tuple[list[int], list[int]]  # the tokens of one step, one per sample, and their masks


@dataclass(frozen=True)
class Completion:
    """What was written after a prompt. `mask`: 1 = the model chose the token, 0 = the tool did.

    `ended`: the model ended it, and the end token is the last; else there was no more room.
    """

    tokens: list[int]
    mask: list[int]
    ended: bool


class DecodeBatch:
    """Answers that are being written together, a row each: those that are done leave, and cost nothing from then on.

    A step is `write`, with a token for each row of `logits`, then `advance`, which makes the next logits. (No pass
    is made for what nobody reads on from; and what is written can be shown before the next step is computed.)
    """

    def __init__(self, model: GPT, prompts: Sequence[list[int]], writers: Sequence[Sequence[RowState]]) -> None:
        """`writers`: for each prompt those that continue it, at least one. Each prompt is read once."""
        self.model = model
        self.rows = [writer for group in writers for writer in group]
        copies = [len(group) for group in writers]
        lengths = [len(prompt) for prompt, count in zip(prompts, copies, strict=True) for _ in range(count)]
        self.cache = KVCache(model.config, len(self.rows), model.compute_dtype, model.device)
        self.cache.hold(lengths)
        logits, row = [], 0
        for group in groups(prompts, PREFILL_TOKENS):
            part, hidden = self._read(prompts[group])
            for source, count in enumerate(copies[group]):
                self.cache.load(row, count, part, source)
                row += count
            logits.append(model.logits(hidden).repeat_interleave(torch.tensor(copies[group], device=model.device), 0))
        self.logits = torch.cat(logits)  # (B, V): the answers to a prompt part at their first draw

    def _read(self, prompts: Sequence[list[int]]) -> tuple[KVCache, Tensor]:
        """A pass over whole prompts, padded on the right, where no token sees it; the last hidden states, (P, C)."""
        device, lengths = self.model.device, [len(prompt) for prompt in prompts]
        cache = KVCache(self.model.config, len(prompts), self.model.compute_dtype, device)
        hidden = self.model.hidden(pad_right(prompts, fill=0, device=device), cache)  # (P, T) -> (P, T, C)
        last = torch.tensor(lengths, device=device) - 1
        return cache, hidden[torch.arange(len(prompts), device=device), last]

    def write(self, drawn: list[int]) -> None:
        """Give each row the token that was drawn for it."""
        for writer, token in zip(self.rows, drawn, strict=True):
            writer.write(token)

    def advance(self) -> bool:
        """Let go of the rows that are done and make the logits of the others; false if there are none."""
        done = [row for row, writer in enumerate(self.rows) if writer.done]
        if len(done) == len(self.rows):
            return False
        if done:
            self.rows = [self.rows[row] for row in self.cache.drop(done)]
        last = torch.tensor([writer.tokens[-1:] for writer in self.rows], device=self.model.device)
        self.logits = self.model.logits(self.model.hidden(last, self.cache)[:, -1])  # (B, 1) -> (B, C) -> (B, V)
        return True


def groups(prompts: Sequence[list[int]], tokens: int) -> Iterator[slice]:
    """The prompts in order, as many to a group as make up to `tokens` tokens with their padding, at least one."""
    start, longest = 0, 0
    for end, prompt in enumerate(prompts):
        longest = max(longest, len(prompt))
        if end > start and longest * (end + 1 - start) > tokens:
            yield slice(start, end)
            start, longest = end, len(prompt)
    yield slice(start, len(prompts))


class Engine:
    """Generates with a model, to `<|assistant_end|>` or `<|bos|>` (where a base model would begin another document).

    What the model writes between `<|python_start|>` and `<|python_end|>` goes to the calculator, and the result is
    forced into the answer (`tool_use.py`), a token a step, while others go on.

    Where the compute dtype is not float32 the weights are converted once, here: after a training step, make a new
    Engine. Numbers do not change by that. Give it the plain model, not a compiled one.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer) -> None:
        self.model, self.tokenizer, self.tool = with_compute_weights(model), tokenizer, Tool(tokenizer)
        self.end_ids = self.tool.end_ids

    def generate(
        self,
        tokens: list[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> Iterator[Column]:
        """Continue `tokens`, `num_samples` times: yields one `(token_column, token_masks)` a step, an entry per sample.

        Mask 1: the model chose this token, the end token included; 0: the tool did. When a sample has ended before the
        others its entry repeats its end token with mask 0. Ends when all samples have, after `max_tokens`, or when the
        context is full (prompt + answer = `sequence_len`; at once, if the prompt fills it), be it amid a tool's output.
        Raises `UserError`, before the first step, for settings that mean nothing and for a prompt that does not fit.
        """
        room = self._check([tokens], num_samples, max_tokens, temperature, top_k)[0]
        writers = [RowState(self.tool, room) for _ in range(num_samples)]
        generator = torch.Generator(self.model.device).manual_seed(seed)
        return self._columns(tokens, writers, lambda logits: sample_next(logits, temperature, top_k, generator))

    @torch.inference_mode()
    def _columns(
        self, tokens: list[int], writers: list[RowState], draw: Callable[[Tensor], Tensor]
    ) -> Iterator[Column]:
        if writers[0].done:
            return
        batch = DecodeBatch(self.model, [tokens], [writers])
        step, going = 0, True
        while going:
            batch.write(draw(batch.logits).tolist())
            step += 1
            masks = [writer.mask[-1] if len(writer.tokens) == step else 0 for writer in writers]
            yield [writer.tokens[-1] for writer in writers], masks
            going = batch.advance()

    @torch.inference_mode()
    def answers(
        self,
        prompts: Sequence[list[int]],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int | Sequence[int] = 42,
        batch_size: int = 256,
    ) -> list[list[Completion]]:
        """Continue each prompt `num_samples` times, `batch_size` answers at once: for each prompt its answers.

        The prompts may have different lengths. An answer depends on its prompt, its place among all answers, the seed
        and the other settings, but, save for rounding, not on `batch_size` and not on what it is written beside. With a
        seed for each prompt its place among the answers to its own prompt counts, and the other prompts do not.
        Raises `UserError` as `generate` does.
        """
        rooms = self._check(prompts, num_samples, max_tokens, temperature, top_k)
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: it must be at least 1")
        writers = [[RowState(self.tool, room) for _ in range(num_samples)] for room in rooms]
        seeds, count = ([seed], len(prompts) * num_samples) if isinstance(seed, int) else (seed, num_samples)
        keys = np.concatenate([streams(own, count) for own in seeds])
        place = {id(writer): i for i, writer in enumerate(writer for group in writers for writer in group)}
        by_length = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))  # what needs most memory comes first
        jobs = [(i, sample) for i in by_length if rooms[i] for sample in range(num_samples)]
        for start in range(0, len(jobs), batch_size):
            together: dict[int, list[RowState]] = {}
            for i, sample in jobs[start : start + batch_size]:
                together.setdefault(i, []).append(writers[i][sample])
            batch = DecodeBatch(self.model, [prompts[i] for i in together], list(together.values()))
            going = True
            while going:
                own = keys[[place[id(writer)] for writer in batch.rows]]
                where = torch.from_numpy(numbers(own, np.array([len(writer.tokens) for writer in batch.rows])))
                drawn = sample_at(batch.logits, temperature, top_k, where.to(self.model.device))
                batch.write(drawn.tolist())
                going = batch.advance()
        return [[Completion(writer.tokens, writer.mask, writer.ended) for writer in group] for group in writers]

    def _check(
        self,
        prompts: Sequence[list[int]],
        num_samples: int,
        max_tokens: int | None,
        temperature: float,
        top_k: int | None,
    ) -> list[int]:
        """How many tokens may follow each prompt. Raises `UserError`."""
        check_sampling(temperature, top_k)
        if num_samples < 1:
            raise UserError(f"num_samples is {num_samples}: it must be at least 1")
        if max_tokens is not None and max_tokens < 1:
            raise UserError(f"max_tokens is {max_tokens}: it must be at least 1; leave it out to fill the context")
        context = self.model.config.sequence_len
        for tokens in prompts:
            if not tokens:
                raise UserError("the prompt is empty: give at least one token, such as <|bos|>")
            if len(tokens) > context:
                raise UserError(
                    f"the prompt has {len(tokens)} tokens, but the context of this model is {context}: cut it"
                )
        return [min(context - len(tokens), context if max_tokens is None else max_tokens) for tokens in prompts]

    def generate_batch(
        self,
        tokens: list[int],
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> tuple[list[list[int]], list[list[int]]]:
        """`generate`, collected: for each sample its tokens, the prompt first, and their masks (0 on the prompt).

        End tokens are left out, both kinds: what stays of a base model's sample is at most one document.
        """
        sequences = [list(tokens) for _ in range(num_samples)]
        masks = [[0] * len(tokens) for _ in range(num_samples)]
        for column, column_masks in self.generate(tokens, num_samples, max_tokens, temperature, top_k, seed):
            for sample, (token, mask) in enumerate(zip(column, column_masks, strict=True)):
                if token not in self.end_ids:
                    sequences[sample].append(token)
                    masks[sample].append(mask)
        return sequences, masks

    def complete(
        self,
        prompt: str,
        num_samples: int = 1,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        seed: int = 42,
    ) -> list[str]:
        """What the model writes after `prompt`, the beginning of a document ("" = from nothing): a text per sample."""
        tokens = self.tokenizer.encode(prompt, prepend=self.tokenizer.get_bos_token_id())
        sequences, _ = self.generate_batch(tokens, num_samples, max_tokens, temperature, top_k, seed)
        return [self.tokenizer.decode(sequence[len(tokens) :]) for sequence in sequences]


def with_compute_weights(model: GPT) -> GPT:
    """The same model with its weights in its compute dtype; the model itself if they are already.

    A training step wants float32 weights, converted in every product; writing would spend most of its time on that.
    """
    dtype = model.compute_dtype
    weights = model.state_dict()
    if all(weight.dtype == dtype for weight in weights.values()):
        return model
    with torch.device("meta"):
        twin = GPT(model.config, dtype)
    twin.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()}, assign=True)
    twin.rope_cos, twin.rope_sin = model.rope_cos.to(dtype), model.rope_sin.to(dtype)
    return twin
