"""Copies of a fake model in processes of their own."""

from __future__ import annotations

import time

from torch import Tensor

from nanochat.common import UserError
from nanochat.inference.generation_loop import GenerationLoop, OnPublish
from nanochat.inference.model_step import StepTokens
from tests.support.fake_step import TOOL, FakeStep

FAILS, PANICS = 201, 202  # second tokens of prompts at which a step fails


class Panic(BaseException):
    """As a panic in Rust is, no Exception."""


class TimedStep(FakeStep):
    """Takes so many seconds for each step, and fails at some tokens."""

    def __init__(self, seconds: float, num_blocks: int, sequence_len: int) -> None:
        super().__init__(num_blocks, sequence_len=sequence_len)
        self.seconds = seconds

    def forward(self, step: StepTokens) -> Tensor:
        time.sleep(self.seconds)
        second = step.tokens[step.positions == 1]
        if FAILS in second:
            raise RuntimeError("no memory")
        if PANICS in second:
            raise Panic("index out of bounds")
        return super().forward(step)


def load_fake(
    on_publish: OnPublish, *, seconds: float = 0.0, sequence_len: int = 64, max_running: int = 4, max_waiting: int = 3
) -> GenerationLoop:
    """Return a loop on a fake step: the `load` of a `Replica`."""
    step = TimedStep(seconds, 1000, sequence_len)
    return GenerationLoop(step, TOOL, max_running=max_running, max_waiting=max_waiting, on_publish=on_publish)


def fail_to_load(on_publish: OnPublish, error: str) -> GenerationLoop:  # noqa: ARG001
    """Raise an error, or end the process."""
    if error == "user":
        raise UserError("there is no such model")
    if error == "file":
        raise PermissionError(13, "Permission denied", "model.safetensors")
    if error == "bug":
        raise KeyError("blocks")
    raise SystemExit(3)
