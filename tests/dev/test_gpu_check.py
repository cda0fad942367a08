"""The check of a GPU: all its parts run on the CPU, its comparisons can fail, and no part's end harms the others."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dev.gpu_check import generation, parity
from dev.gpu_check.check import Check, read_lines, relative_error
from dev.gpu_check.models import random_model
from nanochat.gpt import GPT
from nanochat.inference import native_step
from nanochat.inference.kv_cache import KVCache
from nanochat.inference.tool_use import RowState

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("fastapi", "uvicorn", "starlette", "datasets")  # on the GPU machines that the check is for
PARTS = [
    *(
        "versions",
        "parity",
        "generation",
        "kernels",
        "d20",
        "fp8",
        "d20-fp8",
        "attention",
        "decode",
        "serving",
        "serving-speed",
        "serving-peer",
        "d20-eager",
        "evaluation",
        "d12",
    ),
    *("small-run", "checkpoint", "nccl"),
]


def run(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "NANOCHAT_BASE_DIR": str(folder), "PYTHON": sys.executable, **environment}
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=900)


def statuses(out: Path) -> dict[str, tuple[str, str]]:
    """Status and reason of each part."""
    return {row["part"]: (row["status"], row["reason"]) for row in read_lines(out) if row["name"] == "status"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_parts_run_on_the_cpu(tmp_path: Path) -> None:
    """Without the libraries that a GPU machine may lack, and in tiny sizes."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name in ABSENT:
        (stubs / f"{name}.py").write_text(f"raise ModuleNotFoundError({name!r})", encoding="utf-8")
    out = tmp_path / "out"
    command = ["bash", "dev/gpu_check.sh", "--dry_run", f"--out={out}", "--budget=900"]
    done = run(command, tmp_path, PYTHONPATH=str(stubs))
    log = (out / "log.txt").read_text(encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr + log
    ends = statuses(out)
    assert list(ends) == PARTS
    for part, (status, reason) in ends.items():
        without_gpu = part == "serving-peer" and (status, reason) == ("skipped", "continuous batching needs a GPU")
        without_triton = part == "kernels" and (status, reason) == ("skipped", "Triton is not installed")
        assert status == "ok" or without_gpu or without_triton, (part, reason, log)
    assert {path.name for path in out.iterdir()} == {"results.jsonl", "log.txt", "table.txt"}
    assert (out / "table.txt").read_text(encoding="utf-8") in done.stdout


RUNNER = """
import os, signal, sys, time
from dev.gpu_check import __main__ as runner
from dev.gpu_check.check import Skipped
from dev.gpu_check.__main__ import Config, Part

def good(check):
    check.record("one", value=1)
def bad(check):
    check.expect("error", 2.0, 1.0)
def broken(check):
    raise ValueError("a reason\\nand more")
def crash(check):
    os.kill(os.getpid(), signal.SIGSEGV)
def hang(check):
    if os.fork() == 0:
        time.sleep(100)  # a child hangs too
    check.record("before", value=2)
    time.sleep(100)
def skipped(check):
    raise Skipped("not here")

runner.MIN_SECONDS = 1
functions = (good, bad, broken, crash, hang, skipped, good)
runner.PARTS = tuple(
    Part(f"{function.__name__}{index}", function, 1 if function is hang else 50, function.__name__ == sys.argv[2])
    for index, function in enumerate(functions)
)
runner.main(Config(out=sys.argv[1], budget=40.0))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("must_pass", "exit_code"), [("good", 0), ("crash", 1), ("hang", 1), ("skipped", 1)])
def test_each_part_ends_alone(tmp_path: Path, must_pass: str, exit_code: int) -> None:
    done = run([sys.executable, "-c", RUNNER, str(tmp_path / "out"), must_pass], tmp_path)
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert statuses(tmp_path / "out") == {
        "good0": ("ok", ""),
        "bad1": ("FAILED", "error: 2 instead of at most 1"),
        "broken2": ("FAILED", "ValueError: a reason"),
        "crash3": ("FAILED", "the process ended by signal 11; see log.txt"),
        "hang4": ("timeout", "stopped after 1 s; see what it had measured"),
        "skipped5": ("skipped", "not here"),
        "good6": ("ok", ""),
    }
    assert {"part": "hang4", "name": "before", "value": 2} in read_lines(tmp_path / "out")


@pytest.mark.slow
def test_no_part_begins_without_time(tmp_path: Path) -> None:
    command = ["bash", "dev/gpu_check.sh", "--dry_run", "--only=versions", "--budget=1", f"--out={tmp_path}"]
    done = run(command, tmp_path)
    assert done.returncode == 0
    assert statuses(tmp_path) == {"versions": ("skipped", "no time was left")}
    done = run(["bash", "dev/gpu_check.sh", "--only=parity,sprint"], tmp_path)
    assert done.returncode == 2
    assert "no part 'sprint': choose from versions, parity" in done.stderr


# --- comparisons ------------------------------------------------------------------------------------------------------


def make_check(tmp_path: Path) -> Check:
    return Check("part", tmp_path, is_dry_run=True)


def test_expectations(tmp_path: Path) -> None:
    check = make_check(tmp_path)
    check.expect("good", 1.0, 1.0)
    check.expect_equal("same", [1], [1])
    assert check.failures == []
    check.expect("not a number", math.nan, 1.0)
    check.expect_equal("different", 1, 2)
    assert check.failures == ["not a number: nan instead of at most 1", "different: 1 instead of 2"]
    assert [row["ok"] for row in read_lines(tmp_path)] == [True, True, False, False]
    assert check.earlier("part", "same") == {"part": "part", "name": "same", "ok": True}
    assert check.earlier("part", "absent") == {}
    assert json.loads((tmp_path / "results.jsonl").read_text(encoding="utf-8").splitlines()[0])["error"] == 1.0


def test_relative_error_by_hand() -> None:
    assert relative_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0])) == pytest.approx(0.1)
    assert math.isnan(relative_error(torch.tensor([math.nan]), torch.tensor([1.0])))


@pytest.mark.parametrize("fault", ["none", "one weight differs", "no causal mask"])
def test_training_faults_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    check = make_check(tmp_path)
    config = parity.model_config(is_dry_run=True, is_grouped=True)
    idx = torch.randint(config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    reference = random_model(config, parity.CPU, torch.float32)
    loss = parity.gradients(reference, reference, idx, idx)
    model = random_model(config, parity.CPU, torch.float32)
    if fault == "one weight differs":
        with torch.no_grad():
            model.blocks[0].attn.o_proj.weight[0, 0] += 0.5  # type: ignore[union-attr, operator]
    elif fault == "no causal mask":
        plain = torch.nn.functional.scaled_dot_product_attention

        def attention(*args: Any, is_causal: bool, **kwargs: Any) -> torch.Tensor:
            return plain(*args, is_causal=not is_causal, **kwargs)

        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    parity.compare(check, "case", model, model, reference, loss, idx, idx)
    if fault == "none":
        parity.compare_step(check, "step", model, reference)
    assert bool(check.failures) == (fault != "none"), check.failures


def shift_positions(positions: Callable[..., Any]) -> Callable[..., Any]:
    """The cache's positions, later by one for all tokens but those of the prefill."""

    def shifted(cache: KVCache, count: int) -> Any:
        correct = positions(cache, count)
        if isinstance(correct, slice):
            return slice(correct.start + 1, correct.stop + 1) if correct.start else correct
        return correct + 1

    return shifted


@pytest.mark.parametrize("fault", ["none", "positions", "mask of the tool"])
def test_generation_faults_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    check = make_check(tmp_path)
    monkeypatch.setattr(native_step, "is_available", lambda: False)  # GPUs decode in a `DecodeBatch`
    if fault == "positions":
        monkeypatch.setattr(KVCache, "positions", shift_positions(KVCache.positions))
    elif fault == "mask of the tool":
        append = RowState.append

        def append_as_sampled(row: RowState, sampled: int) -> None:
            append(row, sampled)
            row.mask[-1] = 1

        monkeypatch.setattr(RowState, "append", append_as_sampled)
    config = generation.GPTConfig(64, 270, n_layer=2, n_head=2, n_kv_head=1, n_embd=32)
    generation.compare_generation(check, "case", config, torch.float32)
    generation.check_calculator(check, torch.float32)
    assert bool(check.failures) == (fault != "none"), check.failures
    assert any("calculator" in failure for failure in check.failures) == (fault == "mask of the tool")


def test_models_are_equal_everywhere() -> None:
    """The same weights for every dtype, none of them 0, so that each part of the model takes part in a comparison."""
    config = parity.model_config(is_dry_run=True, is_grouped=False)

    def weights(model: GPT) -> list[torch.Tensor]:
        return [param.detach() for param in model.parameters()]

    first = weights(random_model(config, parity.CPU, torch.float32))
    second = weights(random_model(config, parity.CPU, torch.bfloat16))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(weight.count_nonzero() == weight.numel() for weight in first)
