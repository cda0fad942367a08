"""The optimizer on 1, 2 and 3 real processes, against a float64 reference that updates each parameter alone."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.common import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import Optimizer, OptimSettings, ParamGroup, build_optimizer
from nanochat.runtime import Runtime
from tests.support.processes import Forker

ROOT = Path(__file__).resolve().parent.parent
STEPS = 20
HALF = STEPS // 2
ROWS = 6
SETTINGS = OptimSettings(embedding_lr=0.05, weight_decay=0.05, grad_clip=0.5)
# Largest difference of any weight after 20 steps, in which weights change by up to 1.2; by the precision of Muon's
# matrix products. For bfloat16 the bound is one step of Muon at its learning rate of 0.02 (0.004 was measured).
TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 0.02}


class Toy(nn.Module):
    """A model with every case that sharding must handle. It has 25 columns, divisible by neither 2 nor 3.

    Three tall and three wide matrices (stacks not divisible by 2), two square ones, tables under 1,024 elements, and
    larger tables of 2,525 elements, divisible by neither 2 nor 3.
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(shape, generator=generator) * shape[-1] ** -0.5)

        self.config = SimpleNamespace(n_embd=192)
        self.embed, self.position, self.gain = weight(101, 25), weight(7, 25), weight(25)
        self.up = nn.ParameterList([weight(50, 25) for _ in range(3)])
        self.down = nn.ParameterList([weight(25, 50) for _ in range(3)])
        self.square = nn.ParameterList([weight(25, 25) for _ in range(2)])
        self.head = weight(101, 25)

    def param_groups(self) -> list[ParamGroup]:
        kinds = {"embed": "embedding", "position": "embedding", "gain": "embedding", "head": "head"}
        named = list(self.named_parameters())
        return [
            ParamGroup(kind, [(n, p) for n, p in named if kinds.get(n.split(".")[0], "matrix") == kind])
            for kind in ("matrix", "embedding", "head")
        ]

    def forward(self, idx: Tensor, targets: Tensor) -> Tensor:
        x = (self.embed[idx] + self.position) * (1 + self.gain)  # (B, 7, 25)
        for up, down in zip(self.up, self.down, strict=True):
            x = x + torch.tanh(x @ up.T) @ down.T
        for square in self.square:
            x = x + torch.tanh(x @ square.T)
        return F.cross_entropy((x @ self.head.T).flatten(0, 1), targets.flatten())


