"""A run of reinforcement learning: where it begins, its loop, what it tells, and its section of the report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from nanochat.common import print0
from nanochat.reporting.markdown import format_duration
from nanochat.reporting.schema import log_section, proportion
from nanochat.rl.rollouts import PromptSampler, open_task, parse_weights
from nanochat.rl.sft_mix import SFTMix
from nanochat.runtime import Runtime
from nanochat.tokenizer import Tokenizer
from nanochat.train import Event, LoopState, Metrics, Rates, agreed_stop, stop_requests
from nanochat.training.log import SECONDS_BETWEEN_LINES, TrainLog
from tasks.common import Task
from tasks.mixture import build_mixture, detect_data_kind

Played = TypeVar("Played")  # what a step learns from

WEB_TASKS = "GSM8K"
WORLD_TASKS = "HardProblems:0.6|WordProblems:0.4"

CURVES = {  # figure of a step -> name and unit of its curve
    "signal": ("groups with better and worse answers", "share of groups"),
    "tool": ("answers in which the tool was used", "share of answers"),
    "ended": ("answers that ended", "share of answers"),
    "length": ("answers", "tokens"),
    "entropy": ("surprise at its own tokens", "nats per token"),
}


def find_problems(config: Any, tokenizer: Tokenizer) -> tuple[PromptSampler, dict[str, Task]]:
    """The problems to learn from, and for each of their tasks those that are held out; `config` is the script's."""
    weights = parse_weights(config.tasks or (WORLD_TASKS if detect_data_kind() == "world" else WEB_TASKS))
    problems = PromptSampler({name: open_task(name, "train") for name in weights}, weights, tokenizer, config.seed)
    return problems, {name: open_task(name, "test", stop=config.eval_problems) for name in weights}


def find_replay(config: Any, tokenizer: Tokenizer, sequence_len: int) -> SFTMix:
    """The worked conversations that are not to be unlearnt: those of fine-tuning; `config` is the script's."""
    if not config.replay:
        return SFTMix([], [], 0, tokenizer, sequence_len)
    conversations, _, description = build_mixture(
        "sft", detect_data_kind(), mixture_file=config.mixture, seed=config.seed
    )
    return SFTMix(conversations, description, config.replay, tokenizer, sequence_len)


def reinforce(
    play: Callable[[int], Played],
    learn: Callable[[Played, Rates, Callable[[], int]], tuple[Metrics, int]],
    runtime: Runtime,
    *,
    schedule: Callable[[float], Rates],
    events: Sequence[Event],
    num_steps: int,
    log: Callable[[LoopState, Metrics], None],
    state: LoopState,
) -> LoopState:
    """Take steps until they are done, or SIGINT or SIGTERM asks for a stop: `play(step)` gives what is learnt from.

    The conventions are those of `train.train`, save that events which do not save also run before the first step:
    what is to be improved is measured. Returns the state, which is also updated in place.
    """
    with stop_requests() as stop:
        waiting = [event for event in events if not event.saves]
        while True:
            ended = state.step >= num_steps
            for event in waiting:
                if event.due(state, ended):
                    log(state, dict(event.run(state)))
                    if ended and not state.stopped:  # no step will ask again
                        asked = stop()
                        state.stopped = agreed_stop(asked, runtime.any_rank(asked > 0))
            if state.stopped or ended:
                return state
            start = time.perf_counter()
            rates = schedule(state.progress)
            groups = play(state.step)
            answered = time.perf_counter() - start
            metrics, state.stopped = learn(groups, rates, stop)
            state.step += 1
            state.progress = state.step / num_steps
            elapsed = time.perf_counter() - start
            state.seconds += elapsed
            log(state, {**metrics, "rollout_seconds": answered, "step_seconds": elapsed})
            waiting = list(events)


class RLLog(TrainLog):
    """A TrainLog for steps that have a reward, and no loss that would mean anything."""

    unit = "answers"

    def __call__(self, state: LoopState, metrics: Mapping[str, float]) -> None:
        """Tell of a step (its metrics have a "reward"), or keep what an event has measured and printed."""
        if not metrics:
            return
        state.history.append({"step": state.step, **metrics})
        self._send(state, metrics)
        if "reward" not in metrics:
            return
        told = "  ".join(f"{name} {metrics[name]:.3f}" for name in ("reward", "signal", "tool", "ended"))
        told += f"  length {metrics['length']:.0f}"
        if self.bar is not None:
            self.bar.set_postfix_str(told, refresh=False)
            self.bar.update()
        elif state.progress >= 1 or state.stopped or time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES:
            self.last_line = time.monotonic()
            left = state.seconds / state.step * (self.num_steps - state.step)
            print0(
                f"step {state.step:>{len(str(self.num_steps))}}/{self.num_steps}  {told}  "
                f"lr x{metrics['lr_scale']:.4f}  norm {metrics['grad_norm']:.3f}  "
                f"{metrics['step_seconds']:.1f} s ({metrics['rollout_seconds']:.1f} to answer)  "
                f"{format_duration(left)} left"
            )


def rl_curves(history: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The history as the report draws it: one curve for each figure, by step."""
    labels = {f"{name} reward": (name, "mean reward") for name in names}
    labels |= {f"{name} pass@1": (f"{name}, held out", "pass@1") for name in names} | CURVES
    found = {}
    for key, (label, unit) in labels.items():
        if rows := [row for row in history if key in row]:
            xs, ys = [row["step"] for row in rows], [row[key] for row in rows]
            found[label] = {"x": xs, "y": ys, "xlabel": "step", "ylabel": unit}
    return found


def report_rl(config: Any, runtime: Runtime, state: LoopState, held_out: Mapping[str, int]) -> None:
    """Write the stage's section of the report. `held_out`: the tasks, and how many problems of each were measured."""
    first, *_, last = 2 * [row for row in state.history if any(f"{name} pass@1" in row for name in held_out)]
    metrics: dict[str, Any] = {"steps": state.step, "seconds per step": state.seconds / state.step}
    notes = []
    for name, count in held_out.items():
        for key in [key for key in last if key.startswith(f"{name} pass@")]:
            # As if each problem had been answered once: the interval is no narrower than it should be.
            metrics[key] = proportion(round(last[key] * count), count) | {"value": last[key]}
        metrics[f"{name}, answers that use the tool"] = last[f"{name} tool"]
        if first["step"] != last["step"]:
            told = (f"{row[f'{name} pass@1']:.3f} after step {row['step']}" for row in (first, last))
            notes.append(f"{name}: pass@1 {', '.join(told)}.")
    log_section(
        "chat_rl",
        {
            "title": "Reinforcement learning",
            "model": "rl",
            "notes": notes,
            "settings": config,
            "environment": runtime.report_fields,
            "metrics": metrics,
            "headline": [],  # the accuracies are chat_eval's to tell
            "curves": rl_curves(state.history, list(held_out)),
            "seconds": state.seconds,
        },
    )
