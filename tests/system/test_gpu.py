"""One answer on GPUs: torch can use them, there are none, or there are some that torch cannot use, with the reason.

The faults are those of a stub of torch and of a stub of nvidia-smi, in a separate process where the module runs as
speedrun.sh runs it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanochat.common import UserError
from nanochat.system import gpu
from tests.support.gpus import FAKE_SMI, write_torch

ROOT = Path(__file__).resolve().parents[2]
TOO_OLD = "The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver."


@pytest.fixture(autouse=True)
def _no_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any driver: no device files, no nvidia-smi."""
    monkeypatch.setattr(gpu, "DEVICE_DIR", tmp_path / "dev")
    monkeypatch.setattr(gpu, "DRIVER_FILE", tmp_path / "version")
    monkeypatch.setattr(gpu, "command_output", lambda *_: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def set_torch(monkeypatch: pytest.MonkeyPatch, counted: int, usable: bool, error: str = "", cuda: str = "13.0") -> None:
    """Let torch count GPUs, and be able to use them or fail with this error."""

    def init() -> None:
        if error:
            raise RuntimeError(error)

    monkeypatch.setattr(torch.cuda, "device_count", lambda: counted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: usable)
    monkeypatch.setattr(torch.cuda, "init", init)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")


def test_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    set_torch(monkeypatch, 0, False)
    assert (gpu.num_usable_gpus(), gpu.find_gpu_problem(), gpu.count_gpus()) == (0, None, 0)


def test_with_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    set_torch(monkeypatch, 8, True)
    assert (gpu.num_usable_gpus(), gpu.find_gpu_problem(), gpu.count_gpus()) == (8, None, 8)


def test_a_driver_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch counts eight by the driver's library and can use none: one line with all versions and the remedy."""
    set_torch(monkeypatch, 8, False, TOO_OLD)
    monkeypatch.setattr(gpu, "command_output", lambda *_: "\n".join(["535.104.05"] * 8))
    assert gpu.num_usable_gpus() == 0
    with pytest.raises(UserError) as failure:
        gpu.count_gpus()
    assert str(failure.value) == (
        "8 NVIDIA GPUs here, but torch 2.11.0+cu130 (for CUDA 13.0) cannot use them with driver 535.104.05: "
        f"{TOO_OLD.rstrip('.')}. Update the driver, or install a torch for its CUDA version; CUDA_VISIBLE_DEVICES= "
        "(empty) hides the GPUs"
    )


def test_a_torch_without_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It counts no GPU at all: the device files and the driver's file show them. Other files there are no GPUs."""
    set_torch(monkeypatch, 0, False, "Torch not compiled with CUDA enabled", cuda="")
    assert gpu.find_gpu_problem() is None
    (tmp_path / "dev").mkdir()
    for name in ("nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / "dev" / name).touch()
    assert gpu.find_gpu_problem() is None
    (tmp_path / "dev" / "nvidia0").touch()
    (tmp_path / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module  570.124.06  Release", encoding="utf-8"
    )
    problem = gpu.find_gpu_problem()
    assert problem is not None
    assert problem.startswith(
        "1 NVIDIA GPU here, but torch 2.11.0+cu130 (built without CUDA) cannot use them with driver 570.124.06: "
        "Torch not compiled with CUDA enabled. "
    )
    (tmp_path / "version").unlink()
    assert "with driver of unknown version:" in str(gpu.find_gpu_problem())


@pytest.mark.parametrize(
    ("visible", "is_hidden"),
    [("", True), ("-1", True), ("NoDevFiles", True), ("0", False), ("1,0", False), ("GPU-8932f937", False)],
)
def test_hidden_gpus_are_none(monkeypatch: pytest.MonkeyPatch, visible: str, is_hidden: bool) -> None:
    set_torch(monkeypatch, 0, False, "No CUDA GPUs are available")
    monkeypatch.setattr(gpu, "command_output", lambda *_: "570.124.06")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert (gpu.find_gpu_problem() is None) == is_hidden


@pytest.mark.parametrize("usable", [True, False])
def test_the_command(tmp_path: Path, usable: bool) -> None:
    """As speedrun.sh calls it: the number on stdout, or one line on stderr and exit code 2."""
    write_torch(tmp_path, counted=8, usable=usable, error=TOO_OLD)
    (tmp_path / "nvidia-smi").write_text(FAKE_SMI, encoding="utf-8")
    (tmp_path / "nvidia-smi").chmod(0o755)
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}",
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
    }
    command = [sys.executable, "-m", "nanochat.system.gpu"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    if usable:
        assert (done.returncode, done.stdout, done.stderr) == (0, "8\n", "")
    else:
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith("error: 8 NVIDIA GPUs here, but torch 9.9.9 (for CUDA 13.0)")
        assert "driver 535.104.05" in done.stderr


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("2.9.1+cu128", "PYTORCH_CUDA_ALLOC_CONF"),
        ("2.11.0+cu130", "PYTORCH_ALLOC_CONF"),
        ("2.15.0a0+git1", "PYTORCH_ALLOC_CONF"),
    ],
)
@pytest.mark.parametrize("mine", [None, *gpu.ALLOCATOR_VARIABLES])
def test_expandable_segments(monkeypatch: pytest.MonkeyPatch, version: str, name: str, mine: str | None) -> None:
    """They are switched on, under the name that this version of torch reads, unless the user has set the allocator."""
    applied: list[str] = []
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", applied.append, raising=False)
    for variable in gpu.ALLOCATOR_VARIABLES:
        monkeypatch.setenv(variable, "")  # so that the variable is restored
        monkeypatch.delenv(variable)
    if mine:
        monkeypatch.setenv(mine, "max_split_size_mb:512")
    gpu.use_expandable_segments()
    found = {variable: os.environ[variable] for variable in gpu.ALLOCATOR_VARIABLES if variable in os.environ}
    if mine:
        assert (found, applied) == ({mine: "max_split_size_mb:512"}, [])
    else:
        assert (found, applied) == ({name: "expandable_segments:True"}, ["expandable_segments:True"])
