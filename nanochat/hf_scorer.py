"""What our evaluation makes of a model of transformers: CORE's prompts scored, bits per byte of text."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from nanochat.core_eval import BATCH_TOKENS, OptionScore, Prompt
from nanochat.dataloader import EVAL_DOCUMENTS, in_rows
from nanochat.hf_causal import MAX_LOGITS, CausalModel, ForeignTokenizer
from nanochat.loss_eval import nats_and_tokens
from nanochat.runtime import Runtime
from nanochat.shards import Documents

Option = tuple[list[int], int]  # token ids, and how many of the last ones are the continuation


@dataclass(frozen=True)
class CausalScorer:
    """Scores prompts as `nanochat.core_eval.ModelScorer` does: whole sequences of like length, padded on the right.

    `drop_first`: the tokenizer names no beginning, so a prompt begins with its text. Only a continuation with nothing
    at all before it keeps what stands for a beginning, or its first token could not be predicted.
    """

    model: CausalModel
    drop_first: bool
    batch_tokens: int = BATCH_TOKENS

    def __call__(self, prompts: Sequence[Prompt]) -> Iterator[tuple[Prompt, list[OptionScore]]]:
        """Scores of each prompt's options, the longest prompts first."""
        for batch in self._batches(sorted(prompts, key=lambda prompt: -prompt.longest)):
            scores = iter(self._score([self._own(option) for prompt in batch for option in prompt.options]))
            for prompt in batch:
                yield prompt, [next(scores) for _ in prompt.options]

    def _own(self, option: Option) -> Option:
        """The option as this model shall read it."""
        ids, count = option
        return (ids[1:] if self.drop_first and len(ids) > count + 1 else ids), count

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
        """Prompts that fit side by side; the first one is the longest."""
        batch: list[Prompt] = []
        rows = predicted = 0
        for prompt in prompts:
            rows += len(prompt.options)
            predicted += sum(count for _, count in prompt.options)
            too_many = rows * (batch or [prompt])[0].longest > self.batch_tokens
            if batch and (too_many or predicted * self.model.vocab_size > MAX_LOGITS):
                yield batch
                batch, rows = [], len(prompt.options)
                predicted = sum(count for _, count in prompt.options)
            batch.append(prompt)
        if batch:
            yield batch

    @torch.inference_mode()
    def _score(self, options: Sequence[Option]) -> list[OptionScore]:
        """Scores of options, read side by side."""
        device = self.model.device
        rows = [row for row, (_, count) in enumerate(options) for _ in range(count)]
        columns = [column - 1 for ids, count in options for column in range(len(ids) - count, len(ids))]
        targets = torch.tensor([token for ids, count in options for token in ids[-count:]], device=device)
        places = (torch.tensor(places, device=device) for places in (rows, columns))
        logits, _ = self.model.predict(side_by_side([ids[:-1] for ids, _ in options], device), *places)  # (N, V)
        losses = F.cross_entropy(logits, targets, reduction="none").cpu()
        exact = (logits.argmax(-1) == targets).cpu()
        counts = [count for _, count in options]
        return [
            OptionScore(loss.mean().item(), bool(hits.all()))
            for loss, hits in zip(losses.split(counts), exact.split(counts), strict=True)
        ]


def side_by_side(rows: Sequence[list[int]], device: torch.device) -> Tensor:
    """Ids (B, T). On the right of a row may stand anything: nothing before it can see it."""
    width = max(map(len, rows))
    return torch.tensor([ids + [0] * (width - len(ids)) for ids in rows], device=device)


def bits_per_byte_of(
    model: CausalModel,
    tokenizer: ForeignTokenizer,
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


def text_rows(
    documents: Documents, tokenizer: ForeignTokenizer, sequence_len: int, max_tokens: int
) -> tuple[Tensor, int]:
    """The rows that `nanochat.dataloader.eval_rows` would give, and the bytes of text that they hold."""
    tokens, num_bytes, texts = array("q"), 0, documents.iterate()
    while len(tokens) <= max_tokens and (batch := list(islice(texts, EVAL_DOCUMENTS))):
        for text, ids in zip(batch, tokenizer.encode(batch), strict=True):
            room = max_tokens - len(tokens)  # for its text, after what begins it; the first token is nobody's target
            if room < 0:
                break
            tokens.append(tokenizer.get_bos_token_id())
            tokens.extend(ids[:room])
            whole = len(ids) <= room
            num_bytes += len(text.encode("utf-8")) if whole else tokenizer.num_bytes(text, room)
    return in_rows(tokens, sequence_len), num_bytes