def _batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    tokens = torch.randint(101, (ROWS, 8), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def _schedule(step: int) -> tuple[float, float]:
    """(lr_multiplier, momentum): both change from step to step."""
    return 1 - step / 40, 0.85 + step / 200


def _runtime(rank: int = 0, world_size: int = 1, dtype: torch.dtype = torch.float32) -> Runtime:
    cpu = torch.device("cpu")
    return Runtime(rank=rank, local_rank=rank, world_size=world_size, device=cpu, compute_dtype=dtype, seed=0)


def _train(
    model: Toy, optimizer: Optimizer, steps: range, rank: int = 0, world_size: int = 1, overlap: bool = True
) -> list[float]:
    """Take steps on this process's rows, one micro-step for each row. Return the norms before clipping."""
    num_rows = ROWS // world_size
    rows = slice(rank * num_rows, (rank + 1) * num_rows)
    norms = []
    for step in steps:
        idx, targets = (tensor[rows] for tensor in _batch(step))
        optimizer.zero_grad()
        for row in range(num_rows):
            if overlap and row == num_rows - 1:
                optimizer.overlap_next_backward()
            (model(idx[row : row + 1], targets[row : row + 1]) / num_rows).backward()
        norms.append(float(optimizer.step(*_schedule(step))))
    return norms


def _weights(model: Toy) -> dict[str, Tensor]:
    return {name: param.detach().clone() for name, param in model.named_parameters()}


def one_process(folder: Path) -> None:
    """Train in each precision, save and load half way, and resume from the state that 2 processes saved."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)  # as in every run on a CPU
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world_size > 1:
        dist.init_process_group("gloo")
    results: dict[str, Any] = {}
    for precision in TOLERANCE:
        model = Toy().to(torch.float64 if precision == "float64" else torch.float32)
        runtime = _runtime(rank, world_size, torch.bfloat16 if precision == "bfloat16" else torch.float32)
        optimizer = build_optimizer(model, runtime, SETTINGS)
        norms = _train(model, optimizer, range(HALF), rank, world_size)
        saved = {"weights": _weights(model), "state": optimizer.state_dict()}
        if world_size == 2 and rank == 0:
            torch.save(saved, folder / f"half_{precision}.pt")
        norms += _train(model, optimizer, range(HALF, STEPS), rank, world_size)
        results[precision] = {"weights": _weights(model), "norms": norms, "state": optimizer.state_dict()}
        if world_size > 1:
            dist.barrier()  # until the file is complete
        half = torch.load(folder / f"half_{precision}.pt")
        model.load_state_dict(half["weights"])
        optimizer = build_optimizer(model, runtime, SETTINGS)
        optimizer.load_state_dict(half["state"])
        results[precision]["reloaded_state"] = optimizer.state_dict()
        _train(model, optimizer, range(HALF, STEPS), rank, world_size)
        results[precision]["resumed"] = _weights(model)
        shards = [shard for bucket in optimizer.buckets for shard in bucket.state.values()]
        results[precision]["state_numel"] = sum(shard.numel() for shard in shards)
    modes = ("none", "backward", "shuffled") if world_size > 1 else ("none", "backward")
    results["overlap"] = {mode: _overlapping_run(rank, world_size, mode) for mode in modes}
    torch.save(results, folder / f"world{world_size}_rank{rank}.pt")
    if world_size > 1:
        dist.destroy_process_group()


def _overlapping_run(rank: int, world_size: int, overlap: str) -> dict[str, Any]:
    """Take three steps that start their reductions in `step` ("none"), in the backward pass, or when the gradients are
    reported in an order that differs from process to process ("shuffled").

    Returns weights, norms and the number of reductions that had started before each `step`.
    """
    model = Toy()
    optimizer = build_optimizer(model, _runtime(rank, world_size), SETTINGS)
    num_started = []
    plain_step = optimizer.step

    def step(*rates: float) -> Tensor:
        if overlap == "shuffled":
            optimizer.overlap_next_backward()
            params = list(model.parameters())
            for index in torch.randperm(len(params), generator=torch.Generator().manual_seed(rank)):
                optimizer.reductions._on_gradient(params[index])
        num_started.append(optimizer.reductions.num_started)
        return plain_step(*rates)

    optimizer.step = step  # type: ignore[method-assign]
    norms = _train(model, optimizer, range(3), rank, world_size, overlap == "backward")
    return {"weights": _weights(model), "norms": norms, "num_started": num_started}


@dataclass
class Runs:
    """Results of the processes, `[world size][rank][precision]`, and the state that 2 of them saved half way."""

    results: dict[int, list[dict[str, Any]]]
    half: dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def runs(forker: Forker, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("optim")
    for world_size in (2, 1, 3):  # 2 first: the others resume from its state
        # Without AMX: on some machines that advertise it, its instructions are illegal.
        forker.run_ranks(one_process, folder, world_size, ONEDNN_MAX_CPU_ISA="AVX512_CORE_BF16")
    results = {n: [torch.load(folder / f"world{n}_rank{rank}.pt") for rank in range(n)] for n in (1, 2, 3)}
    return Runs(results, {precision: torch.load(folder / f"half_{precision}.pt") for precision in TOLERANCE})


def _distance(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def _reference(model: Toy) -> tuple[dict[str, Tensor], list[float]]:
    """Train in float64 on the whole batch, each parameter alone, by the papers' formulas. Return weights and norms."""
    model = copy.deepcopy(model).double()
    named_params = list(model.named_parameters())
    rates = {"embed": 0.05 * 2, "position": 0.05 * 2, "gain": 0.05 * 2, "head": 0.004 * 2}  # (192 / 768)^-0.5 = 2
    first = {name: torch.zeros_like(param) for name, param in named_params}
    second = {name: torch.zeros_like(param) for name, param in named_params}
    norms = []
    for step in range(STEPS):
        model.zero_grad()
        model(*_batch(step)).backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), SETTINGS.grad_clip)))
        multiplier, momentum = _schedule(step)
        for name, param in named_params:
            assert param.grad is not None
            m, v, grad, weight = first[name], second[name], param.grad, param.data
            if name in rates:
                m.copy_(0.8 * m + 0.2 * grad)
                v.copy_(0.95 * v + 0.05 * grad**2)
                update = (m / (1 - 0.8 ** (step + 1))) / ((v / (1 - 0.95 ** (step + 1))) ** 0.5 + 1e-10)
                weight -= rates[name] * multiplier * (update + 0.05 * weight)
            else:
                m.copy_(momentum * m + (1 - momentum) * grad)
                mixed = momentum * m + (1 - momentum) * grad
                u, s, vt = torch.linalg.svd(mixed / (mixed.square().sum().sqrt() + 1e-7), full_matrices=False)
                for _ in range(5):
                    s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
                weight -= 0.02 * multiplier * max(1, len(weight) / weight.size(1)) ** 0.5 * (u * s) @ vt
    return {name: param.detach() for name, param in named_params}, norms


