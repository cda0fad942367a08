"""base_train: refused command lines, the horizon, and a run that learns."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.checkpoint_manager import list_steps, load_model, open_checkpoint
from nanochat.configurator import cli, parse
from nanochat.data.shards import write_dataset
from nanochat.gpt import GPT
from nanochat.runtime import Runtime
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer
from nanochat.training.events import bpb_evaluator
from nanochat.training.settings import scheduled_rates
from scripts import base_train
from scripts.base_train import Config, main
from tests.support.processes import Forker
from tests.support.talks import TOKENIZER

ROOT = Path(__file__).resolve().parents[2]
VERSE = "the cat sat on the mat and the dog sat by the door; "
TINY = ("--depth=1", "--head_dim=32", "--max_seq_len=32", "--total_batch_size=256", "--sample_every=-1")


def prepare(folder: Path, texts: Sequence[str] = (VERSE * 20,) * 20) -> None:
    """Save a tokenizer of bytes and a data set in a base folder."""
    TOKENIZER.save(folder / "tokenizer")
    write_dataset(texts, texts[:1], folder / "base_data", source="verse")


# --- refused settings -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_device")
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--depth=four"], ["depth", "four", "int"]),
        (["--matrix_lr=fast"], ["matrix_lr", "fast", "float"]),
        (["--resume=perhaps"], ["resume", "perhaps", "true|false"]),
        (["--dept=4"], ["--dept=4", "--depth"]),
        (["--total_batch=512"], ["--total_batch=512", "--total_batch_size"]),
        (["--colour=red"], ["--colour=red", "--help"]),
        (["nonsense"], ["nonsense", "--help"]),
        (["absent.toml"], ["absent.toml"]),
        (["--depth"], ["--depth", "--help"]),
        (["--depth=0"], ["depth is 0", "at least 1", "layers"]),
        (["--max_seq_len=0"], ["max_seq_len is 0"]),
        (["--eval_tokens=-5"], ["eval_tokens is -5"]),
        (["--eval_every=0"], ["eval_every is 0", "-1"]),
        (["--save_every=-2"], ["save_every is -2", "-1"]),
        (["--resume_from_step=-2"], ["resume_from_step is -2"]),
        (["--head_dim=33"], ["33", "even"]),
        (["--head_dim=0"], ["head_dim is 0", "at least 2"]),
        (["--depth=4", "--head_dim=64", "--n_kv_head=3"], ["n_kv_head 3", "n_head 4", "[1, 2, 4]"]),
        (["--n_kv_head=0"], ["n_kv_head is 0"]),
        (["--softcap=0.5"], ["softcap is 0.5", "from 1.0 to 64.0, or 0", "none"]),
        (["--softcap=-15"], ["softcap is -15.0"]),
        (["--softcap=inf"], ["softcap is inf"]),
        (["--warmdown_ratio=1.5"], ["warmdown_ratio is 1.5", "0 to 1"]),
        (["--matrix_lr=-1"], ["matrix_lr is -1.0"]),
        (["--target_flops=0"], ["target_flops is 0.0", "above 0, or -1"]),
        (["--grad_clip=inf"], ["grad_clip is inf"]),
        (["--device_batch_size=0"], ["device_batch_size is 0", "at least 1, or auto"]),
        (["--device_batch_size=many"], ["device_batch_size is 'many'", "auto"]),
        (
            ["--total_batch_size=1000", "--max_seq_len=64", "--device_batch_size=4"],
            ["1000", "device_batch_size 4 x max_seq_len 64 x 1 processes = 256", "choose 768 or 1024"],
        ),
        (["--total_batch_size=100", "--max_seq_len=256"], ["100", "choose 256"]),
        (["--target_param_data_ratio=-1"], ["num_iterations", "target_flops", "target_param_data_ratio"]),
        (["--num_iterations=0"], ["num_iterations is 0"]),
        (["--core_metric_every=0"], ["core_metric_every is 0", "-1"]),
        (["--device=tpu"], ["tpu", "auto, cpu, cuda, mps"]),
        (["--compile=maybe"], ["maybe", "auto, on, off"]),
        (["--arch=modern"], ["modern", "classic"]),
        (["--fp8", "--max_seq_len=1000"], ["max_seq_len is 1000", "multiples of 16", "leave out --fp8"]),
        (["--fp8", "--head_dim=40"], ["head_dim is 40", "multiples of 16"]),
    ],
    ids=lambda part: " ".join(part) if part[0].startswith("-") else None,
)
def test_refused(refusal: Callable[..., str], flags: list[str], words: list[str]) -> None:
    error = refusal(base_train, *flags)
    assert [word for word in words if word not in error] == []


def test_the_batch_must_divide_by_the_processes(refusal: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "3", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    error = refusal(base_train, "--total_batch_size=8192", "--max_seq_len=512", "--device_batch_size=4")
    assert "x 3 processes = 6144: choose 6144 or 12288" in error


@pytest.mark.usefixtures("no_device")
def test_without_a_tokenizer(refusal: Callable[..., str], base_dir: Path) -> None:
    error = refusal(base_train, *TINY)
    assert f"no tokenizer at {base_dir / 'tokenizer'}" in error
    assert "scripts.tok_train" in error


@pytest.mark.usefixtures("no_device")
def test_without_data(refusal: Callable[..., str], base_dir: Path) -> None:
    prepare(base_dir)
    (base_dir / "base_data" / "manifest.json").unlink()
    error = refusal(base_train, *TINY)
    assert f"no data set in {base_dir / 'base_data'}" in error
    assert "nanochat.dataset" in error


def test_a_device_that_is_absent(refusal: Callable[..., str], base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(base_dir)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "'cuda' is not available on this machine" in refusal(base_train, *TINY, "--device=cuda")


def test_fp8_without_a_gpu(refusal: Callable[..., str], run_here: Path) -> None:
    prepare(run_here)
    error = refusal(base_train, *TINY, "--fp8", "--device=cpu")
    assert "the device is cpu, but fp8 needs an NVIDIA GPU of compute capability 8.9 or higher" in error
    assert not (run_here / "base_checkpoints").exists()


def forget_softcap(checkpoint: Path) -> None:
    """Make a checkpoint one of an earlier version, without soft cap in its meta.json, and without hashes."""
    meta = json.loads((checkpoint / "meta.json").read_text(encoding="utf-8"))
    for content in (meta["model_config"], meta["settings"]):
        assert content.pop("softcap") == 15
    old = {name: value for name, value in meta.items() if name not in ("files", "sha256")}
    (checkpoint / "meta.json").write_text(json.dumps(old), encoding="utf-8")


def test_resuming_with_another_tokenizer_or_shape(refusal: Callable[..., str], run_here: Path) -> None:
    """A run resumes only with the tokenizer and the shape it began with."""
    prepare(run_here)
    resume = [*TINY, "--num_iterations=2", "--resume", "--device=cpu"]
    assert "no checkpoint in" in refusal(base_train, *resume)
    main(parse(Config, [*resume[:-2], "--device=cpu"]))
    assert "n_kv_head 2 -> 1" in refusal(base_train, *resume, "--n_kv_head=1")
    assert "(softcap 15.0 -> 0.0): resume with its own settings" in refusal(base_train, *resume, "--softcap=0")
    forget_softcap(run_here / "base_checkpoints" / "d1" / "step_000002")
    assert "(softcap 15.0 -> 0.0): resume with its own settings" in refusal(base_train, *resume, "--softcap=0")
    ranks = {bytes([b]): b for b in range(256)} | {b"th": 256}
    special = {name: 257 + i for i, name in enumerate(SPECIAL_TOKENS)}
    Tokenizer(SPLIT_PATTERN, ranks, special).save(run_here / "tokenizer")
    assert "trained with another tokenizer" in refusal(base_train, *resume)


@pytest.mark.parametrize("flag", ["--depth=0", "--dept=4"])
def test_refused_by_a_real_process(forker: Forker, tmp_path: Path, flag: str) -> None:
    env = {**os.environ, "NANOCHAT_BASE_DIR": str(tmp_path)}
    command = [str(forker.python), "-m", "scripts.base_train", flag]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


# --- the horizon ------------------------------------------------------------------------------------------------------


def test_horizons() -> None:
    """The first setting that is given counts: iterations, then FLOPs, then tokens per parameter."""
    settings: dict[str, Any] = {"depth": 2, "head_dim": 64, "max_seq_len": 128, "total_batch_size": 1024}
    with torch.device("meta"):
        model = GPT(Config(**settings).model_config(vocab_size=1000))
    num_params = 2 * 12 * 128 * 128 + 2 * 1024 * 128  # blocks; embedding and head, padded to 64s
    flops_per_token = 6 * (num_params - 1024 * 128) + 12 * 2 * 128 * 128
    assert (model.num_params(), model.estimate_flops()) == (num_params, flops_per_token)
    assert Config(**settings).num_steps(model) == round(20 * num_params / 1024)
    assert Config(**settings, target_param_data_ratio=0.5).num_steps(model) == round(0.5 * num_params / 1024)
    flops = 77 * 1024 * flops_per_token
    assert Config(**settings, target_flops=float(flops)).num_steps(model) == 77
    assert Config(**settings, target_flops=1.0).num_steps(model) == 1
    assert Config(**settings, target_flops=float(flops), num_iterations=5).num_steps(model) == 5
    assert Config(**settings, target_param_data_ratio=-1.0, num_iterations=5).num_steps(model) == 5


def test_rates() -> None:
    config = Config(warmup_ratio=0.1, warmdown_ratio=0.5, final_lr_frac=0.2)
    assert [scheduled_rates(config, p, 100).lr_multiplier for p in (0, 0.05, 0.3, 0.75, 1)] == pytest.approx(
        [0, 0.5, 1, 0.6, 0.2]
    )
    assert scheduled_rates(config, 0, 100).momentum == 0.85
    assert scheduled_rates(config, 0.1, 100).momentum == pytest.approx(0.95)


# --- a run ------------------------------------------------------------------------------------------------------------


def test_learns(run_here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A repeated verse: from 8 bits per byte to under 0.5 in 60 steps; a checkpoint and a section of the report."""
    prepare(run_here)
    flags = ["--depth=1", "--head_dim=32", "--max_seq_len=32", "--total_batch_size=512", "--num_iterations=60"]
    monkeypatch.setattr(
        sys, "argv", ["base_train", *flags, "--eval_every=30", "--eval_tokens=512", "--save_every=40", "--device=cpu"]
    )
    cli(Config, main, base_train.__doc__)
    assert (run_here / "base_checkpoints" / "d1" / "step_000040" / "meta.json").is_file()
    meta = json.loads((run_here / "base_checkpoints" / "d1" / "step_000060" / "meta.json").read_text(encoding="utf-8"))
    assert meta["loop"]["cursor"]["tokens"] == 60 * 512
    section = json.loads((run_here / "report" / "base_train.json").read_text(encoding="utf-8"))
    metrics = section["metrics"]
    assert metrics["validation bits per byte"] < 0.5
    assert metrics["training tokens"] == 60 * 512
    assert section["settings"]["num_iterations"] == 60
    assert section["curves"]["validation"]["x"] == [30, 60]
    assert section["curves"]["validation"]["y"][-1] == metrics["validation bits per byte"]
    losses = section["curves"]["training loss"]["y"]
    assert losses[0] == pytest.approx(
        5.58, abs=0.01
    )  # ln 265: the untrained model gives all tokens the same probability
    assert len(losses) == 60
    out = capsys.readouterr().out
    assert "step 60: val_bpb" in out
    assert "Once upon a tim" in out  # a prompt, cut to half of the context


