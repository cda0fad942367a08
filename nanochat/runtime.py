"""Runtime: the processes, device, compute dtype and seed of a run, in one value that each script creates first."""

from __future__ import annotations

import functools
import math
import os
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.system.console import print0
from nanochat.system.cpu import keep_freed_memory, measure_bf16_decode_speedup, measure_bf16_speedup
from nanochat.system.environment import NO_TORCHRUN, num_usable_cores, process_numbers
from nanochat.system.errors import UserError
from nanochat.system.gpu import find_gpu_problem, num_usable_gpus, use_expandable_segments

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEFAULT_TIMEOUT_SECONDS = 1800.0
SECONDS_TO_NOTICE = 5.0  # of a wait for the other processes
T = TypeVar("T")


@dataclass(frozen=True)
class Runtime:
    """One process of a run. Without torchrun there is one process, and the collectives below do nothing."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    compute_dtype: torch.dtype
    seed: int

    @classmethod
    def start(cls, seed: int = 42, device: str = "auto") -> Runtime:
        """Join the other processes (under torchrun), choose device and compute dtype, seed torch.

        `device`: auto, cpu, cuda or mps. Matrix products run in bf16 where that is faster, else in float32;
        `$NANOCHAT_DTYPE` (float32 or bfloat16) overrides this. Raises `UserError` for a device that is not available,
        for variables such as RANK that describe no process of a run (`process_numbers`), and for "auto" under torchrun
        if the machine has GPUs that torch cannot use; one process prints a warning.
        """
        rank, local_rank, world_size = process_numbers()
        chosen = resolve_device(device, local_rank)
        if device == "auto" and chosen.type == "cpu" and (problem := find_gpu_problem()):
            if world_size > 1:
                raise UserError(f"{problem}; --device=cpu trains on the CPU all the same")
            print0(f"WARNING: {problem}.\nWARNING: running on the CPU, many times slower.")
        if chosen.type == "cpu":
            configure_cpu(min(world_size, int(os.environ.get("LOCAL_WORLD_SIZE", world_size))))
        elif chosen.type == "cuda":
            configure_cuda(chosen)
        if world_size > 1 and not dist.is_initialized():
            is_cuda = chosen.type == "cuda"
            dist.init_process_group(
                "nccl" if is_cuda else "gloo",
                timeout=collective_timeout(),
                **({} if "TORCHELASTIC_RUN_ID" in os.environ else meet_processes(rank, world_size)),
                device_id=chosen if is_cuda else None,
            )
        runtime = cls(rank, local_rank, world_size, chosen, torch.float32, seed)
        torch.manual_seed(seed)
        return replace(runtime, compute_dtype=choose_dtype(runtime))

    @classmethod
    def without_setup(
        cls, device: torch.device | str = "auto", seed: int = 42, compute_dtype: torch.dtype | None = None
    ) -> Runtime:
        """Return a runtime on this device without setting up the process, for library calls that take a device.

        Joins no process group, seeds nothing and changes no global setting. Rank and world size are those of the
        process group if one is initialized, else 0 and 1. `compute_dtype` is chosen as in `start` if it is not given.
        Raises `UserError` for an unknown device.
        """
        rank = dist.get_rank() if dist.is_initialized() else 0
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        local_rank = int(os.environ.get("LOCAL_RANK", "0")) if world_size > 1 else 0
        chosen = device if isinstance(device, torch.device) else resolve_device(device, local_rank)
        runtime = cls(rank, local_rank, world_size, chosen, compute_dtype or torch.float32, seed)
        return runtime if compute_dtype else replace(runtime, compute_dtype=choose_dtype(runtime))

    @property
    def is_main(self) -> bool:
        """True on rank 0, which prints and saves."""
        return self.rank == 0

    def with_dtype(self, name: str) -> Runtime:
        """Return this runtime with the compute dtype that a checkpoint was trained in, `float32` or `bfloat16`."""
        if name != self.dtype_name:
            print0(f"Computing in {name}, as the checkpoint did (the default of this machine is {self.dtype_name}).")
            if name == "bfloat16" and self.device.type == "cpu":
                measure_bf16_speedup()  # also limits oneDNN to the bf16 instructions that work on this processor
        return replace(self, compute_dtype=DTYPES[name])

    @property
    def dtype_name(self) -> str:
        """Name of the compute dtype: `float32` or `bfloat16`."""
        return str(self.compute_dtype).removeprefix("torch.")

    @property
    def report_fields(self) -> dict[str, str | int]:
        """The runtime's part of a report's environment section."""
        return {"device": str(self.device), "compute dtype": self.dtype_name, "processes": self.world_size}

    def all_reduce(self, value: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place, and return it."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def any_rank(self, flag: bool) -> bool:
        """Return True, on all ranks, if `flag` is True on any rank."""
        if self.world_size == 1:
            return flag
        return bool(self.all_reduce(torch.full((), float(flag), device=self.device)).item())

    def maximum(self, value: float) -> float:
        """Return, on all ranks, the largest of the values that the ranks pass."""
        if self.world_size == 1:
            return value
        largest = torch.full((), value, dtype=torch.float64, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return float(largest.item())

    def broadcast(self, value: T) -> T:
        """Return rank 0's value on every rank; it must be picklable."""
        if self.world_size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.device if self.device.type == "cuda" else None)
        return values[0]

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks, on every rank; they must be picklable."""
        if self.world_size == 1:
            return [value]
        values = [value] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait until all processes have called this."""
        if self.world_size > 1:
            dist.barrier()

    def finish(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def resolve_device(name: str, local_rank: int) -> torch.device:
    """Return the torch device of a name; "auto" is CUDA if available, else MPS, else the CPU.

    Raises `UserError` if the name is unknown or the device is not available to the process `local_rank` of this
    machine: each process has a GPU of its own.
    """
    num_gpus = num_usable_gpus()
    is_available = {"cpu": True, "cuda": num_gpus > 0, "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if is_available[kind])
    if name not in is_available:
        raise UserError(f"device {name!r} is not known: choose auto, cpu, cuda or mps")
    if not is_available[name]:
        if name == "cuda" and (problem := find_gpu_problem()):
            raise UserError(problem)
        available = ", ".join(kind for kind in is_available if is_available[kind])
        raise UserError(f"device {name!r} is not available on this machine: choose one of auto, {available}")
    if name == "cuda" and local_rank >= num_gpus:
        raise UserError(
            f"process {local_rank + 1} of this machine has no GPU, because there are {num_gpus}: start no more "
            f"processes than GPUs (torchrun --nproc_per_node={num_gpus}), or use --device=cpu"
        )
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)


def configure_cpu(local_world_size: int) -> None:
    """Set deterministic algorithms, an equal share of the cores for each process, and an allocator that keeps pages."""
    torch.set_deterministic_debug_mode("error")  # use_deterministic_algorithms, without its import of the compiler
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # for debugging only; costs a pass over memory
    if local_world_size > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":  # torchrun sets 1; the user may set more
        torch.set_num_threads(max(1, num_usable_cores() // local_world_size))
    keep_freed_memory()


def configure_cuda(device: torch.device) -> None:
    """Make this GPU the current one, and choose growing memory segments and TF32 for float32 products."""
    use_expandable_segments()
    silence_precision_warning()
    torch.cuda.set_device(device)
    torch.set_float32_matmul_precision("high")


@contextmanager
def exact_float32() -> Iterator[None]:
    """Context manager, and decorator, in which float32 matrix products are computed in float32 on every device.

    Training on CUDA computes them in TF32, with 10 bits of mantissa (`configure_cuda`). Comparisons of models need
    all 23 bits: options whose losses differ by little, and checks that two implementations agree.
    """
    silence_precision_warning()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@functools.cache
def silence_precision_warning() -> None:
    """Let torch give its warning of `get_float32_matmul_precision` unseen; it gives it once.

    torch 2.9 recommends another setting there, which its own compiler did not support yet; torch 2.11 took it back.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.get_float32_matmul_precision()


def meet_processes(rank: int, world_size: int) -> dict[str, Any]:
    """Wait for the other processes of a run that torchrun has not started; return arguments of `init_process_group`.

    After a few seconds a notice names the variables that made this process wait: a shell may have kept them from an
    earlier run. Ctrl-C ends the wait, unlike that of torch. Raises `UserError` if the others do not come in time.
    """
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    variables = f"RANK={rank} WORLD_SIZE={world_size} MASTER_ADDR={address} MASTER_PORT={port}"
    start = time.monotonic()
    timeout = collective_timeout()
    is_noticed = False

    def wait(missing: str) -> None:
        nonlocal is_noticed
        seconds = time.monotonic() - start
        if seconds > timeout.total_seconds():
            raise UserError(f"{missing} after {seconds:.0f} s ({variables} in the environment): {NO_TORCHRUN}")
        if seconds > SECONDS_TO_NOTICE and not is_noticed:
            is_noticed = True
            notice = f"NOTICE: waiting, because {missing} ({variables} in the environment). {NO_TORCHRUN[0].upper()}"
            print(notice + NO_TORCHRUN[1:], file=sys.stderr, flush=True)
        time.sleep(0.05)

    while rank and not can_connect(address, port):  # torch itself would print a traceback for each attempt
        wait("nothing answers at MASTER_ADDR")
    store: Any = dist.TCPStore(  # type: ignore[attr-defined]
        address, port, world_size, rank == 0, timeout, wait_for_workers=False
    )
    store.add("nanochat/met", 1)
    while (num_met := store.add("nanochat/met", 0)) < world_size:
        wait(f"only {num_met} of {world_size} processes are there")
    return {"store": store, "rank": rank, "world_size": world_size}


def can_connect(address: str, port: int) -> bool:
    """Return True if a program answers there. Raises `UserError` if there is no such host."""
    try:
        socket.create_connection((address, port), timeout=1).close()
    except socket.gaierror as error:
        raise UserError(f"MASTER_ADDR is {address!r} in the environment ({error.strerror}): {NO_TORCHRUN}") from error
    except OSError:
        return False
    return True


def collective_timeout() -> timedelta:
    """Return the longest wait for the other processes: `$NANOCHAT_TIMEOUT` in seconds, by default half an hour.

    The other processes wait while one compiles, or while rank 0 finishes writing a checkpoint. Raises `UserError` for
    a value that is not a number above 0.
    """
    text = os.environ.get("NANOCHAT_TIMEOUT") or str(DEFAULT_TIMEOUT_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise UserError(f"NANOCHAT_TIMEOUT is {text!r}: must be a number of seconds above 0")
    return timedelta(seconds=seconds)


def choose_dtype(runtime: Runtime) -> torch.dtype:
    """Return the dtype of matrix products, the same on all ranks: `$NANOCHAT_DTYPE`, else bf16 where it is faster."""
    requested = os.environ.get("NANOCHAT_DTYPE") or "auto"
    if requested not in ("auto", *DTYPES):
        raise UserError(f"NANOCHAT_DTYPE is {requested!r}: choose auto, float32 or bfloat16")
    if runtime.device.type == "cuda":
        automatic = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    elif runtime.device.type == "cpu" and requested != "float32":
        automatic = torch.bfloat16 if is_faster(runtime, measure_bf16_speedup) else torch.float32
    else:
        automatic = torch.float32
    return automatic if requested == "auto" else DTYPES[requested]


def choose_generation_dtype(runtime: Runtime, compute_dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which a model of `compute_dtype` generates text, the same on all ranks.

    It is the model's own, except on a CPU where float32 products of few rows are faster than bf16 ones: there a bf16
    model generates in float32, and a notice says so. `$NANOCHAT_DTYPE` turns this exception off.
    """
    is_chosen = (os.environ.get("NANOCHAT_DTYPE") or "auto") != "auto"
    if compute_dtype != torch.bfloat16 or runtime.device.type != "cpu" or is_chosen:
        return compute_dtype
    if is_faster(runtime, measure_bf16_decode_speedup):
        return compute_dtype
    print0("Generating in float32, which is faster on this processor than the model's bfloat16.")
    return torch.float32


def is_faster(runtime: Runtime, measure: Callable[[], float | None]) -> bool:
    """Return True if the speed-up that `measure` returns on rank 0 is above 1; the others then read what it stored."""
    speedup = measure() if runtime.is_main else None
    runtime.barrier()
    speedup = runtime.broadcast(speedup if runtime.is_main else measure())
    return speedup is not None and speedup > 1
