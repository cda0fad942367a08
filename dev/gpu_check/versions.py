"""Versions, the device, the kernels that torch chooses, and the device's own limits."""

from __future__ import annotations

import platform
import shutil
import subprocess

import torch

from dev.gpu_check.check import Check
from nanochat.layers.attention import describe_kernels
from nanochat.system.environment import num_usable_cores, package_version, processor_name, total_memory_gb

LIMITS = "limits"  # name of the result with the device's own rate and bandwidth


def check_versions(check: Check) -> None:
    """Versions, device, kernels chosen; rate of an 8192^3 bf16 product, and bandwidth of a copy on the device."""
    names = (
        "torch",
        "triton",
        "numpy",
        "pyarrow",
        "safetensors",
        "tokenizers",
        "nvidia-cudnn-cu13",
        "nvidia-nccl-cu13",
    )
    versions = {name: found for name in names if (found := package_version(name))}
    check.record("versions", python=platform.python_version(), cuda=torch.version.cuda, **versions)
    check.record("machine", processor=processor_name(), cores=num_usable_cores(), memory_gb=total_memory_gb())
    if check.device.type == "cuda":
        card = torch.cuda.get_device_properties(check.device)
        check.record(
            "device",
            device=card.name,
            memory_gb=card.total_memory / 1e9,
            multiprocessors=card.multi_processor_count,
            capability=f"{card.major}.{card.minor}",
            cudnn=torch.backends.cudnn.version(),
        )
        record_driver(check)
    check.record("attention kernels", chosen=describe_kernels(check.device, torch.bfloat16))
    measure_limits(check)


def record_driver(check: Check) -> None:
    """Record the driver's version and the state of the card, if nvidia-smi is there."""
    if shutil.which("nvidia-smi"):
        query = "--query-gpu=driver_version,temperature.gpu,clocks.sm,clocks.mem,power.draw,memory.used"
        command = ["nvidia-smi", query, "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace", timeout=20)
        check.record("nvidia-smi", state=done.stdout.strip() or done.stderr.strip()[:200])


def measure_limits(check: Check) -> None:
    """Measure the device's rate in bf16 products and the bandwidth of its memory, on random data."""
    size = 256 if check.is_dry_run else 8192
    a = torch.randn(size, size, device=check.device, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=check.device, dtype=torch.bfloat16)
    product = torch.empty_like(a)
    rate = 2 * size**3 / check.seconds(lambda: torch.mm(a, b, out=product), repeats=20)
    source = torch.randn((1 << 20) if check.is_dry_run else (1 << 30), device=check.device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    num_bytes = 2 * source.numel() * source.element_size()  # read and written
    bandwidth = num_bytes / check.seconds(lambda: target.copy_(source), repeats=20)
    check.record(LIMITS, bf16_tflops=rate / 1e12, copy_gb_per_s=bandwidth / 1e9)
