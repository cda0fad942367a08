"""Profiles: names of real kernels by kind, times that add up, limits by hand, and a traced run on the CPU."""

from __future__ import annotations

import re
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nanochat.dataloader import MicroBatch
from nanochat.optim import build_optimizer
from nanochat.train import WARM_UP_STEPS, LoopState, Rates, train
from nanochat.training.profile import (
    ATTENTION,
    ELEMENTWISE,
    MATRIX,
    OPTIMIZER,
    OTHER,
    PREFIX,
    ROLLOUTS,
    WAITS,
    Limits,
    Span,
    StepProfiler,
    device_spans,
    kind_of,
    step_limits,
    table,
    time_by_kind,
)
from tests.support.models import random_model
from tests.support.training import CPU

CUDA = SimpleNamespace(name="CUDA")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNT", MATRIX),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_relu_bf16_256x128_32x3_nn_align8>", MATRIX),
        (
            "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1",
            MATRIX,
        ),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>", MATRIX),
        ("aten::addmm", MATRIX),
        ("aten::_scaled_mm", MATRIX),
        ("mkldnn::_linear_pointwise", MATRIX),
        ("void pytorch_flash::flash_fwd_kernel<pytorch_flash::Flash_fwd_kernel_traits<128, 64, 64, 4>>", ATTENTION),
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel)", ATTENTION),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_6_128x128x128", ATTENTION),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", ATTENTION),
        ("triton_red_fused__log_softmax_mul_tanh_3", "loss"),
        ("aten::nll_loss_forward", "loss"),
        ("triton_poi_fused_mul_relu_square_0", ELEMENTWISE),
        ("triton_per_fused__to_copy_add_mean_1", ELEMENTWISE),
        ("graph_0_cpp_fused_add_mul_0", ELEMENTWISE),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>", ELEMENTWISE),
        ("aten::mul", ELEMENTWISE),
        ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)", "communication"),
        ("ncclKernel_AllGather_RING_LL_Sum_int8_t", "communication"),
        ("gloo:all_reduce", "communication"),
        ("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda>", "casts and copies"),
        ("Memcpy DtoD (Device -> Device)", "casts and copies"),
        ("Memcpy HtoD (Pinned -> Device)", "data"),
        ("Memcpy DtoH (Device -> Pageable)", WAITS),
        ("aten::_local_scalar_dense", WAITS),
        ("cudaStreamSynchronize", WAITS),
        ("Torch-Compiled Region: 0/0", OTHER),
        (PREFIX + "forward", OTHER),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    """Alone, and inside of an optimizer's step, to which all of its work belongs."""
    assert kind_of([name]) == kind
    assert kind_of([name, "Torch-Compiled Region: 0/0", PREFIX + "forward"]) == kind
    assert kind_of([name, PREFIX + OPTIMIZER]) == OPTIMIZER
    assert kind_of([name, PREFIX + ROLLOUTS]) == ROLLOUTS


def test_a_copy_belongs_to_what_it_is_part_of() -> None:
    assert kind_of(["aten::copy_", "aten::_to_copy", "aten::to"]) == "casts and copies"
    assert kind_of(["aten::view", "aten::matmul"]) == ELEMENTWISE
    assert kind_of(["aten::fill_", "aten::mm"]) == MATRIX


def test_times_of_operations_add_up_to_the_step() -> None:
    spans = [
        Span(["aten::mm", PREFIX + "forward"], 0, 400, 400),
        Span([PREFIX + "forward"], 0, 600, 200),
        Span(["aten::add"], 600, 700, 100),
    ]
    times = time_by_kind(spans, seconds=1e-3, is_device=False)
    assert sum(times.values()) == pytest.approx(1e-3)
    assert (times[MATRIX], times[ELEMENTWISE], times[OTHER]) == pytest.approx((4e-4, 1e-4, 5e-4))


def test_a_device_waits_for_the_host_where_no_kernel_runs() -> None:
    """Kernels of two streams overlap: that time counts once."""
    spans = [
        Span(["nvjet_hsh_128x256"], 0, 400, 400),
        Span(["ncclDevKernel_AllGather"], 300, 500, 200),
        Span(["triton_poi_fused_add_0"], 700, 800, 100),
    ]
    times = time_by_kind(spans, seconds=1e-3, is_device=True)
    assert times[WAITS] == pytest.approx(4e-4)  # 200 between the kernels, 200 after the last
    assert times["communication"] == pytest.approx(2e-4)


def test_kernels_belong_to_the_regions_on_the_device() -> None:
    def event(name: str, start: float, end: float, is_annotation: bool = False) -> Any:
        return SimpleNamespace(
            name=name,
            time_range=SimpleNamespace(start=start, end=end),
            device_type=CUDA,
            is_user_annotation=is_annotation,
        )

    region = event(PREFIX + OPTIMIZER, 100, 200, True)
    before = event("nvjet_1", 50, 90)
    inside = event("nvjet_2", 110, 190)
    spans = device_spans([region, before, inside, event("Torch-Compiled Region", 0, 99, True)])
    assert [kind_of(span.names) for span in spans] == [MATRIX, OPTIMIZER]


