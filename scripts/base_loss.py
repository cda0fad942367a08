"""Measure a base model: bits per byte of training and validation text, and samples of generated text.

    torchrun --standalone --nproc_per_node=8 -m scripts.base_loss         # eight GPUs
    python -m scripts.base_loss                                           # one GPU, or a laptop: the deepest model
    python -m scripts.base_loss --model_tag=d4 --step=400 --num_samples=5
    python -m scripts.base_loss --hf-path=openai-community/gpt2           # a model of transformers, or a folder

If the training text is the story world, each sentence of the samples is checked against that world, and the share of
sound sentences is reported.
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
from nanochat.eval.samples import generate_samples, sample_prompts
from nanochat.loss_eval import bits_per_byte
from nanochat.report import check_results_writable, log_section
from nanochat.reporting.schema import Metric, proportion
from nanochat.runtime import Runtime
from nanochat.training.batch_size import evaluation_rows

HF_ROWS = 16  # rows scored at a time by a model of transformers, whose memory is not computed


@dataclass(frozen=True)
class Config(Settings):
    model_tag: str | None = setting(
        None, "checkpoint folder to measure; default: that of the deepest model", short="g", names="name"
    )
    step: int = setting(-1, "checkpoint to measure; -1 = the last", short="s", at_least=0, or_value=-1)
    hf_path: str | None = setting(
        None, "measure a model of transformers instead: a folder, or a name on the hub", names="path"
    )
    hf_context: int = setting(
        2048,
        "maximum length of a row in tokens, for a model of transformers: its context may not fit into memory",
        at_least=1,
    )
    device: str = setting("auto", "device to run on", choices=("auto", "cpu", "cuda", "mps"))
    device_batch_size: int | str = setting(
        "auto", "rows scored at a time on one device; auto = as many as fit", at_least=1, or_value="auto"
    )
    eval_tokens: int = setting(10485760, "tokens of each split; at most one pass over it", at_least=1)
    num_samples: int = setting(20, "samples of text to write; 0 = none", at_least=0)
    max_sample_tokens: int = setting(256, "longest sample, in tokens", at_least=1)
    temperature: float = setting(0.7, "of the samples; 0 = always the most likely token", at_least=0)
    seed: int = setting(42, "for the samples")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hf_path is not None and (self.model_tag is not None or self.step != -1):
            raise UserError("choose either --model_tag and --step, or --hf_path")


@dataclass(frozen=True)
class MeasuredModel:
    """A model to measure: functions that score and generate with it, and its names and note in the report."""

    section: str  # name of the report's section
    title: str
    note: str
    measure_bpb: Callable[[Documents], float]  # documents -> bits per byte
    generate: Callable[[Sequence[str]], list[dict[str, Any]]]  # prompts -> samples
    checkpoint: str | None = None  # TAG:STEP; None for a model of transformers


def load_checkpoint(config: Config, runtime: Runtime) -> MeasuredModel:
    """Load a base checkpoint."""
    tag = config.model_tag or default_tag("base")
    model, tokenizer, meta = load_model("base", runtime, model_tag=tag, step=config.step)
    runtime = replace(runtime, compute_dtype=model.compute_dtype)
    token_bytes = torch.tensor(tokenizer.token_bytes())
    batch_size = config.device_batch_size
    batch_size = evaluation_rows(model, runtime) if batch_size == "auto" else int(batch_size)

    def measure_bpb(documents: Documents) -> float:
        rows, _ = document_eval_rows(documents, tokenizer, model.config.sequence_len, config.eval_tokens)
        return bits_per_byte(model, rows, token_bytes, batch_size, runtime)

    def generate(prompts: Sequence[str]) -> list[dict[str, Any]]:
        return generate_samples(model, tokenizer, prompts, config.max_sample_tokens, config.temperature, config.seed)

    return MeasuredModel(
        section="base_loss",
        title="Base model",
        note=f"Checkpoint {tag} of step {meta['step']}, computing in {runtime.dtype_name}.",
        measure_bpb=measure_bpb,
        generate=generate,
        checkpoint=f"{tag}:{meta['step']}",
    )


def load_from_hf(name: str, config: Config, runtime: Runtime) -> MeasuredModel:
    """Load a model of transformers. Its section is not in the report's tables by stage."""
    model, tokenizer = hf_causal.load_hf_model(name, runtime)
    row_len = min(model.context_len, config.hf_context)
    batch_size = HF_ROWS if config.device_batch_size == "auto" else int(config.device_batch_size)

    def measure_bpb(documents: Documents) -> float:
        return hf_bits_per_byte(model, tokenizer, documents, row_len, config.eval_tokens, batch_size, runtime)

    def generate(prompts: Sequence[str]) -> list[dict[str, Any]]:
        return hf_causal.generate_hf_samples(
            model, tokenizer, prompts, config.max_sample_tokens, config.temperature, config.seed
        )

    architecture = f"{type(model.inner).__name__} of transformers"
    return MeasuredModel(
        section="hf_loss",
        title=f"Base model {name}",
        note=f"{name}, {architecture}, computing in {runtime.dtype_name}, in rows of {row_len:,} tokens.",
        measure_bpb=measure_bpb,
        generate=generate,
    )


