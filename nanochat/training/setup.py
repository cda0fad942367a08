"""Setup of a training run: new or restored model, optimizer and loop state, and the compiled model."""

from __future__ import annotations

import shutil
from dataclasses import replace

import torch
from torch import Tensor

from nanochat.checkpoint_manager import Checkpoint, build_model, restore_model
from nanochat.common import UserError, print0
from nanochat.gpt import GPT, GPTConfig, Regions, rms_norm
from nanochat.layers import cpu_kernels
from nanochat.layers.fp8 import check_fp8_device, check_fp8_sizes
from nanochat.layers.softcap_loss import softcap_terms
from nanochat.optim import Optimizer, OptimSettings, build_optimizer
from nanochat.runtime import Runtime
from nanochat.system.files import use_writable_compile_cache
from nanochat.train import Forward, LoopState, warm_up
from nanochat.training.resume import restore_loop_state

MIN_COMPILED_STEPS = 100  # a shorter run gains less from the compiled model than compiling takes
SLOWDOWN = "1.5"  # seconds of an uncompiled step / seconds of a compiled one, d4 on two cores


def build_or_restore(
    checkpoint: Checkpoint | None, initial: GPTConfig | Checkpoint, settings: OptimSettings, runtime: Runtime
) -> tuple[GPT, Optimizer, LoopState]:
    """Return model, optimizer and loop state: those of `checkpoint` if a run resumes, else those of a new run.

    A new run (`checkpoint` is None) starts with a new model of the shape `initial`, or with the weights of `initial`, a
    checkpoint of another stage; its optimizer state is not used, because its learning rates have decayed to 0.
    `optimizer.runtime` is `runtime` with the model's dtype. There is no random state to restore: steps draw no random
    numbers, and samples have their own seeds.
    """
    origin = checkpoint or initial
    model = build_model(origin, runtime) if isinstance(origin, GPTConfig) else restore_model(origin, runtime)
    optimizer = build_optimizer(model, replace(runtime, compute_dtype=model.compute_dtype), settings)
    if checkpoint is None:
        return model, optimizer, LoopState()

    optimizer.load_state_dict(checkpoint.load_optimizer_state())
    state = restore_loop_state(checkpoint)
    print0(f"Resuming {checkpoint.path}, {state.progress:.1%} of the run done")
    return model, optimizer, state


def use_fp8(model: GPT, runtime: Runtime, sequence_len: int) -> None:
    """Train the model in fp8 from now on (`--fp8`). Call it before anything measures, compiles or trains the model.

    Raises `UserError` if the device or the sizes do not allow it.
    """
    check_fp8_device(runtime.device, model.compute_dtype)
    check_fp8_sizes({"max_seq_len": sequence_len})
    model.use_fp8()
    print0("Training runs the linear layers of the blocks in fp8, evaluations and samples in bfloat16.")


def should_compile(mode: str, num_steps: int, runtime: Runtime) -> bool:
    """Return True if a run of this length is to be compiled. `mode`: auto (where it saves time), on or off."""
    saves_time = runtime.device.type != "mps" and num_steps >= MIN_COMPILED_STEPS
    return mode == "on" or (mode == "auto" and saves_time)


def compile_model(
    model: GPT, mode: str, num_steps: int, batch_size: int, runtime: Runtime, sequence_len: int | None = None
) -> Forward:
    """Return the compiled model; or `model` itself where compiling is off, saves no time, or fails under "auto".

    `mode`: auto, on or off. `batch_size` and `sequence_len` (None: the whole context) are the shape of a micro-batch.
    Either all processes return a compiled model or none does. Raises `UserError` if compiling fails under "on". If a
    GPU's memory does not hold the micro-batch, all processes raise torch's OutOfMemoryError.
    """
    if not should_compile(mode, num_steps, runtime):
        return model
    compiled: Forward = model
    failure = None
    outcome = 0  # 1: it failed, 2: the GPU's memory is exhausted; the processes agree on the largest
    if runtime.device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        failure = "there is no C++ compiler (Debian: apt install g++)"
        outcome = 1
    else:
        print0("Compiling the model (the first time takes up to a minute) ...")
        use_writable_compile_cache()
        try:
            compiled = CompiledModel(model)
            warm_up(compiled, model, batch_size, sequence_len or model.config.sequence_len)
        except torch.OutOfMemoryError:
            outcome = 2
        except Exception as error:  # a compiler may raise anything
            lines = str(error).strip().splitlines() or [""]
            failure = f"{type(error).__name__}: {lines[0]}"
            outcome = 1
    outcome = int(runtime.maximum(outcome))
    if outcome == 2:
        raise torch.OutOfMemoryError(f"{batch_size} rows of the compiled model exceed the memory of {runtime.device}")
    if outcome == 0:
        return compiled
    reason = failure or "it failed on another process"
    if mode == "on":
        raise UserError(f"--compile=on, but the model cannot be compiled ({reason}): choose --compile=auto or off")
    print0(
        f"NOTICE: the model cannot be compiled, so it trains uncompiled, which takes about {SLOWDOWN} times as long: "
        f"{reason}"
    )
    return model


class CompiledModel:
    """A model whose forward and backward passes run compiled, for batches with targets. It shares the weights.

    Each block is compiled for itself, and so is what the loss computes of a chunk of logits (`Regions`). The model
    itself stays uncompiled: generation and evaluation, whose shapes vary, would compile it again and again.
    """

    def __init__(self, model: GPT) -> None:
        self.model = model
        if model.device.type == "cpu" and model.compute_dtype == torch.bfloat16:
            cpu_kernels.uses_amx()  # measured before it is compiled
        self.regions = Regions(
            torch.compile(rms_norm, dynamic=False),
            [torch.compile(block, dynamic=False) for block in model.blocks],
            cpu_kernels.softcap_terms
            if cpu_kernels.are_available(model.device) and model.config.softcap  # else it is torch's, uncompiled
            else torch.compile(softcap_terms, dynamic=False),
        )

    def __call__(self, idx: Tensor, targets: Tensor, loss_reduction: str = "mean") -> Tensor:
        """Return the loss of `GPT.forward`."""
        loss: Tensor = self.model(idx, targets, loss_reduction=loss_reduction, regions=self.regions)
        return loss
