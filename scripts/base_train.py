"""Pretrain a base model on the data in the base folder.

    torchrun --standalone --nproc_per_node=8 -m scripts.base_train -- --depth=20          # eight GPUs
    python -m scripts.base_train --depth=12                                               # one GPU
    python -m scripts.base_train --depth=4 --head_dim=64 --max_seq_len=512 --total_batch_size=8192 --num_iterations=400
    python -m scripts.base_train my.toml --depth=32                                       # a settings file, then flags
    python -m scripts.base_train --depth=12 --resume                                      # go on after a stop

The third line is a laptop's. Ctrl-C and SIGTERM save a checkpoint before they end the run, and the message tells how
to go on.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import takewhile

from nanochat import schedule
from nanochat.batch_size import batch_size_of, check_batch
from nanochat.checkpoint_manager import describe_model, run_dir
from nanochat.common import Stopped, UserError
from nanochat.configurator import cli, setting
from nanochat.dataloader import train_batches
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import OptimSettings
from nanochat.runtime import Runtime
from nanochat.samples import prompts_for
from nanochat.shards import load_manifest, open_split
from nanochat.stage import (
    begin,
    bpb_evaluator,
    checkpoint_to_resume,
    compile_model,
    core_events,
    report_training,
    resume_command,
    sampler,
    saver,
)
from nanochat.tokenizer import get_tokenizer
from nanochat.train import Event, LoopState, Rates, train
from nanochat.train_log import NO_RUN, TrainLog

NUM_SAMPLES = 4


@dataclass(frozen=True)
class Config:
    run: str = setting(NO_RUN, "name of the run in Weights & Biases; 'dummy' sends nothing")
    model_tag: str | None = setting(None, "name of the checkpoint folder; default d<depth>")
    device: str = setting("auto", "where to train", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = setting(42, "of the first weights and of the samples")
    depth: int = setting(20, "layers of the model; its width is 64 x depth, rounded up to whole heads")
    arch: str = setting("classic", "architecture of the model", choices=("classic",))
    head_dim: int = setting(128, "size of an attention head; must be even")
    n_kv_head: int = setting(-1, "key-value heads; must divide the query heads; -1 = as many as those")
    max_seq_len: int = setting(2048, "tokens of context")
    num_iterations: int = setting(-1, "optimizer steps; -1 = as the next two settings say")
    target_flops: float = setting(-1.0, "train until this many FLOPs are spent; -1 = as the next setting says")
    target_param_data_ratio: float = setting(20.0, "train on this many tokens for each parameter")
    total_batch_size: int = setting(524288, "tokens of an optimizer step, over all processes")
    device_batch_size: str = setting("auto", "rows of a micro-batch on one device; auto = the largest that fits")
    embedding_lr: float = setting(0.2, "AdamW's learning rate for the embedding, at width 768")
    head_lr: float = setting(0.004, "AdamW's learning rate for the head, at width 768")
    matrix_lr: float = setting(0.02, "Muon's learning rate for the matrices")
    weight_decay: float = setting(0.0, "AdamW's weight decay")
    grad_clip: float = setting(1.0, "largest norm of the gradient; 0 = not clipped")
    warmup: float = setting(0.0, "share of the run in which the learning rate rises")
    warmdown: float = setting(0.2, "share of the run in which the learning rate falls")
    final_lr: float = setting(0.0, "share of the learning rate that is left at the end")
    eval_every: int = setting(250, "steps between measurements of bits per byte; -1 = only at the end")
    eval_tokens: int = setting(
        10485760, "validation tokens of a measurement; at most one pass over the validation shard"
    )
    sample_every: int = setting(2000, "steps between samples of text; -1 = none, not even at the end")
    core_metric_every: int = setting(2000, "steps between CORE evaluations; -1 = none, not even at the end")
    core_metric_max_per_task: int = setting(500, "examples of each of CORE's tasks; -1 = all")
    save_every: int = setting(-1, "steps between checkpoints; -1 = only at the end, or when the run is stopped")
    keep_last: int = setting(-1, "checkpoints to keep; -1 = all")
    resume: bool = setting(False, "go on from the last checkpoint of this model tag")
    resume_from_step: int = setting(-1, "go on from the checkpoint of this step; -1 = do not")
    compile: str = setting("auto", "compile the model; auto = where it pays", choices=("auto", "on", "off"))

    def __post_init__(self) -> None:
        for name in ("depth", "max_seq_len", "total_batch_size", "eval_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        every = ("eval_every", "sample_every", "core_metric_every", "core_metric_max_per_task", "save_every")
        for name in (*every, "num_iterations", "keep_last", "n_kv_head"):
            if getattr(self, name) < 1 and getattr(self, name) != -1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1, or -1 (see --help)")
        for name in ("warmup", "warmdown", "final_lr"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}: it is a share, from 0 to 1")
        if self.device_batch_size != "auto" and not (
            self.device_batch_size.isdecimal() and int(self.device_batch_size)
        ):
            raise UserError(f"device_batch_size is {self.device_batch_size!r}: it must be auto or a number, at least 1")
        if max(self.num_iterations, self.target_flops, self.target_param_data_ratio) <= 0:
            raise UserError("no horizon: set num_iterations, target_flops or target_param_data_ratio above 0")
        if self.resume_from_step < -1:
            raise UserError(f"resume_from_step is {self.resume_from_step}: it must be a step, or -1")
        self.model_config(vocab_size=1)
        self.optim_settings()
        rows = 1 if self.device_batch_size == "auto" else int(self.device_batch_size)
        check_batch(self.total_batch_size, rows, self.max_seq_len, int(os.environ.get("WORLD_SIZE", "1")))

    def model_config(self, vocab_size: int) -> GPTConfig:
        """The shape of the model."""
        sizes = {"head_dim": self.head_dim, "n_kv_head": self.n_kv_head}
        return GPTConfig.from_depth(self.depth, vocab_size=vocab_size, sequence_len=self.max_seq_len, **sizes)

    def optim_settings(self) -> OptimSettings:
        """The optimizer's share of the settings."""
        names = ("matrix_lr", "embedding_lr", "head_lr", "weight_decay", "grad_clip")
        return OptimSettings(**{name: getattr(self, name) for name in names})

    def num_steps(self, model: GPT) -> int:
        """The horizon in steps: the first of the three settings that is above 0 decides."""
        if self.num_iterations > 0:
            return self.num_iterations
        tokens = (
            self.target_flops / model.estimate_flops()
            if self.target_flops > 0
            else self.target_param_data_ratio * model.num_params()
        )
        return max(1, round(tokens / self.total_batch_size))

    def rates(self, progress: float, num_steps: int) -> Rates:
        """What the schedule sets at this progress."""
        return Rates(
            lr_scale=schedule.lr_scale(progress, self.warmup, self.warmdown, self.final_lr),
            momentum=schedule.muon_momentum(progress, num_steps),
        )


