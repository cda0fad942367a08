"""Pretrain a base model on the data in the base folder.

    torchrun --standalone --nproc_per_node=8 -m scripts.base_train -- --depth=20          # eight GPUs
    python -m scripts.base_train --depth=12                                               # one GPU
    python -m scripts.base_train --depth=4 --head_dim=64 --max_seq_len=512 --total_batch_size=8192 --num_iterations=400
    python -m scripts.base_train my.toml --depth=32                                       # a settings file, then flags
    python -m scripts.base_train --depth=12 --resume                                      # resume a stopped run

The third line suits a laptop. Ctrl-C and other signals save a checkpoint before the run ends and print the command that
resumes it.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from itertools import takewhile

from nanochat.checkpoint_manager import RunMeta, model_meta, run_dir
from nanochat.checkpoints.run_lock import lock_run, run_locks
from nanochat.common import UserError, run_without_output
from nanochat.configurator import cli, setting
from nanochat.data.shards import load_manifest, open_split
from nanochat.dataloader import document_batches
from nanochat.eval.samples import sample_prompts
from nanochat.gpt import GPT, SOFTCAPS, GPTConfig
from nanochat.layers.fp8 import check_fp8_sizes
from nanochat.report import check_results_writable
from nanochat.runtime import Runtime
from nanochat.system.environment import process_numbers
from nanochat.tokenizer import get_tokenizer
from nanochat.train import Event, LoopState, train
from nanochat.training.batch_size import BatchFitter, accumulation_steps
from nanochat.training.checkpoint_saver import CheckpointSaver
from nanochat.training.early_stopping import check_patience, is_exhausted, return_to_best
from nanochat.training.events import bpb_evaluator, core_events, sample_printer
from nanochat.training.log import TrainLog
from nanochat.training.profile import StepProfiler
from nanochat.training.report import report_pretraining
from nanochat.training.resume import (
    checkpoint_to_resume,
    first_serial,
    raise_if_stopped,
    resume_after_restart,
    run_id,
    run_length,
)
from nanochat.training.settings import TrainingSettings, optim_settings, scheduled_rates
from nanochat.training.setup import build_or_restore, compile_model, should_compile, use_fp8

NUM_SAMPLES = 4


@dataclass(frozen=True)
class Config(TrainingSettings):
    model_tag: str | None = setting(None, "name of the checkpoint folder; default: d<depth>", names="name")
    seed: int = setting(42, "seed of the initial weights and of the samples")
    depth: int = setting(20, "layers of the model; its width is 64 x depth, rounded up to whole heads", at_least=1)
    arch: str = setting("classic", "architecture of the model", choices=("classic",))
    head_dim: int = setting(128, "size of an attention head; must be even", at_least=2)
    n_kv_head: int = setting(
        -1, "key-value heads; must divide the query heads; -1 = as many as query heads", at_least=1, or_value=-1
    )
    max_seq_len: int = setting(2048, "tokens of context", at_least=1)
    softcap: float = setting(
        15.0,
        "soft cap of the logits; 0 = none, for engines that cannot cap them",
        at_least=SOFTCAPS[0],
        at_most=SOFTCAPS[1],
        or_value=0,
    )
    num_iterations: int = setting(-1, "optimizer steps; -1 = determined by target_flops", at_least=1, or_value=-1)
    target_flops: float = setting(
        -1.0, "FLOPs of the whole training; -1 = determined by target_param_data_ratio", above=0, or_value=-1
    )
    target_param_data_ratio: float = setting(20.0, "training tokens for each parameter of the model")
    total_batch_size: int = setting(524288, "tokens of an optimizer step, over all processes", at_least=1)
    device_batch_size: int | str = setting(
        "auto", "rows of a micro-batch on one device; auto = as many as fit", at_least=1, or_value="auto"
    )
    eval_every: int = setting(
        250, "steps between evaluations of bits per byte; -1 = only at the end", at_least=1, or_value=-1
    )
    eval_tokens: int = setting(
        10485760, "validation tokens of an evaluation; at most one pass over the validation shard", at_least=1
    )
    patience: int = setting(
        -1,
        "evaluations without fewer bits per byte after which the run ends and goes back to its best checkpoint; "
        "-1 = train all steps, and keep the last",
        at_least=1,
        or_value=-1,
    )
    sample_every: int = setting(
        2000, "steps between samples of text; -1 = none, not even at the end", at_least=1, or_value=-1
    )
    core_metric_every: int = setting(
        2000, "steps between evaluations of CORE; -1 = none, not even at the end", at_least=1, or_value=-1
    )
    core_metric_max_per_task: int = setting(500, "examples of each CORE task; -1 = all", at_least=1, or_value=-1)
    compile: str = setting("auto", "compile the model; auto = where it saves time", choices=("auto", "on", "off"))
    fp8: bool = setting(False, "train the linear layers of the blocks in fp8, on an NVIDIA GPU that has it")
    checkpoint_activations: bool = setting(
        False, "compute activations again in the backward pass instead of keeping them: less memory, a third more work"
    )
    profile: int = setting(
        0, "steps to trace after a few to warm up, for a table of where the time goes; 0 = none", at_least=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if max(self.num_iterations, self.target_flops, self.target_param_data_ratio) <= 0:
            raise UserError(
                "no length of training: set num_iterations, target_flops or target_param_data_ratio above 0"
            )
        self.model_config(vocab_size=1)
        check_patience(self.patience, self.eval_every, self.save_every)
        if self.fp8:
            check_fp8_sizes({"max_seq_len": self.max_seq_len, "head_dim": self.head_dim})
        rows = 1 if self.device_batch_size == "auto" else int(self.device_batch_size)
        accumulation_steps(self.total_batch_size, rows, self.max_seq_len, process_numbers()[2])

    def model_config(self, vocab_size: int) -> GPTConfig:
        """Return the configuration of the model."""
        return GPTConfig.from_depth(
            self.depth,
            vocab_size=vocab_size,
            sequence_len=self.max_seq_len,
            head_dim=self.head_dim,
            n_kv_head=self.n_kv_head,
            softcap=self.softcap,
        )

    def num_steps(self, model: GPT) -> int:
        """Return the number of steps, from the first of the three settings that is above 0."""
        if self.num_iterations > 0:
            return self.num_iterations
        if self.target_flops > 0:
            num_tokens = self.target_flops / model.estimate_flops()
        else:
            num_tokens = self.target_param_data_ratio * model.num_params()
        return max(1, round(num_tokens / self.total_batch_size))


@run_locks()
def main(config: Config) -> LoopState:
    """Train and return the final loop state. Raises `StoppedBySignal` if a signal ended the run early."""
    run_without_output()
    folder = run_dir("base", config.model_tag or f"d{config.depth}")
    lock_run(folder)
    tokenizer = get_tokenizer()
    manifest = load_manifest()
    documents = open_split("train")
    shape = config.model_config(tokenizer.get_vocab_size())
    check_results_writable("base_train")
    config = resume_after_restart(config, folder)
    checkpoint = checkpoint_to_resume(folder, tokenizer, manifest.hash(), shape, config)

    runtime = Runtime.start(config.seed, config.device)
    model, optimizer, state = build_or_restore(checkpoint, shape, optim_settings(config), runtime)
    runtime = optimizer.runtime
    if config.fp8:
        use_fp8(model, runtime, config.max_seq_len)
    model.checkpoint_activations = config.checkpoint_activations
    num_steps, num_tokens = run_length(
        state,
        config.num_steps(model),
        config.num_iterations > 0,
        per_step=config.total_batch_size,
        num_done=state.cursor["tokens"] if state.cursor else 0,
    )
    log = TrainLog(runtime, state, num_steps, config.total_batch_size, model)
    log.output.start_wandb(config.run, config)
    profiler = StepProfiler(config.profile, model, optimizer, config.total_batch_size)
    fitter = BatchFitter(
        model,
        runtime,
        config.total_batch_size,
        config.max_seq_len,
        is_compiled=should_compile(config.compile, num_steps, runtime),
        compile_for=lambda rows: compile_model(model, config.compile, num_steps, rows, runtime),
    )
    batch_size, forward = fitter.resolve(config.device_batch_size, checkpoint)
    meta: RunMeta = {
        **model_meta(model, runtime, tokenizer),
        "settings": asdict(config),
        "device_batch_size": batch_size,
        "data_hash": manifest.hash(),
        "run_id": run_id(),
        "first_serial": first_serial(folder, checkpoint, "--model_tag=NAME keeps it apart"),
    }
    prompts = sample_prompts(manifest.source, NUM_SAMPLES, config.seed)
    print_samples = sample_printer(model, tokenizer, runtime, prompts)
    measure_bpb = bpb_evaluator(forward, tokenizer, runtime, config.eval_tokens, batch_size, config.max_seq_len)
    loader = document_batches(documents, tokenizer, runtime, batch_size, config.max_seq_len, num_tokens, state.cursor)
    saver = CheckpointSaver(folder, model, optimizer, meta, config.keep_last, keep_best=config.patience != -1)
    with closing(loader), closing(log), saver, profiler, fitter.explained_out_of_memory(batch_size):
        train(
            profiler.forward(forward),
            profiler.optimizer(optimizer),
            profiler.batches(takewhile(lambda batch: batch.progress < 1, loader)),
            schedule=partial(scheduled_rates, config, num_steps=num_steps),
            events=[  # the checkpoint first: an evaluation that fails must not cost the run
                Event(config.save_every, saver, saves=True),
                Event(config.eval_every, measure_bpb),
                Event(config.sample_every, print_samples, at_end=config.sample_every != -1),
                *profiler.events(),
                *core_events(config.core_metric_every, config.core_metric_max_per_task, model, tokenizer, runtime),
            ],
            num_micro_steps=accumulation_steps(
                config.total_batch_size, batch_size, config.max_seq_len, runtime.world_size
            ),
            log=log,
            state=state,
            should_end=lambda state: is_exhausted(state.history, config.patience),
        )
    runtime.finish()
    raise_if_stopped(state, num_steps, "scripts.base_train", config)
    kept_step = None
    if config.patience != -1 and runtime.is_main:
        kept_step = return_to_best(folder, state.history, meta["first_serial"], config.keep_last)
    report_pretraining(config, model, runtime, state, kept_step)
    return state


if __name__ == "__main__":
    cli(Config, main, __doc__)
