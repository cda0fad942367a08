"""Reinforcement learning: sample several completions of each prompt and make those with higher rewards more likely.

    torchrun --standalone --nproc_per_node=8 -m scripts.chat_rl -- --source=sft           # eight GPUs
    python -m scripts.chat_rl                                                             # one GPU
    python -m scripts.chat_rl --tasks="HardProblems:3|SpellingBee" --num_iterations=100   # a laptop
    python -m scripts.chat_rl --resume                                                    # resume a stopped run

It starts from the last checkpoint of the deepest SFT model, or of `--model_tag`. The prompts come from the tasks of
`DEFAULT_TASKS` in nanochat/rl/prompts.py, chosen by the kind of base data, or from `--tasks`. Ctrl-C and other signals
save a checkpoint before the run ends and print the command that resumes it.
"""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import partial

from nanochat.checkpoint_manager import Checkpoint, RunMeta, model_meta, run_dir
from nanochat.checkpoints.run_lock import lock_run, run_locks
from nanochat.common import UserError, run_without_output
from nanochat.configurator import cli, setting, with_current_names
from nanochat.engine import Engine
from nanochat.eval.pass_at_k import evaluate_pass_at_k
from nanochat.layers.sampling_params import SamplingParams
from nanochat.report import check_results_writable
from nanochat.rl.log import RLLog
from nanochat.rl.loop import reinforce
from nanochat.rl.prompts import PromptSampler, load_prompts, parse_task_weights
from nanochat.rl.report import report_rl
from nanochat.rl.rollouts import RolloutGroup, resolve_rollout_dtype, rollout
from nanochat.rl.sft_mix import SFTRows, load_sft_mix
from nanochat.runtime import Runtime
from nanochat.tokenizer import get_tokenizer
from nanochat.train import Event, LoopState, Metrics
from nanochat.training.checkpoint_saver import CheckpointSaver
from nanochat.training.profile import StepProfiler
from nanochat.training.resume import (
    checkpoint_to_resume,
    first_serial,
    raise_if_stopped,
    resume_stage_after_restart,
    run_id,
    run_length,
    starting_checkpoint,
)
from nanochat.training.settings import TrainingSettings, optim_settings, scheduled_rates
from nanochat.training.setup import build_or_restore