def test_fp8(run_here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A run in fp8, emulated on the CPU: it takes other steps, and leaves a checkpoint like that of any other run."""
    prepare(run_here)
    monkeypatch.setattr("nanochat.training.setup.check_fp8_device", lambda *_: None)
    flags = [*TINY, "--num_iterations=4", "--eval_tokens=512", "--core_metric_every=-1", "--device=cpu"]
    plain = main(parse(Config, [*flags, "--model_tag=plain"]))
    capsys.readouterr()
    state = main(parse(Config, [*flags, "--fp8", "--model_tag=fp8", "--save_every=2"]))
    assert "Training runs the linear layers of the blocks in fp8" in capsys.readouterr().out
    losses = [[row["loss"] for row in run.history if "loss" in row] for run in (plain, state)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)

    model, tokenizer, meta = load_model("base", "cpu", model_tag="fp8")
    assert meta["settings"]["fp8"] is True
    assert meta["compute_dtype"] == "float32"
    runtime = Runtime.without_setup("cpu", compute_dtype=torch.float32)
    [measured] = [row["val_bpb"] for row in state.history if "val_bpb" in row]
    evaluate = bpb_evaluator(model, tokenizer, runtime, 512, batch_size=8, sequence_len=model.config.sequence_len)
    assert evaluate(state)["val_bpb"] == measured  # during training as from the checkpoint, to the last bit
    resumed = main(parse(Config, [*flags, "--fp8", "--model_tag=fp8", "--resume_from_step=2"]))
    assert [row["loss"] for row in resumed.history if "loss" in row] == losses[1]


# --- output that nobody reads -----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("is_stopped", [False, True], ids=["to the end", "by SIGHUP"])
def test_a_reader_that_leaves(base_dir: Path, is_stopped: bool) -> None:
    """As `| head`, or a terminal that is closed: the training goes on without output, and saves."""
    prepare(base_dir)
    num_steps = 400 if is_stopped else 40  # by SIGHUP it must end before
    command = [sys.executable, "-m", "scripts.base_train", *TINY, f"--num_iterations={num_steps}", "--eval_tokens=512"]
    env = {**os.environ, "NANOCHAT_BASE_DIR": str(base_dir), "NANOCHAT_DTYPE": "float32"}
    arguments: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([*command, "--compile=off", "--device=cpu"], cwd=ROOT, env=env, **arguments) as run:
        assert run.stdout is not None
        assert any(line.startswith("step ") for line in run.stdout)
        run.stdout.close()
        if is_stopped:
            run.send_signal(signal.SIGHUP)
        code = run.wait(timeout=200)
    [step] = list_steps(base_dir / "base_checkpoints" / "d1")
    if is_stopped:
        assert (code, step < 400) == (128 + signal.SIGHUP, True)
    else:
        assert (code, step) == (0, num_steps)
        assert (base_dir / "report" / "base_train.json").exists()


# --- resuming with other settings -------------------------------------------------------------------------------------

RESUMED = [*TINY, "--eval_tokens=512", "--device=cpu", "--device_batch_size=4"]


def report_of(folder: Path) -> dict[str, Any]:
    section: dict[str, Any] = json.loads((folder / "report" / "base_train.json").read_text(encoding="utf-8"))
    return section


@pytest.mark.parametrize("total_batch_size", [128, 256, 512])
@pytest.mark.parametrize("by_tokens", [False, True])
def test_resuming_with_another_batch_size(
    run_here: Path, capsys: pytest.CaptureFixture[str], total_batch_size: int, by_tokens: bool
) -> None:
    """Four steps of 256 tokens, then others: ten steps are ten steps, and a number of tokens stays that number."""
    prepare(run_here)
    length = "--num_iterations=10"
    main(parse(Config, [*RESUMED, "--num_iterations=4"]))
    if by_tokens:
        length = f"--target_param_data_ratio={2560 / report_of(run_here)['metrics']['parameters']}"
    state = main(parse(Config, [*RESUMED, length, f"--total_batch_size={total_batch_size}", "--resume"]))
    num_tokens = 2560 if by_tokens else 4 * 256 + 6 * total_batch_size
    assert state.cursor is not None
    assert state.cursor["tokens"] == num_tokens
    assert state.step == 4 + (num_tokens - 1024) // total_batch_size
    assert report_of(run_here)["metrics"]["training tokens"] == num_tokens
    assert f"step {state.step}/{state.step}" in capsys.readouterr().out
    rates = [row["lr_multiplier"] for row in state.history if "lr_multiplier" in row]
    assert rates[4] == 1.0
    assert 0 < rates[-1] < 1


def test_resuming_with_fewer_steps_than_done(run_here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is trained, a notice says so, and the report has the tokens of the training that took place."""
    prepare(run_here)
    main(parse(Config, [*RESUMED, "--num_iterations=4"]))
    capsys.readouterr()
    state = main(parse(Config, [*RESUMED, "--num_iterations=2", "--resume"]))
    assert state.step == 4
    assert "NOTICE: step 4 is beyond the end of the run by these settings" in capsys.readouterr().out
    assert report_of(run_here)["metrics"]["training tokens"] == 1024


# --- learning rates that are far too high -----------------------------------------------------------------------------

SMALL = [*TINY, "--eval_tokens=512", "--device=cpu", "--save_every=1", "--keep_last=1"]
TOO_HIGH = ["--matrix_lr=1e30", "--embedding_lr=1e30"]


def saved_weights(folder: Path) -> tuple[list[int], dict[str, torch.Tensor]]:
    """The steps of a run's checkpoints, and the weights of the last one."""
    steps = list(list_steps(folder / "base_checkpoints" / "d1"))
    return steps, open_checkpoint(folder / "base_checkpoints" / "d1").load_weights()


def test_a_run_that_diverges_ends_with_advice(refusal: Callable[..., str], run_here: Path) -> None:
    """The second step has a finite gradient and leads to weights of 1e30, from which the third would lead to NaN.

    The first step does not move most matrices, because the last matrix of each block is 0 before it.
    """
    prepare(run_here)
    error = refusal(base_train, *SMALL, "--num_iterations=6", *TOO_HIGH)
    assert "diverged at step 2: the weights after step 2 are not finite, or too large" in error
    assert "--init_lr_frac" in error
    assert "--resume_from_step=1" in error
    steps, weights = saved_weights(run_here)
    assert steps == [1]
    assert all(tensor.abs().max() < 100 for tensor in weights.values())


def test_a_resumed_run_that_diverges_keeps_what_it_came_from(refusal: Callable[..., str], run_here: Path) -> None:
    prepare(run_here)
    main(parse(Config, [*SMALL, "--num_iterations=3"]))
    before = saved_weights(run_here)
    error = refusal(base_train, *SMALL, "--num_iterations=9", "--resume", *TOO_HIGH)
    assert "resume from the last good checkpoint (--resume_from_step=3)" in error
    after = saved_weights(run_here)
    assert before[0] == after[0] == [3]
    assert all(torch.equal(after[1][name], before[1][name]) for name in before[1])
    assert main(parse(Config, [*SMALL, "--num_iterations=5", "--resume"])).step == 5


@pytest.mark.parametrize("name", ["matrix_lr", "embedding_lr", "unembedding_lr", "weight_decay"])
def test_a_setting_that_float32_does_not_hold(refusal: Callable[..., str], run_here: Path, name: str) -> None:
    prepare(run_here)
    assert f"{name} is 1e+39: it must be from 0 to 1e+30" in refusal(base_train, *SMALL, f"--{name}=1e39")