def main(config: Config) -> LoopState:
    """Train, and return where the run ended. Raises `Stopped` if a signal has ended it early."""
    tokenizer, manifest, documents = get_tokenizer(), load_manifest(), open_split("train")
    folder = run_dir("base", config.model_tag or f"d{config.depth}")
    shape = config.model_config(tokenizer.get_vocab_size())
    resuming = config.resume or config.resume_from_step != -1
    checkpoint = checkpoint_to_resume(folder, tokenizer, manifest.hash(), shape, config) if resuming else None
    runtime = Runtime.start(config.seed, config.device)
    model, optimizer, state = begin(checkpoint, shape, config.optim_settings(), runtime)
    runtime = optimizer.runtime
    num_steps = config.num_steps(model)
    horizon = num_steps * config.total_batch_size  # in tokens
    log = TrainLog(runtime, state, num_steps, config.total_batch_size, model)
    log.start_wandb(config.run, config)
    batch_size = batch_size_of(config.device_batch_size, checkpoint, model, config.total_batch_size, runtime)
    facts = {"settings": asdict(config), "device_batch_size": batch_size, "data_hash": manifest.hash()}
    save = saver(folder, model, optimizer, describe_model(model, runtime, tokenizer) | facts, config.keep_last)
    show_samples = sampler(model, tokenizer, runtime, prompts_for(manifest.source, NUM_SAMPLES, config.seed))
    loader = train_batches(documents, tokenizer, runtime, batch_size, config.max_seq_len, horizon, state.cursor)
    with closing(loader), closing(log):
        train(
            compile_model(model, config.compile, num_steps, batch_size, runtime),
            optimizer,
            takewhile(lambda batch: batch.progress < 1, loader),
            schedule=partial(config.rates, num_steps=num_steps),
            events=[  # the checkpoint first: an evaluation that fails must not cost the run
                Event(config.save_every, save, saves=True),
                Event(config.eval_every, bpb_evaluator(model, tokenizer, runtime, config.eval_tokens, batch_size)),
                Event(config.sample_every, show_samples, at_end=config.sample_every != -1),
                *core_events(config.core_metric_every, config.core_metric_max_per_task, model, tokenizer, runtime),
            ],
            num_micro_steps=check_batch(config.total_batch_size, batch_size, config.max_seq_len, runtime.world_size),
            log=log,
            state=state,
        )
    runtime.finish()
    if state.stopped:
        go_on = resume_command("scripts.base_train", config)
        raise Stopped(state.stopped, f"Stopped at step {state.step} of {num_steps}. To go on: {go_on}")
    report_training("base_train", "Pretraining", config, model, runtime, state, horizon)
    return state


if __name__ == "__main__":
    cli(Config, main, __doc__)
