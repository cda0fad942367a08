"""What our evaluation makes of a model of transformers: CORE's prompts scored, bits per byte of text."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nanochat.core_eval import OptionScore, Prompt, batch_tokens_for
from nanochat.data.shards import Documents
from nanochat.dataloader import split_into_rows
from nanochat.eval.hf_causal import MAX_LOGITS, CausalModel, HFTokenizer, prefill_prefix
from nanochat.layers.padding import pad_right
from nanochat.loss_eval import nats_and_tokens
from nanochat.runtime import Runtime

DOCUMENTS = 256  # tokenised at a time


@dataclass(frozen=True)
class _Size:
    """What a batch takes: examples, their options, tokens to predict; the most that any example has."""

    examples: int = 0
    options: int = 0
    predicted: int = 0
    longest: int = 0
    shared: int = 0
    rest: int = 0
    all_share: bool = True

    def plus(self, prompt: Prompt) -> _Size:
        """With one example more."""
        return _Size(
            self.examples + 1,
            self.options + len(prompt.options),
            self.predicted + sum(count for _, count in prompt.options),
            max(self.longest, prompt.longest),
            max(self.shared, prompt.shared),
            max(self.rest, prompt.longest - prompt.shared),
            self.all_share and prompt.shared > 0,
        )

    def positions(self, shares: bool) -> int:
        """Positions of its forward passes, padding and what is cached included."""
        if shares and self.all_share:
            return self.options * (self.shared + self.rest) + self.examples * self.shared
        return self.options * self.longest


@dataclass(frozen=True)
class CausalScorer:
    """Scores prompts as `nanochat.core_eval.ModelScorer` does: many of like length at a time, padded on the right.

    What the options of an example share is read once, where the model's cache allows it (`CausalModel.shares`).
    `drop_first`: the tokenizer names no beginning, so a prompt begins with its text. Only a continuation with nothing
    at all before it keeps what stands for a beginning, or its first token could not be predicted. `batch_tokens` = -1:
    what suits the model's device.
    """

    model: CausalModel
    drop_first: bool
    batch_tokens: int = -1

    def __call__(self, prompts: Sequence[Prompt]) -> Iterator[tuple[Prompt, list[OptionScore]]]:
        """Scores of each prompt's options, the longest prompts first."""
        own = [replace(prompt, options=list(map(self._own, prompt.options))) for prompt in prompts]
        for batch in self._batches(sorted(own, key=lambda prompt: -prompt.longest)):
            scores = iter(self._score(batch))
            for prompt in batch:
                yield prompt, [next(scores) for _ in prompt.options]

    def _own(self, option: tuple[list[int], int]) -> tuple[list[int], int]:
        """The option, as (ids, how many of the last ones are the continuation), as this model shall read it."""
        ids, count = option
        return (ids[1:] if self.drop_first and len(ids) > count + 1 else ids), count

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
        """Prompts to read side by side: as many as fit, but at least one."""
        most = batch_tokens_for(self.model.device) if self.batch_tokens == -1 else self.batch_tokens
        batch: list[Prompt] = []
        size = _Size()
        for prompt in prompts:
            more = size.plus(prompt)
            too_many = more.positions(self.model.shares) > most
            too_wide = self.model.shares and more.shared + more.rest > self.model.context  # some have no such columns
            if batch and (too_many or too_wide or more.predicted * self.model.vocab_size > MAX_LOGITS):
                yield batch
                batch, more = [], _Size().plus(prompt)
            batch.append(prompt)
            size = more
        if batch:
            yield batch

    def _skips(self, batch: Sequence[Prompt]) -> list[int]:
        """How many tokens of each prompt are read once for all its options: all of them have some, or none has."""
        skips = [prompt.shared for prompt in batch]
        return skips if self.model.shares and min(skips) > 0 else [0] * len(batch)

    @torch.inference_mode()
    def _score(self, batch: Sequence[Prompt]) -> list[OptionScore]:
        """Scores of all options of a batch, one prompt after the other."""
        device, skips = self.model.device, self._skips(batch)
        options = [(ids[skip:], n) for prompt, skip in zip(batch, skips, strict=True) for ids, n in prompt.options]
        rows = [row for row, (_, count) in enumerate(options) for _ in range(count)]
        columns = [column - 1 for ids, count in options for column in range(len(ids) - count, len(ids))]
        targets = torch.tensor([token for ids, count in options for token in ids[-count:]], device=device)
        ids = pad_right([ids[:-1] for ids, _ in options], 0, device=device)
        if any(skips):
            begins = [prompt.options[0][0][:skip] for prompt, skip in zip(batch, skips, strict=True)]
            known = prefill_prefix(self.model, begins, [len(prompt.options) for prompt in batch], ids.size(1))
        else:
            known = {}
        places = (torch.tensor(places, device=device) for places in (rows, columns))
        logits, _ = self.model.predict(ids, *places, **known)  # (N, V)
        losses = F.cross_entropy(logits, targets, reduction="none").cpu()
        exact = (logits.argmax(-1) == targets).cpu()
        counts = [count for _, count in options]
        return [
            OptionScore(loss.mean().item(), bool(hits.all()))
            for loss, hits in zip(losses.split(counts), exact.split(counts), strict=True)
        ]


def bits_per_byte_of(
    model: CausalModel,
    tokenizer: HFTokenizer,
    documents: Documents,
    sequence_len: int,
    max_tokens: int,
    batch_size: int,
    runtime: Runtime,
) -> float:
    """`nanochat.loss_eval.bits_per_byte` of the first `max_tokens` tokens of documents, at most one pass.

    The bytes are those of the text, not of the tokens: right for a tokenizer that changes the text as well. What parts
    the documents is read and not predicted.
    """
    rows, num_bytes = text_rows(documents, tokenizer, sequence_len, max_tokens)
    inputs, targets = rows[:, :-1].clamp(min=0), rows[:, 1:].clone()
    targets[targets == tokenizer.get_bos_token_id()] = -1
    nats, _ = nats_and_tokens(model, inputs, targets, batch_size, runtime)
    return nats / (math.log(2) * num_bytes) if num_bytes else float("inf")


def text_rows(documents: Documents, tokenizer: HFTokenizer, sequence_len: int, max_tokens: int) -> tuple[Tensor, int]:
    """The rows that `nanochat.dataloader.document_eval_rows` would give, and the bytes of text that they hold."""
    tokens, num_bytes, texts = array("q"), 0, documents.iter_texts()
    while len(tokens) <= max_tokens and (batch := list(islice(texts, DOCUMENTS))):
        for text, ids in zip(batch, tokenizer.encode(batch), strict=True):
            room = max_tokens - len(tokens)  # for its text, after what begins it; the first token is nobody's target
            if room < 0:
                break
            tokens.append(tokenizer.get_bos_token_id())
            tokens.extend(ids[:room])
            whole = len(ids) <= room
            num_bytes += len(text.encode("utf-8")) if whole else tokenizer.num_bytes(text, room)
    return split_into_rows(np.asarray(tokens), sequence_len), num_bytes