@dataclass(frozen=True)
class Config(TrainingSettings):
    source: str = setting("sft", "stage whose model is trained", choices=("sft", "mid", "rl"))
    source_step: int = setting(-1, "step of the checkpoint to start from; -1 = the last", at_least=0, or_value=-1)
    seed: int = setting(42, "seed of the order of the prompts and of the completions")
    tasks: str | None = setting(
        None, "NAME:WEIGHT|NAME(OPTION=VALUE):WEIGHT ...; default: chosen by the kind of base data"
    )
    examples_per_step: int = setting(
        16, "prompts of a step, over all processes", at_least=1, renamed_from="num_problems"
    )
    num_samples: int = setting(16, "completions of each prompt, whose rewards are compared", at_least=2)
    temperature: float = setting(1.0, "sampling temperature; the gradient is exact at 1", above=0)
    top_k: int = setting(
        -1, "sample from the k most likely tokens; -1 = from all, where the gradient is exact", at_least=1, or_value=-1
    )
    max_new_tokens: int = setting(256, "maximum number of tokens of a completion", at_least=1)
    num_iterations: int = setting(-1, "optimizer steps; -1 = determined by num_epochs", at_least=1, or_value=-1)
    num_epochs: float = setting(1.0, "times that each prompt is used, on average over the tasks", above=0)
    device_batch_size: int = setting(
        16, "rows of a micro-batch on one device; changes speed and memory only", at_least=1
    )
    rollout_batch_size: int = setting(
        256, "completions sampled at once on one device; changes speed and memory only", at_least=1
    )
    sft_examples_per_step: int = setting(
        0,
        "conversations of the SFT mixture mixed into each step against forgetting; 0 = none",
        at_least=0,
        renamed_from="replay",
    )
    mixture: str | None = setting(
        None, "TOML file with the mixture for sft_examples_per_step; default: that of chat_sft", names="path"
    )
    init_lr_frac: float = setting(
        0.1,
        "factor on embedding_lr, unembedding_lr and matrix_lr; the schedule starts there",
        above=0,
        renamed_from="lr_scale",
    )
    warmdown_ratio: float = setting(
        1.0, "share of the run over which the learning rates fall", at_least=0, at_most=1, renamed_from="warmdown"
    )
    eval_every: int = setting(
        60,
        "steps between evaluations of pass@k, the first before training; -1 = only at the end",
        at_least=1,
        or_value=-1,
    )
    eval_examples: int = setting(
        400, "held-out examples of each task in an evaluation", at_least=1, renamed_from="eval_problems"
    )
    eval_samples: int = setting(8, "completions of each held-out example: the largest k of pass@k", at_least=1)
    profile: int = setting(
        0, "steps to trace after a few to warm up, for a table of where the time goes; 0 = none", at_least=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tasks:
            parse_task_weights(self.tasks)

    def sampling_params(self, num_samples: int) -> SamplingParams:
        """Return the sampling parameters for `num_samples` completions of each prompt."""
        top_k = None if self.top_k == -1 else self.top_k
        return SamplingParams(self.temperature, top_k, self.max_new_tokens, num_samples, self.seed)

    def num_steps(self, prompts: PromptSampler) -> int:
        """Return the number of optimizer steps."""
        if self.num_iterations > 0:
            return self.num_iterations
        num_examples = sum(map(len, prompts.tasks.values()))
        return math.ceil(self.num_epochs * num_examples / self.examples_per_step)


def prompts_drawn(checkpoint: Checkpoint | None) -> int:
    """Return the number of prompts that a run has used up to its checkpoint."""
    if checkpoint is None:
        return 0
    loop = checkpoint.meta["loop"]
    if loop["cursor"]:
        return int(loop["cursor"]["prompts"])
    settings = with_current_names(Config, checkpoint.meta["settings"])  # of a version that kept no cursor
    if type(settings.get("examples_per_step")) is not int:
        raise UserError(f"{checkpoint.path} does not record its examples_per_step: resume from another one")
    return int(loop["step"] * settings["examples_per_step"])


@run_locks()
def main(config: Config) -> LoopState:
    """Train and return the final loop state. Raises `StoppedBySignal` if a signal ended the run early."""
    run_without_output()
    tokenizer = get_tokenizer()
    config = resume_stage_after_restart("rl", config)
    origin = starting_checkpoint("rl", config, tokenizer)
    check_results_writable("chat_rl")
    folder = run_dir("rl", origin.path.parent.name)
    lock_run(folder)
    prompts, held_out = load_prompts(config.tasks, tokenizer, config.seed, config.eval_examples)
    sequence_len = origin.meta["model_config"]["sequence_len"]
    sft_mix = load_sft_mix(config.sft_examples_per_step, config.mixture, config.seed, tokenizer, sequence_len)
    data_hash = prompts.hash() + sft_mix.hash()
    checkpoint = checkpoint_to_resume(origin.path.parent, tokenizer, data_hash, None, config)

    runtime = Runtime.start(config.seed, config.device)
    model, optimizer, state = build_or_restore(checkpoint, origin, optim_settings(config), runtime)
    runtime = optimizer.runtime
    rollout_dtype = resolve_rollout_dtype(checkpoint, runtime)
    num_drawn = prompts_drawn(checkpoint)
    num_steps, _ = run_length(
        state, config.num_steps(prompts), config.num_iterations > 0, config.examples_per_step, num_drawn
    )
    first_prompt = num_drawn - state.step * config.examples_per_step  # of step 0, had all steps been of this size
    log = RLLog(runtime, state, num_steps, config.examples_per_step * config.num_samples, model)
    log.output.start_wandb(config.run, config)
    meta: RunMeta = {
        **model_meta(model, runtime, tokenizer),
        "settings": asdict(config),
        "data_hash": data_hash,
        "run_id": run_id(),
        "first_serial": first_serial(folder, checkpoint),
        "rollout_dtype": replace(runtime, compute_dtype=rollout_dtype).dtype_name,
    }
    if origin.meta.get("grounded"):  # chat about the documents stays as it was
        meta["grounded"] = True

    def collect(step: int) -> tuple[list[RolloutGroup], SFTRows]:
        step_prompts = prompts.prompts_of_step(step, config.examples_per_step, runtime, first_prompt)
        state.cursor = {"prompts": first_prompt + (step + 1) * config.examples_per_step}
        params = config.sampling_params(config.num_samples)
        engine = Engine(model, tokenizer, rollout_dtype)
        groups = rollout(engine, step_prompts, params, prompts.reward, config.rollout_batch_size)
        return groups, sft_mix.rows_of_step(step, runtime)

    def evaluate(_: LoopState) -> Metrics:
        params = config.sampling_params(config.eval_samples)
        engine = Engine(model, tokenizer, rollout_dtype)
        return evaluate_pass_at_k(engine, held_out, params, runtime, config.rollout_batch_size)

    saver = CheckpointSaver(folder, model, optimizer, meta, config.keep_last)
    profiler = StepProfiler(config.profile, model, optimizer, tokens=None)
    with closing(log), saver, profiler:
        reinforce(
            model,
            profiler.optimizer(optimizer),
            profiler.rollouts(collect),
            schedule=partial(scheduled_rates, config, num_steps=num_steps),
            events=[  # the checkpoint first: an evaluation that fails must not cost the run
                Event(config.save_every, saver, saves=True),
                *profiler.events(),
                Event(config.eval_every, evaluate),
            ],
            num_steps=num_steps,
            task_labels=list(held_out),
            batch_size=config.device_batch_size,
            log=log,
            state=state,
        )
    runtime.finish()
    raise_if_stopped(state, num_steps, "scripts.chat_rl", config)
    report_rl(config, runtime, state, {label: len(task) for label, task in held_out.items()})
    return state


if __name__ == "__main__":
    cli(Config, main, __doc__)
