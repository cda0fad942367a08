"""Copies of a served model: from a checkpoint to a loop that generates, in this process or in one of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import partial

from nanochat.checkpoint_manager import load_model
from nanochat.gpt import GPT
from nanochat.inference.generation_loop import GenerationLoop, OnPublish
from nanochat.inference.tool_use import Tool
from nanochat.replicas.process_loop import ProcessLoop, Replica, start_replicas
from nanochat.runtime import Runtime, configure_cpu
from nanochat.steps.make_step import BLOCK_LEN, blocks_that_fit, generation_dtype, make_step
from nanochat.tokenizer import Tokenizer


@dataclass(frozen=True)
class ReplicaSettings:
    """The checkpoint and the limits of a copy.

    `device`: cpu, cuda or mps. `num_replicas`: copies that share the cores and the memory of a CPU.
    `cache_gb`: for the KV cache of this copy; None = a share of what is free. `max_waiting`, `max_running`: those of
    `GenerationLoop`.
    """

    source: str
    model_tag: str | None
    step: int
    device: str
    num_replicas: int = 1
    quantize: str = "none"
    cache_gb: float | None = None
    max_waiting: int = 32
    max_running: int = 64


def start_on_devices(settings: ReplicaSettings, count: int) -> list[ProcessLoop]:
    """Start copies, each in a process: on the first `count` GPUs, or on the CPU, whose cores and memory they share.

    Raises `UserError` if one cannot be loaded.
    """
    is_cuda = settings.device == "cuda"
    load = partial(load_replica, replace(settings, num_replicas=1 if is_cuda else count))
    return start_replicas(
        [
            Replica(
                load,
                f"copy {index + 1} of {count}",
                {"CUDA_VISIBLE_DEVICES": visible_gpu(index)} if is_cuda else {},
                settings.max_waiting,
                settings.max_running,
            )
            for index in range(count)
        ]
    )


def visible_gpu(index: int) -> str:
    """Return the value of `$CUDA_VISIBLE_DEVICES` with which a process sees only the GPU of this index of ours."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index].strip() if visible else str(index)


def load_replica(settings: ReplicaSettings, on_publish: OnPublish | None = None) -> GenerationLoop:
    """Load a copy in a process of its own. Raises `UserError` as `load_model` and `new_loop` do."""
    runtime = Runtime.start(device=settings.device)
    if runtime.device.type == "cpu":
        configure_cpu(settings.num_replicas)
    model, tokenizer, _ = load_model(settings.source, runtime, model_tag=settings.model_tag, step=settings.step)
    return new_loop(settings, runtime, model, tokenizer, on_publish)


def new_loop(
    settings: ReplicaSettings,
    runtime: Runtime,
    model: GPT,
    tokenizer: Tokenizer,
    on_publish: OnPublish | None = None,
) -> GenerationLoop:
    """Return the loop of a copy of the model. Raises `UserError` if its cache has no room for a context."""
    dtype = generation_dtype(runtime, model.compute_dtype, settings.quantize)
    num_sharing = settings.num_replicas if runtime.device.type == "cpu" else 1
    num_blocks = blocks_that_fit(model.config, dtype, BLOCK_LEN, settings.cache_gb, runtime.device, num_sharing)
    return GenerationLoop(
        make_step(model, dtype, num_blocks),
        Tool(tokenizer),
        max_waiting=settings.max_waiting,
        max_running=settings.max_running,
        on_publish=on_publish,
    )
