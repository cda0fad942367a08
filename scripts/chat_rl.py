"""Reinforce a fine-tuned model: problems are answered many times each, and right answers are made likelier.

    torchrun --standalone --nproc_per_node=8 -m scripts.chat_rl -- --source=sft           # eight GPUs
    python -m scripts.chat_rl                                                             # one GPU
    python -m scripts.chat_rl --tasks="HardProblems:3|SpellingBee" --num_iterations=100   # a laptop
    python -m scripts.chat_rl --resume                                                    # go on after a stop

Ctrl-C and SIGTERM save a checkpoint before they end the run, and the message tells how to go on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial

import torch

from nanochat.checkpoint_manager import model_meta, run_dir
from nanochat.common import StoppedBySignal
from nanochat.configurator import cli, setting
from nanochat.engine import Engine
from nanochat.eval.pass_at_k import evaluate_pass_at_k
from nanochat.gpt import GPT
from nanochat.layers.sampling_params import SamplingParams
from nanochat.optim import Optimizer
from nanochat.rl.loop import WEB_TASKS, RLLog, find_problems, find_replay, reinforce, report_rl
from nanochat.rl.rollouts import PromptSampler, RolloutGroup, ask, figures, micro_batches, parse_weights, tally
from nanochat.rl.sft_mix import SFTRows
from nanochat.runtime import Runtime
from nanochat.tokenizer import get_tokenizer
from nanochat.train import Event, LoopState, Metrics, Rates, agreed_stop
from nanochat.training.settings import Training
from nanochat.training.setup import begin, checkpoint_to_resume, first_checkpoint, resume_command, saver


@dataclass(frozen=True)
class Config(Training):
    source: str = setting("sft", "stage whose model is trained on", choices=("sft", "mid", "rl"))
    source_step: int = setting(
        -1, "step of the model that is trained on; -1 = its last checkpoint", at_least=0, also=-1
    )
    seed: int = setting(42, "of the problems' order and of the answers")
    tasks: str | None = setting(None, "NAME:WEIGHT|NAME(OPTION=VALUE):WEIGHT ...; default: as suits the base data")
    num_problems: int = setting(16, "problems of a step, over all processes", at_least=1)
    num_samples: int = setting(16, "answers to each problem, which are compared", at_least=2)
    temperature: float = setting(1.0, "of the answers; the gradient is that of 1", above=0)
    top_k: int = setting(
        -1, "answer with the k likeliest tokens only; -1 = with all, as the gradient supposes", at_least=1, also=-1
    )
    max_new_tokens: int = setting(256, "tokens of an answer at most", at_least=1)
    num_iterations: int = setting(-1, "optimizer steps; -1 = as the next setting says", at_least=1, also=-1)
    num_epochs: float = setting(1.0, "how many times each problem is asked, on average over the tasks", above=0)
    device_batch_size: int = setting(
        16, "rows of a micro-batch on one device; changes speed and memory only", at_least=1
    )
    rollout_batch_size: int = setting(
        256, "answers that one device writes at once; changes speed and memory only", at_least=1
    )
    replay: int = setting(
        0, "conversations of the SFT mixture in each step, so that they are not unlearnt; 0 = none", at_least=0
    )
    mixture: str | None = setting(None, "a TOML file that they come from instead, as in chat_sft")
    lr_scale: float = setting(0.1, "factor on the three learning rates that follow", above=0)
    warmdown: float = setting(1.0, "share of the run in which the learning rate falls", at_least=0, at_most=1)
    eval_every: int = setting(
        60, "steps between measurements of pass@k, with one at the start; -1 = only at the end", at_least=1, also=-1
    )
    eval_problems: int = setting(400, "held-out problems of each task in a measurement", at_least=1)
    eval_samples: int = setting(8, "answers to each of them: pass@k is told for k up to this", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_weights(self.tasks or WEB_TASKS)

    def sampling_params(self, num_samples: int) -> SamplingParams:
        """Return the settings of generation, for `num_samples` completions of each prompt."""
        top_k = None if self.top_k == -1 else self.top_k
        return SamplingParams(self.temperature, top_k, self.max_new_tokens, num_samples, self.seed)

    def num_steps(self, problems: PromptSampler) -> int:
        """The horizon in steps."""
        if self.num_iterations > 0:
            return self.num_iterations
        return math.ceil(self.num_epochs * sum(map(len, problems.tasks.values())) / self.num_problems)


def step(
    model: GPT,
    optimizer: Optimizer,
    played: tuple[Sequence[RolloutGroup], SFTRows],
    rates: Rates,
    stop: Callable[[], int],
    names: Sequence[str],
    batch_size: int,
) -> tuple[Metrics, int]:
    """One optimizer step on this process's groups. Returns its metrics, and the signal that asked for a stop, or 0.

    `names`: of all tasks. Where no group of any process has a signal, and none has a worked conversation, there is
    nothing to learn: the weights stay, and the momentum waits.
    """
    groups, worked = played
    runtime = optimizer.runtime
    counts = tally(groups, names, runtime)
    scale = runtime.world_size / max(1.0, counts["sampled"])  # the optimizer takes the mean over the processes
    surprise = torch.zeros(2, device=runtime.device)  # at the answers that are trained on, and their sampled tokens
    weight = counts["sampled"] / max(1, worked.num_tokens)  # their mean, whatever the answers' number
    for batch in micro_batches(groups, worked.rows, weight, batch_size, runtime.device):
        losses = model(batch.inputs, batch.targets, loss_reduction="none")  # -log p: (B, T), 0 where not trained on
        ((batch.advantages[:, None] * losses).sum() * scale).backward()
        surprise[0] += (batch.copies[:, None] * losses.detach()).sum()
        surprise[1] += (batch.copies[:, None] * (batch.targets != -1)).sum()
    asked = stop()
    total, tokens, stops = runtime.all_reduce(torch.cat([surprise, surprise.new_tensor([float(asked)])])).tolist()
    metrics = {**figures(counts, names), "lr_scale": rates.lr_scale, "grad_norm": 0.0}
    if counts["signal"] or worked.num_tokens:
        for param in model.parameters():
            if param.grad is None:  # only other processes have something to learn
                param.grad = torch.zeros_like(param)
        metrics["entropy"] = total / max(1.0, tokens)
        metrics["grad_norm"] = optimizer.step(rates.lr_scale, rates.momentum).item()
        optimizer.zero_grad()
    return metrics, agreed_stop(asked, stops > 0)


def main(config: Config) -> LoopState:
    """Reinforce, and return where the run ended. Raises `StoppedBySignal` if a signal has ended it early."""
    tokenizer = get_tokenizer()
    origin = first_checkpoint("rl", config, tokenizer)
    problems, held_out = find_problems(config, tokenizer)
    replay = find_replay(config, tokenizer, origin.meta["model_config"]["sequence_len"])
    data_hash = problems.hash() + replay.hash()
    checkpoint = checkpoint_to_resume(origin.path.parent, tokenizer, data_hash, None, config)
    started = Runtime.start(config.seed, config.device)
    model, optimizer, state = begin(checkpoint, origin, config.optim_settings(), started)
    runtime, num_steps = optimizer.runtime, config.num_steps(problems)
    log = RLLog(runtime, state, num_steps, config.num_problems * config.num_samples, model)
    log.start_wandb(config.run, config)
    meta = {**model_meta(model, runtime, tokenizer), "settings": asdict(config), "data_hash": data_hash}
    save = saver(run_dir("rl", origin.path.parent.name), model, optimizer, meta, config.keep_last)

    def play(number: int) -> tuple[list[RolloutGroup], SFTRows]:
        mine = problems.of_step(number, config.num_problems, runtime)
        params = config.sampling_params(config.num_samples)
        groups = ask(Engine(model, tokenizer), mine, params, problems.reward, config.rollout_batch_size)
        return groups, replay.of_step(number, runtime)

    def evaluate(_: LoopState) -> Metrics:
        params = config.sampling_params(config.eval_samples)
        return evaluate_pass_at_k(Engine(model, tokenizer), held_out, params, runtime, config.rollout_batch_size)

    with closing(log):
        reinforce(
            play,
            partial(step, model, optimizer, names=list(held_out), batch_size=config.device_batch_size),
            runtime,
            schedule=partial(config.rates, num_steps=num_steps),
            events=[Event(config.save_every, save, saves=True), Event(config.eval_every, evaluate)],
            num_steps=num_steps,
            log=log,
            state=state,
        )
    runtime.finish()
    if state.stopped:
        told = f"Stopped at step {state.step} of {num_steps}. To go on: "
        raise StoppedBySignal(state.stopped, told + resume_command("scripts.chat_rl", config))
    report_rl(config, runtime, state, {name: len(task) for name, task in held_out.items()})
    return state


if __name__ == "__main__":
    cli(Config, main, __doc__)
