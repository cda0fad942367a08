"""Choice of device, compute dtype and float32 precision; the collectives in one process and in two."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat import runtime as runtime_module
from nanochat.common import UserError
from nanochat.runtime import (
    Runtime,
    choose_dtype,
    choose_generation_dtype,
    collective_timeout,
    configure_cpu,
    exact_float32,
    resolve_device,
)
from tests.support.processes import Forker

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
ALONE = Runtime(rank=0, local_rank=0, world_size=1, device=CPU, compute_dtype=torch.float32, seed=42)


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without torchrun, a requested dtype and probing; restores the settings that a runtime changes."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NANOCHAT_DTYPE", "NANOCHAT_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(runtime_module, "measure_bf16_speedup", lambda: None)
    monkeypatch.setattr(runtime_module, "keep_freed_memory", lambda: None)  # it cannot be undone
    settings = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory, torch.get_num_threads()
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)
    # `use_deterministic_algorithms` would import the compiler, which cannot be done while torch.cuda is replaced.
    torch.set_deterministic_debug_mode("error" if before[0] else "default")
    settings.fill_uninitialized_memory = before[1]
    torch.set_num_threads(before[2])


def set_devices(monkeypatch: pytest.MonkeyPatch, *, cuda: bool = False, mps: bool = False) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4 * cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


# Devices


@pytest.mark.parametrize(
    ("cuda", "mps", "device"),
    [(True, True, "cuda:3"), (True, False, "cuda:3"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_is_the_best_device(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, device: str) -> None:
    set_devices(monkeypatch, cuda=cuda, mps=mps)
    assert resolve_device("auto", 3) == torch.device(device)


def test_a_device_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    set_devices(monkeypatch, cuda=True, mps=True)
    assert resolve_device("cpu", 1) == CPU
    assert resolve_device("cuda", 1) == torch.device("cuda:1")
    assert resolve_device("mps", 1) == torch.device("mps")


def test_an_absent_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    set_devices(monkeypatch)
    with pytest.raises(UserError, match=r"'cuda' is not available on this machine: choose one of auto, cpu$"):
        Runtime.start(device="cuda")
    set_devices(monkeypatch, cuda=True)
    with pytest.raises(UserError, match=r"'mps' is not available on this machine: choose one of auto, cpu, cuda$"):
        resolve_device("mps", 0)


@pytest.mark.parametrize("name", ["gpu", "cuda:1", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"'{name}' is not known: choose auto, cpu, cuda or mps"):
        Runtime.start(device=name)


@pytest.fixture
def unusable_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs that the driver counts and torch cannot use."""
    set_devices(monkeypatch)
    monkeypatch.setattr(runtime_module, "find_gpu_problem", lambda: "8 NVIDIA GPUs here, but torch cannot use them")