def generate_and_check_samples(
    model: MeasuredModel, config: Config, source: str
) -> tuple[list[dict[str, Any]], dict[str, Metric]]:
    """Return samples for the report, and the share of their sentences that are sound.

    `source`: the source of the training text. Only samples of the story world are checked.
    """
    samples = model.generate(sample_prompts(source, config.num_samples, config.seed))
    if source != "storyworld":
        return samples, {}
    num_sound = 0
    num_sentences = 0
    for sample in samples:
        # Whole sentences of the prompt were not generated, so they are not counted.
        num_given = len(storyworld.check_text(sample["prompt"], truncated=True))
        text = sample["prompt"] + sample["text"]
        verdicts = storyworld.check_text(text, truncated=not sample["whole"])[num_given:]
        sample["verdicts"] = [
            {"sentence": verdict.sentence, "sound": verdict.ok, "reason": verdict.reason} for verdict in verdicts
        ]
        num_ok = sum(verdict.ok for verdict in verdicts)
        if verdicts:
            sample["share_sound"] = num_ok / len(verdicts)
        num_sound += num_ok
        num_sentences += len(verdicts)
    return samples, {"sound sentences in samples": proportion(num_sound, num_sentences)}


def main(config: Config) -> dict[str, Any]:
    """Measure a model, write the report's section, and return its metrics."""
    start = time.monotonic()
    check_results_writable("base_loss" if config.hf_path is None else "hf_loss")
    runtime = Runtime.start(config.seed, config.device)
    model = (
        load_checkpoint(config, runtime) if config.hf_path is None else load_from_hf(config.hf_path, config, runtime)
    )
    metrics: dict[str, Any] = {}
    for split, documents in (("training", open_split("train")), ("validation", open_split("val"))):
        metrics[f"{split} bits per byte"] = model.measure_bpb(documents)
        print0(f"{split} bits per byte: {metrics[f'{split} bits per byte']:.4f}")
    samples: list[dict[str, Any]] = []
    shares: dict[str, Metric] = {}
    if runtime.is_main:
        samples, shares = generate_and_check_samples(model, config, load_manifest().source)
    for sample in samples[:3]:
        print0(f"\n{sample['prompt']} |{sample['text']}")
    for name, share in shares.items():
        low, high = share["interval"]
        print0(f"\n{name}: {share['value']:.1%} of {share['n']} (95% interval {low:.1%} to {high:.1%})")
    log_section(
        model.section,
        {
            "title": model.title,
            "checkpoint": model.checkpoint,
            "settings": config,
            "metrics": {**metrics, **shares},
            "samples": samples,
            "notes": [model.note],
            "seconds": time.monotonic() - start,
        },
    )
    runtime.finish()
    return {**metrics, **shares}


if __name__ == "__main__":
    cli(Config, main, __doc__)
