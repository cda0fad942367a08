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

from nanochat.checkpoint_manager import model_meta, run_dir
from nanochat.common import StoppedBySignal, UserError
from nanochat.configurator import cli, setting
from nanochat.data.shards import load_manifest, open_split
from nanochat.dataloader import document_batches
from nanochat.eval.samples import prompts_for
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime
from nanochat.tokenizer import get_tokenizer
from nanochat.train import Event, LoopState, train
from nanochat.training.batch_size import accumulation_steps, batch_size_of
from nanochat.training.log import TrainLog
from nanochat.training.settings import Training
from nanochat.training.setup import (
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

NUM_SAMPLES = 4


@dataclass(frozen=True)
class Config(Training):
    model_tag: str | None = setting(None, "name of the checkpoint folder; default d<depth>")
    seed: int = setting(42, "of the first weights and of the samples")
    depth: int = setting(20, "layers of the model; its width is 64 x depth, rounded up to whole heads", at_least=1)
    arch: str = setting("classic", "architecture of the model", choices=("classic",))
    head_dim: int = setting(128, "size of an attention head; must be even", at_least=2)
    n_kv_head: int = setting(
        -1, "key-value heads; must divide the query heads; -1 = as many as those", at_least=1, also=-1
    )
    max_seq_len: int = setting(2048, "tokens of context", at_least=1)
    num_iterations: int = setting(-1, "optimizer steps; -1 = as the next two settings say", at_least=1, also=-1)
    target_flops: float = setting(
        -1.0, "train until this many FLOPs are spent; -1 = as the next setting says", above=0, also=-1
    )
    target_param_data_ratio: float = setting(20.0, "train on this many tokens for each parameter")
    total_batch_size: int = setting(524288, "tokens of an optimizer step, over all processes", at_least=1)
    device_batch_size: int | str = setting(
        "auto", "rows of a micro-batch on one device; auto = the largest that fits", at_least=1, also="auto"
    )
    eval_every: int = setting(
        250, "steps between measurements of bits per byte; -1 = only at the end", at_least=1, also=-1
    )
    eval_tokens: int = setting(
        10485760, "validation tokens of a measurement; at most one pass over the validation shard", at_least=1
    )
    sample_every: int = setting(
        2000, "steps between samples of text; -1 = none, not even at the end", at_least=1, also=-1
    )
    core_metric_every: int = setting(
        2000, "steps between CORE evaluations; -1 = none, not even at the end", at_least=1, also=-1
    )
    core_metric_max_per_task: int = setting(500, "examples of each of CORE's tasks; -1 = all", at_least=1, also=-1)
    compile: str = setting("auto", "compile the model; auto = where it pays", choices=("auto", "on", "off"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if max(self.num_iterations, self.target_flops, self.target_param_data_ratio) <= 0:
            raise UserError("no horizon: set num_iterations, target_flops or target_param_data_ratio above 0")
        self.model_config(vocab_size=1)
        rows = 1 if self.device_batch_size == "auto" else int(self.device_batch_size)
        accumulation_steps(self.total_batch_size, rows, self.max_seq_len, int(os.environ.get("WORLD_SIZE", "1")))

    def model_config(self, vocab_size: int) -> GPTConfig:
        """The shape of the model."""
        sizes = {"head_dim": self.head_dim, "n_kv_head": self.n_kv_head}
        return GPTConfig.from_depth(self.depth, vocab_size=vocab_size, sequence_len=self.max_seq_len, **sizes)

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


def main(config: Config) -> LoopState:
    """Train, and return where the run ended. Raises `StoppedBySignal` if a signal has ended it early."""
    tokenizer, manifest, documents = get_tokenizer(), load_manifest(), open_split("train")
    folder = run_dir("base", config.model_tag or f"d{config.depth}")
    shape = config.model_config(tokenizer.get_vocab_size())
    checkpoint = checkpoint_to_resume(folder, tokenizer, manifest.hash(), shape, config)
    runtime = Runtime.start(config.seed, config.device)
    model, optimizer, state = begin(checkpoint, shape, config.optim_settings(), runtime)
    runtime = optimizer.runtime
    num_steps = config.num_steps(model)
    horizon = num_steps * config.total_batch_size  # in tokens
    log = TrainLog(runtime, state, num_steps, config.total_batch_size, model)
    log.start_wandb(config.run, config)
    batch_size = batch_size_of(config.device_batch_size, checkpoint, model, config.total_batch_size, runtime)
    facts = {"settings": asdict(config), "device_batch_size": batch_size, "data_hash": manifest.hash()}
    save = saver(folder, model, optimizer, model_meta(model, runtime, tokenizer) | facts, config.keep_last)
    show_samples = sampler(model, tokenizer, runtime, prompts_for(manifest.source, NUM_SAMPLES, config.seed))
    loader = document_batches(documents, tokenizer, runtime, batch_size, config.max_seq_len, horizon, state.cursor)
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
            num_micro_steps=accumulation_steps(
                config.total_batch_size, batch_size, config.max_seq_len, runtime.world_size
            ),
            log=log,
            state=state,
        )
    runtime.finish()
    if state.stopped:
        go_on = resume_command("scripts.base_train", config)
        raise StoppedBySignal(state.stopped, f"Stopped at step {state.step} of {num_steps}. To go on: {go_on}")
    report_training("base_train", "Pretraining", config, model, runtime, state, horizon)
    return state


if __name__ == "__main__":
    cli(Config, main, __doc__)