def test_limits_by_hand() -> None:
    """One layer of width 16: 12 x 16 x 16 weights of the block and a head of 320 x 16."""
    model = random_model(8)
    block, table_size = 12 * 16 * 16, 320 * 16
    limits = step_limits(model, tokens=100, rate=1e9, bandwidth=1e6)
    assert limits.flops[MATRIX] == 6 * (block + table_size) * 100
    assert limits.flops[ATTENTION] == 6 * 16 * 8 * 100
    assert limits.flops[MATRIX] + 2 * limits.flops[ATTENTION] == model.estimate_flops() * 100
    assert limits.num_bytes[OPTIMIZER] == 4 * (5 * block + 7 * 2 * table_size)
    square, wide = 4 * 16**3 + 2 * 16**3, 4 * 16 * 16 * 64 + 2 * 16**3  # gram, its square, and the product with X
    assert limits.flops[OPTIMIZER] == 5 * (4 * square + 2 * wide)
    assert limits.seconds(OPTIMIZER) == limits.flops[OPTIMIZER] / 1e9 + limits.num_bytes[OPTIMIZER] / 1e6
    assert limits.seconds("loss") is None


def test_table() -> None:
    limits = Limits({MATRIX: 3e9}, {}, matrix_rate=1e12, bandwidth=2e10)
    lines = table({MATRIX: 0.012, "loss": 0.004, "data": 0.0}, num_steps=2, seconds=0.02, limits=limits).splitlines()
    assert [line.split() for line in lines[1:4]] == [
        ["matrix", "products", "6.00", "60.0%", "50.0%"],
        ["loss", "2.00", "20.0%"],
        ["step", "10.00"],
    ]
    assert lines[4] == "limits: 1.00 TFLOP/s in a large matrix product, 20 GB/s in a large copy"


def run(profiler: StepProfiler, model: Any, optimizer: Any, num_steps: int) -> LoopState:
    ids = torch.arange(16).view(2, 8)
    batches = (MicroBatch(ids, ids, progress=step / num_steps, cursor={}) for step in range(num_steps))
    with profiler:
        return train(
            profiler.forward(model),
            profiler.optimizer(optimizer),
            profiler.batches(batches),
            schedule=lambda _: Rates(1.0, 0.9),
            events=profiler.events(),
            num_micro_steps=1,
            log=lambda *_: None,
            state=LoopState(),
        )


@pytest.fixture
def slow_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose speed need not be measured."""
    monkeypatch.setattr("nanochat.training.profile.matrix_rate", lambda *_: 1e9)
    monkeypatch.setattr("nanochat.training.profile.memory_bandwidth", lambda *_: 1e9)


@pytest.mark.usefixtures("slow_device")
def test_profile_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    """The table has every kind of work of an uncompiled run; the weights are those without a profile."""
    weights = []
    for num_steps in (0, 2):
        model = random_model(8)
        optimizer = build_optimizer(model, CPU)
        profiler = StepProfiler(num_steps, model, optimizer, tokens=16)
        assert run(profiler, model, optimizer, WARM_UP_STEPS + 4).step == WARM_UP_STEPS + 4
        weights.append(model.head.weight.detach())
    assert torch.equal(*weights)
    lines = capsys.readouterr().out.splitlines()
    shares = {}
    for line in lines[1:-2]:
        name, _, numbers = line.partition("  ")
        shares[name] = float(numbers.split()[1].rstrip("%"))
    assert {MATRIX, ATTENTION, ELEMENTWISE, "loss", OPTIMIZER, "casts and copies", OTHER} <= shares.keys()
    assert sum(shares.values()) == pytest.approx(100, abs=2)


@pytest.mark.usefixtures("slow_device")
def test_phases_of_rl(capsys: pytest.CaptureFixture[str]) -> None:
    """Work in the rollouts has its own row; the limits are those of the tokens that the update is trained on."""
    model = random_model(8)
    optimizer = build_optimizer(model, CPU)
    profiler = StepProfiler(2, model, optimizer, tokens=None)
    ids = torch.arange(12).view(3, 4)

    def collect(step: int) -> int:
        with torch.inference_mode():
            model(ids)
        time.sleep(0.002)
        return step

    rollouts = profiler.rollouts(collect)
    [event] = profiler.events()
    with profiler:
        event.run(LoopState())  # before the first step
        for step in range(1, WARM_UP_STEPS + 3):
            assert rollouts(step) == step
            model(ids, ids, loss_reduction="sum").backward()
            event.run(LoopState(step=step))
            optimizer.zero_grad()
    assert profiler.counted == [2 * 12, 2 * 12 * 4]
    lines = capsys.readouterr().out.splitlines()
    rows = {line.partition("  ")[0]: line.split() for line in lines}
    assert float(rows["rollouts"][1]) >= 2
    assert {MATRIX, ATTENTION, "loss"} <= rows.keys()
    phases = re.fullmatch(r"phases: rollouts (.+) ms \((.+)%\), update (.+) ms \((.+)%\)", lines[-1])
    assert phases
    rollout_ms, rollout_share, update_ms, update_share = map(float, phases.groups())
    assert rollout_ms + update_ms == pytest.approx(float(rows["step"][1]), abs=0.02)
    assert rollout_share + update_share == pytest.approx(100, abs=0.2)
    assert rollout_ms >= float(rows["rollouts"][1]) - 0.01


@pytest.mark.usefixtures("slow_device")
def test_a_run_that_is_too_short(capsys: pytest.CaptureFixture[str]) -> None:
    model = random_model(8)
    optimizer = build_optimizer(model, CPU)
    run(StepProfiler(5, model, optimizer, tokens=16), model, optimizer, WARM_UP_STEPS + 2)
    assert "No profile" in capsys.readouterr().out
