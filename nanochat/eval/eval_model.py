"""A model that base_eval scores: a checkpoint of ours, or a model of transformers, behind one face."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat.checkpoint_manager import default_tag, list_tags, load_model, run_dir
from nanochat.common import UserError
from nanochat.core_eval import ModelScorer, Scorer
from nanochat.eval.hf_causal import load_causal
from nanochat.eval.hf_scorer import CausalScorer
from nanochat.runtime import Runtime
from nanochat.tokenization.encoders import TextEncoder


@dataclass(frozen=True)
class EvalModel:
    """`name`: what tables call it; `file_name`: that, fit for a file; `note`: what the report says of it."""

    name: str
    file_name: str
    note: str
    scorer: Scorer
    tokenizer: TextEncoder
    context: int


def checkpoint(runtime: Runtime, batch_tokens: int, tag: str | None = None, step: int = -1) -> EvalModel:
    """A base checkpoint; without a tag that of the deepest model, without a step the last."""
    tag = tag or default_tag("base")
    model, tokenizer, meta = load_model("base", runtime, model_tag=tag, step=step)
    dtype = replace(runtime, compute_dtype=model.compute_dtype).dtype_name
    return EvalModel(
        name=f"{tag}:{meta['step']}",
        file_name=f"{tag}_{meta['step']:06d}",
        note=f"Checkpoint {tag} of step {meta['step']}, computing in {dtype}.",
        scorer=ModelScorer(model, batch_tokens),
        tokenizer=tokenizer,
        context=model.config.sequence_len,
    )


def foreign(name: str, runtime: Runtime, batch_tokens: int) -> EvalModel:
    """A model of transformers, from a folder or by name from the hub."""
    model, tokenizer = load_causal(name, runtime)
    short = Path(name).resolve().name if Path(name).is_dir() else name
    return EvalModel(
        name=short,
        file_name=re.sub(r"[^\w.-]+", "--", short),
        note=f"{name}, {type(model.inner).__name__} of transformers, computing in {runtime.dtype_name}.",
        scorer=CausalScorer(model, not tokenizer.has_bos, batch_tokens),
        tokenizer=tokenizer,
        context=model.context,
    )


def named(name: str, runtime: Runtime, batch_tokens: int) -> EvalModel:
    """`TAG` or `TAG:STEP`, a base checkpoint; else a folder, or a name on the hub as `OWNER/NAME`.

    Raises UserError for a name that is none of these.
    """
    tags = list_tags("base")
    tag, _, step = name.partition(":")
    if tag in tags and re.fullmatch(r"\d*", step):
        return checkpoint(runtime, batch_tokens, tag, int(step or -1))
    if "/" not in name and not os.path.isdir(name):  # also where that cannot be told
        there = f"there are {', '.join(tags)}" if tags else f"there is none in {run_dir('base', '')}"
        raise UserError(f"{name!r} is neither a folder nor a base checkpoint as TAG or TAG:STEP: {there}")
    return foreign(name, runtime, batch_tokens)