@pytest.mark.slow
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_equals_the_reference(runs: Runs, world_size: int, precision: str) -> None:
    """Weights, and norms before clipping, of the same run on 1, 2 and 3 processes and in the reference."""
    weights, norms = _reference(Toy())
    assert min(norms) > SETTINGS.grad_clip  # every step is clipped
    for result in runs.results[world_size]:
        assert _distance(result[precision]["weights"], weights) < TOLERANCE[precision]
        torch.testing.assert_close(result[precision]["norms"], norms, rtol=TOLERANCE[precision], atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_agree(runs: Runs, world_size: int, precision: str) -> None:
    """Processes agree with each other bit for bit, and with a single process up to rounding."""
    first, *others = (result[precision] for result in runs.results[world_size])
    for other in others:
        assert _distance(first["weights"], other["weights"]) == 0
        assert first["norms"] == other["norms"]
        assert other["state"] == {}
    assert _distance(first["weights"], runs.results[1][0][precision]["weights"]) < TOLERANCE[precision]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_overlapping_changes_nothing(runs: Runs, world_size: int) -> None:
    """Bit for bit, and whatever the order in which the processes complete their gradients."""
    for result in runs.results[world_size]:
        plain = result["overlap"]["none"]
        for overlap, other in result["overlap"].items():
            assert _distance(other["weights"], plain["weights"]) == 0
            assert other["norms"] == plain["norms"]
            # Six large matrices, the two small ones together, two tables, and the small tables together.
            assert other["num_started"] == [0 if overlap == "none" or world_size == 1 else 10] * 3


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_each_process_keeps_its_shard(runs: Runs, world_size: int) -> None:
    """A shard of the tall and the wide stack and of the two tables, and the whole state of the small parameters."""
    matrices, numbers = math.ceil(3 / world_size), math.ceil(101 * 25 / world_size)
    expected = 2 * matrices * (50 * 25) + 2 * 25 * 25 + 2 * (2 * numbers + 7 * 25 + 25)
    assert [result["float32"]["state_numel"] for result in runs.results[world_size]] == [expected] * world_size


@pytest.mark.slow
def test_state_is_unsharded_and_by_name(runs: Runs) -> None:
    state = runs.half["float32"]["state"]
    moments = {
        "momentum": ("up.", "down.", "square."),
        "exp_avg": ("e", "p", "g", "h"),
        "exp_avg_sq": ("e", "p", "g", "h"),
    }
    shapes = {name: param.shape for name, param in Toy().named_parameters()}
    expected = {
        f"{n}.{key}": shape for key, starts in moments.items() for n, shape in shapes.items() if n.startswith(starts)
    }
    assert {name: tensor.shape for name, tensor in state.items()} == {**expected, "step": torch.Size()}
    assert int(state["step"]) == HALF
    assert all(tensor.is_contiguous() and tensor.device.type == "cpu" for tensor in state.values())
    assert all(tensor.dtype == torch.float32 for name, tensor in state.items() if name != "step")


@pytest.mark.slow
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_resumes_from_the_state_of_two_processes(runs: Runs, world_size: int, precision: str) -> None:
    result = runs.results[world_size][0][precision]
    assert _distance(result["reloaded_state"], runs.half[precision]["state"]) == 0
    uninterrupted = runs.results[2][0][precision]["weights"]
    assert _distance(result["resumed"], uninterrupted) <= (0 if world_size == 2 else TOLERANCE[precision])


def _toy_optimizer(**settings: Any) -> tuple[Toy, Optimizer]:
    model = Toy()
    return model, build_optimizer(model, _runtime(), OptimSettings(**settings))


def test_two_runs_are_equal_bit_for_bit() -> None:
    results = []
    for _ in range(2):
        model, optimizer = _toy_optimizer()
        _train(model, optimizer, range(5))
        results.append(_weights(model) | optimizer.state_dict())
    assert _distance(*results) == 0


def test_state_is_a_copy() -> None:
    model, optimizer = _toy_optimizer()
    _train(model, optimizer, range(1))
    state = optimizer.state_dict()
    before = copy.deepcopy(state)
    _train(model, optimizer, range(1, 2))
    assert _distance(state, before) == 0


def test_small_gradients_are_not_clipped() -> None:
    """Clipping leaves norms below `grad_clip` alone, and 0 disables it."""
    results = []
    for grad_clip in (0.0, 1e6, 1e-3):
        model, optimizer = _toy_optimizer(grad_clip=grad_clip)
        _train(model, optimizer, range(3))
        results.append(optimizer.state_dict())
    assert _distance(results[0], results[1]) == 0
    assert _distance(results[0], results[2]) > 0


def test_a_multiplier_of_zero_changes_nothing() -> None:
    model, optimizer = _toy_optimizer()
    before = _weights(model)
    model(*_batch(0)).backward()
    optimizer.step(0.0, 0.9)
    assert _distance(before, _weights(model)) == 0


def test_a_missing_gradient_is_named() -> None:
    model, optimizer = _toy_optimizer()
    model(*_batch(0)).backward()
    model.down[1].grad = None
    with pytest.raises(AssertionError, match=r"down\.1 has no gradient"):
        optimizer.step(1.0, 0.9)


def test_every_parameter_needs_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    param_groups = Toy.param_groups
    cases: list[tuple[str, Callable[[list[ParamGroup]], list[ParamGroup]]]] = [
        ("no group holds head", lambda groups: groups[:2]),
        ("head is in two groups", lambda groups: [*groups, groups[2]]),
        ("no update rule for parameters of the kind 'scalar'", lambda groups: [ParamGroup("scalar", groups[0].params)]),
    ]
    for message, change in cases:
        monkeypatch.setattr(Toy, "param_groups", lambda self, change=change: change(param_groups(self)))
        with pytest.raises(AssertionError, match=message):
            _toy_optimizer()


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_a_state_of_another_model_is_refused(change: str) -> None:
    model, optimizer = _toy_optimizer()
    _train(model, optimizer, range(1))
    before = optimizer.state_dict()
    state = dict(before)
    if change == "missing":
        del state["head.exp_avg"]
    elif change == "extra":
        state["up.3.momentum"] = torch.zeros(50, 25)
    else:
        state["embed.exp_avg_sq"] = torch.zeros(99, 25)
    name = {"missing": "head.exp_avg is absent", "extra": "up.3.momentum is", "shape": r"is \(99, 25\), expected \(101"}
    with pytest.raises(UserError, match=name[change]):
        optimizer.load_state_dict(state)
    assert _distance(optimizer.state_dict(), before) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"matrix_lr": -0.1}, "matrix_lr is -0.1"),
        ({"grad_clip": float("nan")}, "grad_clip is nan"),
        ({"betas": (0.9, 1.0)}, "betas are"),
        ({"eps": 0.0}, "eps is 0.0"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        OptimSettings(**settings)


def test_bfloat16_tables_keep_float32_moments() -> None:
    model = Toy()
    model.embed.data = model.embed.data.bfloat16()
    optimizer = build_optimizer(model, _runtime())
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    before = model.embed.detach().clone()
    optimizer.step(1.0, 0.9)
    assert model.embed.dtype == torch.bfloat16
    assert not torch.equal(model.embed, before)
    assert optimizer.state_dict()["embed.exp_avg_sq"].dtype == torch.float32


def test_update_functions_are_compiled_once_for_each_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """New learning rates, momenta and steps need no recompilation, and the weights equal those of the eager mode."""
    graphs: list[Any] = []

    def count(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=count))
    model, plain = Toy(), Toy()
    optimizer = build_optimizer(model, _runtime(), SETTINGS, compiled=True)
    _train(model, optimizer, range(2))
    # Tall, wide and square matrices; both tables, which have one size; the small tables together.
    assert len(graphs) == 5
    _train(model, optimizer, range(2, 6))
    assert len(graphs) == 5
    _train(plain, build_optimizer(plain, _runtime(), SETTINGS), range(6))
    assert _distance(_weights(model), _weights(plain)) < TOLERANCE["float32"]


def test_learning_rates_of_the_models_groups() -> None:
    """At the first step AdamW changes each number by its learning rate, and Muon each matrix by a known norm."""
    model = GPT(GPTConfig(sequence_len=8, vocab_size=64, n_layer=2, n_head=2, n_kv_head=1, n_embd=48))
    for param in model.parameters():
        param.data.zero_()
        param.grad = torch.ones_like(param)
    build_optimizer(model, _runtime()).step(0.5, 0.9)
    param_of = dict(model.named_parameters())
    groups = {group.kind: [name for name, _ in group.params] for group in model.param_groups()}
    width_factor = (48 / 768) ** -0.5
    for kind, lr in (("embedding", 0.2 * width_factor), ("head", 0.004 * width_factor)):
        for name in groups[kind]:
            torch.testing.assert_close(param_of[name], torch.full_like(param_of[name], -0.5 * lr))
    for name in groups["matrix"]:  # a matrix of ones has one singular value, which becomes about 0.7
        rows, columns = param_of[name].shape
        norm = 0.7 * 0.5 * 0.02 * max(1, rows / columns) ** 0.5
        assert float(param_of[name].detach().norm()) == pytest.approx(norm, rel=0.1)
