"""A model that base_eval scores on CORE: a base checkpoint, or a model from Hugging Face transformers."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat.checkpoint_manager import default_tag, list_tags, load_model, run_dir
from nanochat.common import UserError
from nanochat.eval.core_scorer import ModelScorer, Scorer
from nanochat.eval.hf_causal import load_hf_model
from nanochat.eval.hf_scorer import HFScorer
from nanochat.runtime import Runtime
from nanochat.tokenization.encoders import TextEncoder


@dataclass(frozen=True)
class EvalModel:
    """A model with the scorer and tokenizer that `nanochat.core_eval.evaluate_task` takes, and its names."""

    name: str  # in tables: TAG:STEP, or the name on the hub
    file_name: str  # the same, usable as part of a file's name
    note: str  # a sentence about the model for the report
    scorer: Scorer
    tokenizer: TextEncoder
    context_len: int  # tokens

    @classmethod
    def from_checkpoint(cls, runtime: Runtime, batch_tokens: int, tag: str | None = None, step: int = -1) -> EvalModel:
        """Load a base checkpoint. Default: the last step (-1) of the deepest model (None)."""
        tag = tag or default_tag("base")
        model, tokenizer, meta = load_model("base", runtime, model_tag=tag, step=step)
        dtype = replace(runtime, compute_dtype=model.compute_dtype).dtype_name
        return cls(
            name=f"{tag}:{meta['step']}",
            file_name=f"{tag}_{meta['step']:06d}",
            note=f"Checkpoint {tag} of step {meta['step']}, computing in {dtype}.",
            scorer=ModelScorer(model, batch_tokens),
            tokenizer=tokenizer,
            context_len=model.config.sequence_len,
        )

    @classmethod
    def from_hf(cls, name: str, runtime: Runtime, batch_tokens: int) -> EvalModel:
        """Load a model of transformers, from a folder or by its name on the hub."""
        model, tokenizer = load_hf_model(name, runtime)
        short_name = Path(name).resolve().name if Path(name).is_dir() else name
        return cls(
            name=short_name,
            file_name=re.sub(r"[^\w.-]+", "--", short_name),
            note=f"{name}, {type(model.inner).__name__} of transformers, computing in {runtime.dtype_name}.",
            scorer=HFScorer(model, not tokenizer.has_bos, batch_tokens),
            tokenizer=tokenizer,
            context_len=model.context_len,
        )

    @classmethod
    def from_name(cls, name: str, runtime: Runtime, batch_tokens: int) -> EvalModel:
        """Load a base checkpoint named `TAG` or `TAG:STEP`, or else a folder, or `OWNER/NAME` from the hub.

        Raises UserError if the name is none of these.
        """
        tags = list_tags("base")
        tag, _, step = name.partition(":")
        if tag in tags and re.fullmatch(r"\d*", step):
            return cls.from_checkpoint(runtime, batch_tokens, tag, int(step or -1))
        if "/" not in name and not os.path.isdir(name):  # isdir is also False for a name too long for a path
            known = f"there are {', '.join(tags)}" if tags else f"there is none in {run_dir('base', '')}"
            raise UserError(f"{name!r} is neither a folder nor a base checkpoint as TAG or TAG:STEP: {known}")
        return cls.from_hf(name, runtime, batch_tokens)
