"""Speed of training steps and of attention.

A step has the tokens that one of eight GPUs has in speedrun.sh: 32 rows of 2,048, in micro-batches.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.attention import sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity

from dev.gpu_check.check import Check, Skipped
from dev.gpu_check.models import model_to_time
from dev.gpu_check.versions import LIMITS
from nanochat.common import UserError
from nanochat.dataloader import MicroBatch
from nanochat.gpt import GPT, GPTConfig
from nanochat.layers.attention import NAMES, varied_shapes
from nanochat.layers.fp8 import check_fp8_device
from nanochat.optim import Optimizer, build_optimizer
from nanochat.system.speed import silence_profiler
from nanochat.train import Forward, Rates, StepOptimizer, step
from nanochat.training.log import peak_flops
from nanochat.training.profile import ProfiledOptimizer, device_spans, host_spans, step_limits, time_by_kind
from nanochat.training.setup import compile_model

ROWS_PER_STEP = 32
TOP_KERNELS = 14


def check_d20(check: Check) -> None:
    """Training step of d20, compiled: tokens/s, MFU, memory, and where the time goes."""
    measure_training(check, 20, is_compiled=True, row_counts=(16, 32, 8, 64))


def check_d20_eager(check: Check) -> None:
    """Training step of d20, uncompiled."""
    measure_training(check, 20, is_compiled=False, row_counts=(16, 8, 32))


def check_d20_fp8(check: Check) -> None:
    """Training step of d20, compiled, with --fp8."""
    if not check.is_dry_run:
        try:
            check_fp8_device(check.device, torch.bfloat16)
        except UserError as error:
            raise Skipped(str(error)) from None
    measure_training(check, 20, is_compiled=True, row_counts=(16, 32), is_fp8=True)


def check_d12(check: Check) -> None:
    """Training step of d12, compiled and uncompiled."""
    measure_training(check, 12, is_compiled=True, row_counts=(32, 64))
    measure_training(check, 12, is_compiled=False, row_counts=(32,))


def measure_training(
    check: Check, depth: int, *, is_compiled: bool, row_counts: Sequence[int], is_fp8: bool = False
) -> None:
    """Measure steps with each number of rows in a micro-batch, until one does not fit into memory."""
    if check.is_dry_run:
        config = GPTConfig.from_depth(1, vocab_size=256, sequence_len=32, head_dim=32)
        row_counts = (2,)
    else:
        config = GPTConfig.from_depth(depth, vocab_size=65536, sequence_len=2048)
        torch.set_float32_matmul_precision("high")  # as in training
    torch.compiler.reset()
    model = model_to_time(config, check.device)
    case = f"d{depth}, {'compiled' if is_compiled else 'eager'}{', fp8' if is_fp8 else ''}"
    if is_fp8:
        model.use_fp8()
    optimizer = build_optimizer(model, check.runtime())
    for index, num_rows in enumerate(row_counts):
        gc.collect()
        check.reset_peak_memory()
        try:
            measure_rows(check, f"{case}, {num_rows} rows", model, optimizer, num_rows, is_compiled, index == 0)
        except torch.OutOfMemoryError:
            optimizer.zero_grad()
            check.record(f"{case}, {num_rows} rows: does not fit")


def measure_rows(
    check: Check,
    case: str,
    model: GPT,
    optimizer: Optimizer,
    num_rows: int,
    is_compiled: bool,
    has_profile: bool,
) -> None:
    """Measure steps with micro-batches of `num_rows` rows."""
    start = time.perf_counter()
    length = model.config.sequence_len
    forward = compile_model(model, "on" if is_compiled else "off", 1000, num_rows, check.runtime(), length)
    check.synchronize()
    compile_seconds = time.perf_counter() - start
    num_micro_steps = 1 if check.is_dry_run else max(1, ROWS_PER_STEP // num_rows)
    batches = [random_batch(check, model, num_rows) for _ in range(num_micro_steps)]

    def train_step() -> None:
        step(forward, optimizer, batches, Rates(0.01, 0.95), lambda: 0)

    seconds = check.seconds(train_step, repeats=5, warm_up=2)
    num_tokens = num_rows * length * num_micro_steps
    flops = num_tokens * model.estimate_flops() / seconds
    shares = {}
    if peak := peak_flops(check.runtime()):
        shares["mfu"] = flops / peak
    if limits := check.earlier("versions", LIMITS):
        shares["share_of_products"] = flops / (limits["bf16_tflops"] * 1e12)
    check.record(
        case,
        tokens_per_s=num_tokens / seconds,
        **shares,
        step_ms=seconds * 1000,
        micro_batches=num_micro_steps,
        peak_gb=check.peak_memory_gb(),
        compile_s=compile_seconds if is_compiled else 0.0,
    )
    if has_profile:
        record_step_parts(check, case, forward, optimizer, batches)
        record_profile(check, case, model, forward, optimizer, batches)


def random_batch(check: Check, model: GPT, num_rows: int) -> MicroBatch:
    """Return a micro-batch of random tokens on the device."""
    shape = (num_rows, model.config.sequence_len + 1)
    rows = torch.randint(model.config.vocab_size, shape, device=check.device)
    return MicroBatch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), progress=0.0, cursor={})


def record_step_parts(
    check: Check, case: str, forward: Forward, optimizer: Optimizer, batches: Sequence[MicroBatch]
) -> None:
    """Record the time of one forward pass, of forward and backward, and of the optimizer."""
    batch = batches[0]

    def forward_backward() -> None:
        forward(batch.inputs, batch.targets, loss_reduction="sum").backward()

    def forward_only() -> None:
        forward(batch.inputs, batch.targets, loss_reduction="sum")

    values = {
        "forward_ms": check.seconds(forward_only, repeats=3, warm_up=1) * 1000,
        "forward_backward_ms": check.seconds(forward_backward, repeats=3, warm_up=1) * 1000,
        "optimizer_ms": check.seconds(lambda: optimizer.step(0.0, 0.95), repeats=3, warm_up=1) * 1000,
    }
    optimizer.zero_grad()
    check.record(f"{case}, of a micro-batch and a step", **values)


def record_profile(
    check: Check, case: str, model: GPT, forward: Forward, optimizer: Optimizer, batches: Sequence[MicroBatch]
) -> None:
    """Record the time of a step by kind of work, as `--profile` does, and the longest kernels."""
    activities = [ProfilerActivity.CPU]
    if check.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    profiled: StepOptimizer = ProfiledOptimizer(optimizer)
    check.synchronize()
    silence_profiler()
    with torch.profiler.profile(activities=activities) as profile:
        start = time.perf_counter()
        step(forward, profiled, batches, Rates(0.01, 0.95), lambda: 0)
        check.synchronize()
        seconds = time.perf_counter() - start
    is_device = check.device.type == "cuda"
    spans = (device_spans if is_device else host_spans)(profile.events())
    earlier = check.earlier("versions", LIMITS)
    rate, bandwidth = earlier.get("bf16_tflops", math.inf) * 1e12, earlier.get("copy_gb_per_s", math.inf) * 1e9
    num_tokens = sum(batch.inputs.numel() for batch in batches)
    limits = step_limits(model, num_tokens, rate, bandwidth)
    for kind, value in time_by_kind(spans, seconds, is_device).items():
        least = limits.seconds(kind)
        shares = {} if not least or not value else {"of_the_limit": least / value}
        check.record(f"profile, {case}: {kind}", ms=value * 1000, share=value / seconds, **shares)
    milliseconds: Counter[str] = Counter()
    for span in spans:
        milliseconds[span.names[0]] += span.self_time / 1000  # type: ignore[assignment]
    for name, ms in milliseconds.most_common(TOP_KERNELS):
        check.record(f"kernel, {case}: {name[:90]}", ms=float(ms), share=ms / 1000 / seconds)


# --- attention --------------------------------------------------------------------------------------------------------


def check_attention(check: Check) -> None:
    """Attention kernels one by one: the shapes of training, and a decode in which each step is one longer."""
    shape = (2, 2, 32, 32) if check.is_dry_run else (16, 10, 2048, 128)  # (B, H, T, D)
    for backend, name in NAMES.items():
        try:
            with sdpa_kernel(backend):
                time_training_attention(check, name, shape)
        except RuntimeError as error:  # also torch.OutOfMemoryError, for plain mathematics
            check.record(f"training, {name}: not available", reason=str(error).splitlines()[0][:100])
    for is_padded in (False, True):
        case = "padded decode" if is_padded else "decode"
        for backend, name in NAMES.items():
            try:
                with sdpa_kernel(backend):
                    time_growing_decode(check, f"{case}, {name}", is_padded)
            except RuntimeError as error:
                check.record(f"{case}, {name}: not available", reason=str(error).splitlines()[0][:100])
        with varied_shapes(check.device):
            time_growing_decode(check, f"{case}, as the engine does it", is_padded)


def time_training_attention(check: Check, name: str, shape: tuple[int, int, int, int]) -> None:
    """Measure causal attention forward, and forward with backward."""
    batch, heads, length, width = shape
    q, k, v = (torch.randn(shape, device=check.device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    upstream = torch.randn(shape, device=check.device, dtype=torch.bfloat16)

    def attend() -> Tensor:
        return scaled_dot_product_attention(q, k, v, is_causal=True)

    def attend_backward() -> None:
        attend().backward(upstream)
        q.grad = k.grad = v.grad = None

    flops = 2 * batch * heads * length**2 * width  # two products, half of each masked
    forward_s = check.seconds(attend)
    both_s = check.seconds(attend_backward)
    check.record(
        f"training, {name}",
        forward_ms=forward_s * 1000,
        forward_tflops=flops / forward_s / 1e12,
        both_ms=both_s * 1000,
        both_tflops=3.5 * flops / both_s / 1e12,  # the backward pass has five products
    )


def time_growing_decode(check: Check, case: str, is_padded: bool) -> None:
    """Measure steps of one token, each with one more key: with a plan for each shape, each step pays for a plan."""
    rows, heads, width = (2, 2, 32) if check.is_dry_run else (32, 10, 128)
    first = 8 if check.is_dry_run else 600
    num_steps = 3 if check.is_dry_run else 24
    cache = torch.randn(2, rows, heads, first + num_steps, width, device=check.device, dtype=torch.bfloat16)
    q = torch.randn(rows, heads, 1, width, device=check.device, dtype=torch.bfloat16)
    padding = torch.arange(rows, device=check.device)[:, None, None, None] % 7
    times = []
    with torch.no_grad():
        for length in range(first, first + num_steps):
            keys, values = cache[:, :, :, :length]
            mask = torch.arange(length, device=check.device) >= padding if is_padded else None
            check.synchronize()
            start = time.perf_counter()
            scaled_dot_product_attention(q, keys, values, attn_mask=mask)
            check.synchronize()
            times.append((time.perf_counter() - start) * 1000)
    check.record(case, first_ms=times[0], median_ms=statistics.median(times[1:]), largest_ms=max(times[1:]))
