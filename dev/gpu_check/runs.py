"""Whole runs and files on the device: pretraining by its command line, checkpoints, collectives."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from dev.gpu_check.check import Check
from dev.gpu_check.models import TOKENIZER, model_to_time
from nanochat.checkpoint_manager import list_checkpoints, model_meta, open_checkpoint, restore_model
from nanochat.common import UserError
from nanochat.gpt import GPTConfig
from nanochat.optim import build_optimizer
from nanochat.train import LoopState
from nanochat.training.checkpoint_saver import CheckpointSaver

MAX_CURVE_DIFFERENCE = 0.1  # nats per token, mean over the steps: bf16 on the device against float32 on the CPU


# --- pretraining ------------------------------------------------------------------------------------------------------


def check_small_run(check: Check) -> None:
    """Pretraining of a small model by its command line: twice, once stopped and resumed, and on the CPU."""
    base = Path(tempfile.mkdtemp(prefix="gpu_check-run-"))
    try:
        small = check.is_dry_run
        num_steps = 12 if small else 200
        environment = {"NANOCHAT_BASE_DIR": str(base)}
        data = ["--source=storyworld", "-n", "1", f"--docs_per_shard={200 if small else 4000}"]
        run_to_end("nanochat.dataset", data, environment)
        run_to_end("scripts.tok_train", ["--vocab_size=512"], environment)
        shape = ["--depth=1", "--head_dim=32", "--max_seq_len=64", "--total_batch_size=256"]
        if not small:
            shape = ["--depth=4", "--head_dim=64", "--max_seq_len=256", "--total_batch_size=8192"]
        flags = [*shape, f"--num_iterations={num_steps}", "--eval_every=-1", "--eval_tokens=1024", "--sample_every=-1"]
        flags += ["--core_metric_every=-1", f"--save_every={num_steps // 6}"]
        on_device = [*flags, f"--device={check.device.type}"]
        on_cpu = {**environment, "NANOCHAT_DTYPE": "float32"}
        start = time.perf_counter()
        reference = start_program("scripts.base_train", [*flags, "--device=cpu", "--model_tag=cpu"], on_cpu)
        stopped = start_program("scripts.base_train", [*on_device, "--model_tag=stopped"], environment)
        stop_after_save(stopped, base / "base_checkpoints" / "stopped")
        run_to_end("scripts.base_train", [*on_device, "--model_tag=stopped", "--resume"], environment)
        for tag in ("first", "second"):
            run_to_end("scripts.base_train", [*on_device, f"--model_tag={tag}"], environment)
        check.record("time", three_runs_s=time.perf_counter() - start)
        os.kill(reference, signal.SIGTERM)  # it saves, with the losses of the steps that it has taken
        wait_for(reference, {0, 128 + signal.SIGTERM})
        compare_curves(check, base, num_steps)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def start_program(module: str, flags: list[str], environment: dict[str, str]) -> int:
    """Run `python -m module flags` in a fork, which has imported torch already; returns its process id."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        run_program(module, flags, environment)
    return child


def run_program(module: str, flags: list[str], environment: dict[str, str]) -> NoReturn:
    """Run a program in this process and end it."""
    code = 1
    try:
        os.environ.update(environment)
        sys.argv = [module, *flags]
        print(f"--- python -m {module} {' '.join(flags)}", flush=True)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_for(process: int, good_codes: set[int]) -> None:
    """Wait for a program. Raises `UserError` if it ends with another code; its output is in the log."""
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code not in good_codes:
        raise UserError(f"a run ended with exit code {code}: see log.txt")


def run_to_end(module: str, flags: list[str], environment: dict[str, str]) -> None:
    """Run a program. Raises `UserError` if it fails."""
    wait_for(start_program(module, flags, environment), {0})


def stop_after_save(process: int, folder: Path) -> None:
    """Send SIGTERM to a training run as soon as it has saved a checkpoint, and wait for its end."""
    while not list_checkpoints(folder, skip_unreadable=True):
        if os.waitpid(process, os.WNOHANG)[0]:
            raise UserError("a run ended before its first checkpoint: see log.txt")
        time.sleep(0.01)
    os.kill(process, signal.SIGTERM)
    wait_for(process, {128 + signal.SIGTERM})


def losses_of(base: Path, tag: str) -> dict[int, float]:
    """Return the loss of each step of a run, from its last checkpoint."""
    path = open_checkpoint(base / "base_checkpoints" / tag).path
    history: list[dict[str, Any]] = json.loads((path / "meta.json").read_text(encoding="utf-8"))["loop"]["history"]
    return {int(point["step"]): point["loss"] for point in history if "loss" in point}


