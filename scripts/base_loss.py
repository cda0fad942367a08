"""Measure a base model: bits per byte on training and validation text, and samples of what it writes.

    torchrun --standalone --nproc_per_node=8 -m scripts.base_loss         # eight GPUs
    python -m scripts.base_loss                                           # one GPU, or a laptop: the deepest model
    python -m scripts.base_loss --model_tag=d4 --step=400 --num_samples=5
    python -m scripts.base_loss --hf-path=openai-community/gpt2           # a model of transformers, or a folder

Where the training text is the story world, each sentence of the samples is checked against that world, and the share
of sound ones is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from nanochat.checkpoint_manager import default_tag, load_model
from nanochat.common import UserError, print0
from nanochat.configurator import Settings, cli, setting
from nanochat.data import storyworld
from nanochat.data.shards import Documents, load_manifest, open_split
from nanochat.dataloader import document_eval_rows
from nanochat.eval import hf_causal
from nanochat.eval.hf_scorer import hf_bits_per_byte
from nanochat.eval.samples import prompts_for, write_samples
from nanochat.loss_eval import bits_per_byte
from nanochat.report import log_section
from nanochat.reporting.schema import proportion
from nanochat.runtime import Runtime


@dataclass(frozen=True)
class Config(Settings):
    model_tag: str | None = setting(None, "checkpoint folder to measure; default: that of the deepest model", short="g")
    step: int = setting(-1, "checkpoint to measure; -1 = the last", short="s", at_least=0, also=-1)
    hf_path: str | None = setting(None, "measure a model of transformers instead: a folder, or a name on the hub")
    hf_context: int = setting(
        2048, "longest row in tokens for a model of transformers, whose own context may be too long", at_least=1
    )
    device: str = setting("auto", "where to run", choices=("auto", "cpu", "cuda", "mps"))
    device_batch_size: int = setting(16, "rows scored at a time on one device", at_least=1)
    eval_tokens: int = setting(10485760, "tokens of each split; at most one pass over it", at_least=1)
    num_samples: int = setting(20, "samples of text to write; 0 = none", at_least=0)
    max_sample_tokens: int = setting(256, "longest sample, in tokens", at_least=1)
    temperature: float = setting(0.7, "of the samples; 0 = always the likeliest token", at_least=0)
    seed: int = setting(42, "of the samples")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hf_path is not None and (self.model_tag is not None or self.step != -1):
            raise UserError("choose either --model_tag and --step, or --hf_path")


@dataclass(frozen=True)
class Subject:
    """What is measured. `bits`: documents -> bits per byte; `write`: prompts -> samples; `checkpoint`: our TAG:STEP."""

    stage: str
    title: str
    note: str
    bits: Callable[[Documents], float]
    write: Callable[[Sequence[str]], list[dict[str, Any]]]
    checkpoint: str | None = None


def our_model(config: Config, runtime: Runtime) -> Subject:
    """A checkpoint of ours."""
    tag = config.model_tag or default_tag("base")
    model, tokenizer, meta = load_model("base", runtime, model_tag=tag, step=config.step)
    runtime = replace(runtime, compute_dtype=model.compute_dtype)
    token_bytes = torch.tensor(tokenizer.token_bytes())

    def bits(documents: Documents) -> float:
        rows, _ = document_eval_rows(documents, tokenizer, model.config.sequence_len, config.eval_tokens)
        return bits_per_byte(model, rows, token_bytes, config.device_batch_size, runtime)

    def write(prompts: Sequence[str]) -> list[dict[str, Any]]:
        return write_samples(model, tokenizer, prompts, config.max_sample_tokens, config.temperature, config.seed)

    note = f"Checkpoint {tag} of step {meta['step']}, computing in {runtime.dtype_name}."
    return Subject("base_loss", "Base model", note, bits, write, f"{tag}:{meta['step']}")


def foreign_model(name: str, config: Config, runtime: Runtime) -> Subject:
    """A model of transformers."""
    model, tokenizer = hf_causal.load_hf_model(name, runtime)
    length = min(model.context_len, config.hf_context)

    def bits(documents: Documents) -> float:
        batch = config.device_batch_size
        return hf_bits_per_byte(model, tokenizer, documents, length, config.eval_tokens, batch, runtime)

    def write(prompts: Sequence[str]) -> list[dict[str, Any]]:
        most = config.max_sample_tokens
        return hf_causal.write_hf_samples(model, tokenizer, prompts, most, config.temperature, config.seed)

    kind = type(model.inner).__name__
    note = f"{name}, {kind} of transformers, computing in {runtime.dtype_name}, in rows of {length:,} tokens."
    return Subject("hf_loss", f"Base model {name}", note, bits, write)  # not among ours in the report


def sample_and_judge(subject: Subject, config: Config, source: str) -> tuple[list[Any], dict[str, Any]]:
    """Samples for the report, and the checker's count over all their sentences where it knows the world."""
    samples = subject.write(prompts_for(source, config.num_samples, config.seed))
    if source != "storyworld":
        return samples, {}
    sound = total = 0
    for sample in samples:
        given = len(
            storyworld.check_text(sample["prompt"], truncated=True)
        )  # whole sentences of the prompt are not the model's
        verdicts = storyworld.check_text(sample["prompt"] + sample["text"], truncated=not sample["whole"])[given:]
        sample["verdicts"] = [{"sentence": v.sentence, "sound": v.ok, "reason": v.reason} for v in verdicts]
        if verdicts:
            sample["share_sound"] = sum(v.ok for v in verdicts) / len(verdicts)
        sound, total = sound + sum(v.ok for v in verdicts), total + len(verdicts)
    return samples, {"sound sentences in samples": proportion(sound, total)}


def main(config: Config) -> dict[str, Any]:
    """Measure, write the report's section, and return its metrics."""
    start = time.monotonic()
    runtime = Runtime.start(config.seed, config.device)
    subject = our_model(config, runtime) if config.hf_path is None else foreign_model(config.hf_path, config, runtime)
    metrics: dict[str, Any] = {}
    for name, documents in (("training", open_split("train")), ("validation", open_split("val"))):
        metrics[f"{name} bits per byte"] = subject.bits(documents)
        print0(f"{name} bits per byte: {metrics[f'{name} bits per byte']:.4f}")
    samples, judged = sample_and_judge(subject, config, load_manifest().source) if runtime.is_main else ([], {})
    for sample in samples[:3]:
        print0(f"\n{sample['prompt']} |{sample['text']}")
    for name, found in judged.items():
        low, high = found["interval"]
        print0(f"\n{name}: {found['value']:.1%} of {found['n']} (95% interval {low:.1%} to {high:.1%})")
    log_section(
        subject.stage,
        {
            "title": subject.title,
            "checkpoint": subject.checkpoint,
            "settings": config,
            "metrics": {**metrics, **judged},
            "samples": samples,
            "notes": [subject.note],
            "seconds": time.monotonic() - start,
        },
    )
    runtime.finish()
    return {**metrics, **judged}


if __name__ == "__main__":
    cli(Config, main, __doc__)
