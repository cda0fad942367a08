"""CORE scores and bits per byte of a model from Hugging Face transformers.

Letters in shape comments: B options of a batch, T tokens of a row, N predicted tokens, V vocabulary, R rows of text.
"""

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

from nanochat.data.shards import Documents
from nanochat.dataloader import split_into_rows
from nanochat.eval.core_prompts import EncodedExample, EncodedOption
from nanochat.eval.core_scorer import (
    BatchSize,
    OptionRows,
    OptionScore,
    default_batch_tokens,
    prefix_ids,
    score_in_batches,
)
from nanochat.eval.hf_causal import MAX_LOGITS, HFCausalModel, HFTokenizer, prefill_prefix
from nanochat.layers.attention import varied_shapes
from nanochat.layers.padding import pad_right
from nanochat.loss_eval import sum_nats
from nanochat.runtime import Runtime, exact_float32

DOCUMENTS_PER_BATCH = 256  # tokenized in one call


@dataclass(frozen=True)
class HFScorer:
    """Scorer with a model of transformers, as `nanochat.eval.core_scorer.ModelScorer` is with a `GPT`.

    Shared prefixes are computed once where the model's cache allows it (`supports_prefix_sharing`).

    `drop_bos`: the tokenizer has no BOS token, so its end-of-text token stands in for it. The stand-in is dropped, but
    kept where an option (one answer with its prompt) has no context to predict the first token from.
    `batch_tokens`: maximum number of positions in a forward pass; -1: the default of the model's device.
    """

    model: HFCausalModel
    drop_bos: bool
    batch_tokens: int = -1

    def __call__(self, examples: Sequence[EncodedExample]) -> Iterator[tuple[EncodedExample, list[OptionScore]]]:
        """Yield each example with its options' scores, the longest examples first."""
        if self.drop_bos:
            examples = [replace(example, options=list(map(_without_bos, example.options))) for example in examples]
        return score_in_batches(examples, self._fits, self._score)

    def _fits(self, size: BatchSize) -> bool:
        max_positions = default_batch_tokens(self.model.device) if self.batch_tokens == -1 else self.batch_tokens
        if size.num_predicted * self.model.vocab_size > MAX_LOGITS:
            return False
        if not self.model.supports_prefix_sharing:
            return size.num_positions_unshared <= max_positions
        if size.width > self.model.context_len:  # some models have no position embeddings for such columns
            return False
        num_positions = size.num_positions if size.all_have_prefix else size.num_positions_unshared
        return num_positions <= max_positions

    def _prefix_lens(self, batch: Sequence[EncodedExample]) -> list[int]:
        """Return the lengths of the prefixes to share: all examples of the batch have one, or none is shared."""
        lengths = [example.prefix_len for example in batch]
        return lengths if self.model.supports_prefix_sharing and min(lengths) > 0 else [0] * len(batch)

    @torch.inference_mode()
    @exact_float32()
    def _score(self, batch: Sequence[EncodedExample]) -> list[OptionScore]:
        device = self.model.device
        prefix_lens = self._prefix_lens(batch)
        options = OptionRows.from_examples(batch, prefix_lens)
        idx = pad_right(options.input_ids, fill=0, device=device)  # (B, T)
        rows = torch.tensor(options.rows, device=device)
        columns = torch.tensor(options.columns, device=device)
        targets = torch.tensor(options.targets, device=device)
        cache_kwargs = {}
        with varied_shapes(device):
            if any(prefix_lens):
                num_options = [len(example.options) for example in batch]
                cache_kwargs = prefill_prefix(self.model, prefix_ids(batch, prefix_lens), num_options, idx.size(1))
            logits, _ = self.model.predict(idx, rows, columns, **cache_kwargs)  # (N, V)
        losses = F.cross_entropy(logits, targets, reduction="none").cpu()
        return options.scores(losses, (logits.argmax(-1) == targets).cpu())


def _without_bos(option: EncodedOption) -> EncodedOption:
    """Return the option without its BOS token, if a context remains before the continuation."""
    has_context = len(option.ids) > option.continuation_len + 1
    return EncodedOption(option.ids[1:], option.continuation_len) if has_context else option


def hf_bits_per_byte(
    model: HFCausalModel,
    tokenizer: HFTokenizer,
    documents: Documents,
    sequence_len: int,
    max_tokens: int,
    batch_size: int,
    runtime: Runtime,
) -> float:
    """Return the bits per byte of the first `max_tokens` tokens of the documents, at most one pass over them.

    Defined as in `nanochat.loss_eval.bits_per_byte`, but the bytes are counted in the text and not in the tokens,
    because a tokenizer may normalise the text. The tokens between documents are inputs, but never targets.
    """
    rows, num_bytes = text_rows(documents, tokenizer, sequence_len, max_tokens)
    inputs = rows[:, :-1].clamp(min=0)
    targets = rows[:, 1:].clone()
    targets[targets == tokenizer.get_bos_token_id()] = -1
    nats, _ = sum_nats(model, inputs, targets, batch_size, runtime)
    return nats / (math.log(2) * num_bytes) if num_bytes else float("inf")


def text_rows(documents: Documents, tokenizer: HFTokenizer, sequence_len: int, max_tokens: int) -> tuple[Tensor, int]:
    """Return rows (R, T + 1) as `nanochat.dataloader.document_eval_rows` does, and the bytes of text in them."""
    tokens = array("q")
    num_bytes = 0
    texts = documents.iter_texts()
    while len(tokens) <= max_tokens and (batch := list(islice(texts, DOCUMENTS_PER_BATCH))):
        for text, ids in zip(batch, tokenizer.encode(batch), strict=True):
            max_ids = max_tokens - len(tokens)  # after the BOS token; the very first token is not a target
            if max_ids < 0:
                break
            tokens.append(tokenizer.get_bos_token_id())
            tokens.extend(ids[:max_ids])
            is_whole = len(ids) <= max_ids
            num_bytes += len(text.encode("utf-8")) if is_whole else tokenizer.count_bytes(text, max_ids)
    return split_into_rows(np.asarray(tokens), sequence_len), num_bytes