def compare_curves(check: Check, base: Path, num_steps: int) -> None:
    """Compare the losses of the runs, step by step."""
    curves = {tag: losses_of(base, tag) for tag in ("cpu", "first", "second", "stopped")}
    for tag in ("first", "second", "stopped"):
        check.expect_equal(f"steps of the run: {tag}", len(curves[tag]), num_steps)
    first = curves["first"]
    for tag in ("second", "stopped"):
        differences = [abs(curves[tag][step] - loss) for step, loss in first.items()]
        check.expect(
            f"curve of the {tag} run against the first", max(differences), 0.3, is_bit_equal=max(differences) == 0
        )
    shared = sorted(curves["cpu"].keys() & first.keys())
    difference = sum(abs(curves["cpu"][step] - first[step]) for step in shared) / max(1, len(shared))
    check.expect(
        "curve against the CPU", difference, MAX_CURVE_DIFFERENCE, steps=len(shared), last_loss=first[num_steps]
    )


# --- checkpoints ------------------------------------------------------------------------------------------------------


def check_checkpoint(check: Check) -> None:
    """Save and load of d20 with its optimizer: every weight and every state comes back, and the time it takes."""
    depth, vocab_size = (2, 256) if check.is_dry_run else (20, 65536)
    model = model_to_time(GPTConfig.from_depth(depth, vocab_size=vocab_size, sequence_len=256), check.device)
    runtime = check.runtime()
    optimizer = build_optimizer(model, runtime)
    for param in model.parameters():
        param.grad = torch.full_like(param, 1e-3)
    optimizer.step(0.01, 0.95)
    optimizer.zero_grad()
    folder = Path(tempfile.mkdtemp(prefix="gpu_check-save-"))
    try:
        state = optimizer.state_dict()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        check.synchronize()
        start = time.perf_counter()
        with CheckpointSaver(folder, model, optimizer, model_meta(model, runtime, TOKENIZER), keep_last=-1) as saver:
            saver(LoopState(step=1, progress=0.5))
            returned = time.perf_counter()
            for param in model.parameters():  # the next step of training, while the thread writes
                param.detach().add_(1.0)
        saved = time.perf_counter()
        checkpoint = open_checkpoint(folder)
        size = sum(file.stat().st_size for file in checkpoint.path.iterdir())
        check.record("save", training_waits_s=returned - start, complete_s=saved - start, gb=size / 1e9)
        restored = restore_model(checkpoint, runtime)
        other = build_optimizer(restored, runtime)
        other.load_state_dict(checkpoint.load_optimizer_state())
        check.synchronize()
        check.record("load", seconds=time.perf_counter() - saved)
        weights = zip(before.values(), restored.state_dict().values(), strict=True)
        check.expect_equal("weights", all(torch.equal(a, b) for a, b in weights), True)
        loaded_state = other.state_dict()
        equal = all(torch.equal(state[name], loaded_state[name]) for name in state) and len(state) == len(loaded_state)
        check.expect_equal("optimizer state", equal, True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- collectives ------------------------------------------------------------------------------------------------------


def finish(work: dist.Work | None) -> None:
    """Wait for a collective that was started with `async_op=True`."""
    assert work is not None, "no work although async_op is set"
    work.wait()


def check_collectives(check: Check) -> None:
    """The collectives of the optimizer and of the scripts with one process: NCCL on a GPU, gloo on the CPU."""
    backend = "nccl" if check.device.type == "cuda" else "gloo"
    if check.device.type == "cuda":
        torch.cuda.set_device(check.device)
    device_id = check.device if check.device.type == "cuda" else None
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group(backend, store=store, rank=0, world_size=1, device_id=device_id)
    values = torch.arange(1024, dtype=torch.float32, device=check.device)
    reduced = values.clone()
    finish(dist.all_reduce(reduced, async_op=True))
    check.expect_equal("all_reduce", torch.equal(reduced, values), True)
    shard = torch.empty_like(values)
    finish(dist.reduce_scatter_tensor(shard, values, async_op=True))
    check.expect_equal("reduce_scatter_tensor", torch.equal(shard, values), True)
    whole = torch.empty_like(values)
    finish(dist.all_gather_into_tensor(whole, values, async_op=True))
    check.expect_equal("all_gather_into_tensor", torch.equal(whole, values), True)
    objects = [{"step": 3}]
    dist.broadcast_object_list(objects, src=0, device=device_id)
    check.expect_equal("broadcast_object_list", objects, [{"step": 3}])
    dist.barrier()
    large = torch.ones((1 << 16) if check.is_dry_run else (1 << 28), device=check.device)
    seconds = check.seconds(lambda: dist.all_reduce(large))
    check.record("all_reduce of a GB", gb_per_s=large.numel() * 4 / seconds / 1e9)
    dist.destroy_process_group()