@pytest.mark.usefixtures("unusable_gpus")
def test_gpus_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One process says loudly that it runs on the CPU; several do not start to train there with gloo."""
    assert Runtime.start().device == CPU
    warning = "WARNING: 8 NVIDIA GPUs here, but torch cannot use them.\nWARNING: running on the CPU"
    assert capsys.readouterr().out.startswith(warning)
    assert Runtime.start(device="cpu").device == CPU
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match=r"^8 NVIDIA GPUs here, but torch cannot use them$"):
        Runtime.start(device="cuda")
    for name, value in {"RANK": "0", "WORLD_SIZE": "8", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *_, **__: pytest.fail("it trains on the CPU"))
    with pytest.raises(UserError, match="cannot use them; --device=cpu trains on the CPU all the same"):
        Runtime.start()


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    set_devices(monkeypatch, cuda=True)
    message = r"process 5 of this machine has no GPU, because there are 4: .*--nproc_per_node=4"
    for name in ("auto", "cuda"):
        with pytest.raises(UserError, match=message):
            resolve_device(name, 4)
    assert resolve_device("cpu", 4) == CPU


@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_the_processes_of_gpus(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Each takes its own GPU, uses TF32, and joins the others by NCCL with a time-out that is set."""
    calls: list[Any] = []
    set_devices(monkeypatch, cuda=True)
    monkeypatch.setattr(runtime_module, "use_expandable_segments", lambda: calls.append("segments"))
    monkeypatch.setattr(torch.cuda, "set_device", calls.append)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda *args, **kwargs: calls.append((args, kwargs)))
    variables = {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in (variables | {"NANOCHAT_TIMEOUT": "90", "TORCHELASTIC_RUN_ID": "none"}).items():
        monkeypatch.setenv(name, value)
    gpu = torch.device("cuda:3")
    assert Runtime.start(device=device) == Runtime(3, 3, 4, gpu, torch.bfloat16, 42)
    assert calls == ["segments", gpu, (("nccl",), {"timeout": timedelta(seconds=90), "device_id": gpu})]
    assert torch.get_float32_matmul_precision() == "high"


def variables_of_a_run(monkeypatch: pytest.MonkeyPatch, **changes: str | int) -> None:
    """Set what a launcher sets for one of two processes, except for torchrun's own variables."""
    variables = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in (variables | changes).items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(("rank", "missing"), [(0, "only 1 of 2 processes are there"), (1, "nothing answers")])
def test_waiting_for_processes_that_do_not_exist(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: int, missing: str
) -> None:
    """As with the variables of an earlier run in the shell: first a notice that names them, in the end an error."""
    variables_of_a_run(monkeypatch, RANK=rank, NANOCHAT_TIMEOUT=1)
    monkeypatch.setattr(runtime_module, "SECONDS_TO_NOTICE", 0.1)
    with pytest.raises(UserError, match=f"{missing}.* after 1 s .RANK={rank} WORLD_SIZE=2 MASTER_ADDR=127.*unset RANK"):
        Runtime.start(device="cpu")
    [notice] = capsys.readouterr().err.splitlines()
    assert notice.startswith(f"NOTICE: waiting, because {missing}")
    assert "unset RANK LOCAL_RANK WORLD_SIZE" in notice
    assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("rank", [0, 1])
def test_ctrl_c_while_waiting(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    """It ends the wait at once; torch's own wait would go on for half an hour."""
    variables_of_a_run(monkeypatch, RANK=rank)
    monkeypatch.setattr(runtime_module.time, "sleep", lambda _: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        Runtime.start(device="cpu")


def test_a_host_that_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    variables_of_a_run(monkeypatch, RANK=1, MASTER_ADDR="no-such-host.invalid")
    with pytest.raises(UserError, match=r"MASTER_ADDR is 'no-such-host.invalid' in the environment .*unset RANK"):
        Runtime.start(device="cpu")


def test_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    assert collective_timeout() == timedelta(minutes=30)
    monkeypatch.setenv("NANOCHAT_TIMEOUT", "7.5")
    assert collective_timeout() == timedelta(seconds=7.5)
    for value in ("0", "-1", "nan", "inf", "ten"):
        monkeypatch.setenv("NANOCHAT_TIMEOUT", value)
        with pytest.raises(UserError, match=f"NANOCHAT_TIMEOUT is '{value}': must be a number of seconds above 0"):
            collective_timeout()


# Precision


def test_exact_float32() -> None:
    """As a context and as a decorator, nested and with an exception: in force inside, and the former value after it."""

    @exact_float32()
    def precision() -> str:
        return torch.get_float32_matmul_precision()

    for former in ("high", "highest"):
        torch.set_float32_matmul_precision(former)
        with exact_float32():
            assert precision() == "highest"
            assert precision() == "highest"
        assert torch.get_float32_matmul_precision() == former
        assert precision() == "highest"
        assert torch.get_float32_matmul_precision() == former
        with pytest.raises(ValueError, match="inside"), exact_float32():
            raise ValueError("inside")
        assert torch.get_float32_matmul_precision() == former


# Dtypes


@pytest.mark.parametrize(
    ("requested", "speedup", "dtype"),
    [
        (None, None, torch.float32),
        (None, 0.9, torch.float32),
        (None, 1.1, torch.bfloat16),
        ("", 1.1, torch.bfloat16),
        ("auto", 1.1, torch.bfloat16),
        ("float32", 9.0, torch.float32),
        ("bfloat16", 0.1, torch.bfloat16),
    ],
)
def test_bfloat16_where_it_is_faster_or_requested(
    monkeypatch: pytest.MonkeyPatch, requested: str | None, speedup: float | None, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(runtime_module, "measure_bf16_speedup", lambda: speedup)
    if requested is not None:
        monkeypatch.setenv("NANOCHAT_DTYPE", requested)
    assert choose_dtype(ALONE) == dtype


@pytest.mark.parametrize(
    ("requested", "speedup", "dtype"),
    [
        (None, None, torch.float32),
        (None, 0.9, torch.float32),
        (None, 1.1, torch.bfloat16),
        ("auto", 0.9, torch.float32),
        ("bfloat16", 0.1, torch.bfloat16),
        ("float32", 0.1, torch.bfloat16),  # of new models: a checkpoint keeps its dtype
    ],
)
def test_a_bfloat16_model_generates_in_float32_where_that_is_faster(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    requested: str | None,
    speedup: float | None,
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr(runtime_module, "measure_bf16_decode_speedup", lambda: speedup)
    if requested is not None:
        monkeypatch.setenv("NANOCHAT_DTYPE", requested)
    assert choose_generation_dtype(ALONE, torch.bfloat16) == dtype
    assert ("Generating in float32" in capsys.readouterr().out) == (dtype == torch.float32)


def test_other_models_generate_in_their_own_dtype(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runtime_module, "measure_bf16_decode_speedup", lambda: pytest.fail("the processor was probed"))
    assert choose_generation_dtype(ALONE, torch.float32) == torch.float32
    gpu = Runtime(0, 0, 1, torch.device("cuda:0"), torch.float32, 42)
    assert choose_generation_dtype(gpu, torch.bfloat16) == torch.bfloat16
    assert capsys.readouterr().out == ""


def test_float32_needs_no_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    monkeypatch.setattr(runtime_module, "measure_bf16_speedup", lambda: pytest.fail("the processor was probed"))
    assert choose_dtype(ALONE) == torch.float32


@pytest.mark.parametrize("requested", ["bf16", "float64", "FLOAT32"])
def test_an_unknown_dtype_is_refused(monkeypatch: pytest.MonkeyPatch, requested: str) -> None:
    monkeypatch.setenv("NANOCHAT_DTYPE", requested)
    with pytest.raises(UserError, match=f"NANOCHAT_DTYPE is '{requested}': choose auto, float32 or"):
        Runtime.start(device="cpu")


@pytest.mark.parametrize(("supported", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_gpu_computes_in_bfloat16_unless_it_is_emulated(
    monkeypatch: pytest.MonkeyPatch, supported: bool, dtype: torch.dtype
) -> None:
    def is_bf16_supported(including_emulation: bool) -> bool:
        return supported or including_emulation

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_bf16_supported)
    gpu = Runtime(0, 0, 1, torch.device("cuda:0"), torch.float32, 42)
    assert choose_dtype(gpu) == dtype


def test_the_dtype_of_a_checkpoint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    prepared = []
    monkeypatch.setattr(runtime_module, "measure_bf16_speedup", lambda: prepared.append(1))
    assert ALONE.with_dtype("float32") == ALONE
    assert capsys.readouterr().out == ""
    other = ALONE.with_dtype("bfloat16")
    assert (other.compute_dtype, other.dtype_name, ALONE.dtype_name) == (torch.bfloat16, "bfloat16", "float32")
    assert "Computing in bfloat16" in capsys.readouterr().out
    assert prepared == [1]


# One process


def test_one_process_alone() -> None:
    runtime = Runtime.start(seed=7, device="cpu")
    drawn = torch.rand(3)
    assert runtime == Runtime(0, 0, 1, CPU, torch.float32, 7)
    assert runtime.is_main
    assert torch.are_deterministic_algorithms_enabled()
    Runtime.start(seed=7, device="cpu")
    assert torch.equal(torch.rand(3), drawn)
    value = torch.tensor([1.5])
    sent = object()
    assert runtime.all_reduce(value) is value
    assert value.item() == 1.5
    assert runtime.broadcast(sent) is sent
    assert runtime.any_rank(True)
    assert not runtime.any_rank(False)
    assert runtime.maximum(-1.5) == -1.5
    runtime.barrier()
    runtime.finish()


@pytest.mark.parametrize(
    ("threads", "processes", "expected"), [("1", 2, 4), (None, 3, 2), ("1", 100, 1), ("5", 2, 3), ("1", 1, 3)]
)
def test_processes_share_the_cores_unless_the_user_sets_threads(
    monkeypatch: pytest.MonkeyPatch, threads: str | None, processes: int, expected: int
) -> None:
    """On 8 cores, with 3 threads before."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    torch.set_num_threads(3)
    configure_cpu(processes)
    assert torch.get_num_threads() == expected


# Two processes


def test_two_processes_together(forker: Forker, tmp_path: Path) -> None:
    first, second = map(json.loads, forker.run_ranks(one_of_two, tmp_path))
    assert (first.pop("rank"), second.pop("rank")) == (0, 1)
    assert first == second
    assert first == {
        "sum": [3.0, 30.0],
        "any": [True, True, False],
        "maximum": 0.0,
        "broadcast": {"rank": 0},
        "dtype": "bfloat16",  # as rank 0 measured
        "left": True,
    }


def one_of_two(folder: Path) -> None:
    """Use every collective. Rank 0 measures slowly, and rank 1 would measure another speed-up."""

    def measure() -> float:
        measured = folder / "measured"
        if os.environ["RANK"] == "0":
            time.sleep(0.5)
            measured.touch()
            return 2.0
        assert measured.exists(), "called before rank 0 had measured"
        return 0.5

    runtime_module.measure_bf16_speedup = measure
    runtime = Runtime.start(device="cpu")
    rank = runtime.rank
    assert runtime.is_main == (rank == 0)
    results = {
        "rank": rank,
        "sum": runtime.all_reduce(torch.tensor([1.0, 10.0]) * (rank + 1)).tolist(),
        "any": [runtime.any_rank(rank == 0), runtime.any_rank(rank == 1), runtime.any_rank(False)],
        "maximum": runtime.maximum(-float(rank)),
        "broadcast": runtime.broadcast({"rank": rank}),
        "dtype": runtime.dtype_name,
    }
    runtime.barrier()
    runtime.finish()
    results["left"] = not torch.distributed.is_initialized()
    print(json.dumps(results))
