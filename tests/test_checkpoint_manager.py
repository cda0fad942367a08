"""Checkpoints are complete or absent after a crash, the last one is found, and damaged ones are refused.

Run as a program, `python tests/test_checkpoint_manager.py FOLDER`, this file saves checkpoints in forks of itself, each
killed by SIGKILL at a later moment, and prints the state of the folder after each.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanochat import checkpoint_manager
from nanochat.checkpoint_manager import (
    FORMAT,
    build_model,
    default_tag,
    list_steps,
    list_tags,
    load_model,
    load_tensors,
    model_meta,
    open_checkpoint,
    restore_model,
    run_dir,
    save_checkpoint,
    save_tensors,
)
from nanochat.common import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer, Tokenizer
from tests.support.damage import as_earlier_version, damaged_bytes, diverge, outcome

ROOT = Path(__file__).resolve().parent.parent
CPU = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 42)
# Audit events (PEP 578) of calls that change a folder or read it between two changes.
AUDIT_EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "shutil.rmtree"}


SHAPE = GPTConfig(sequence_len=2, vocab_size=2, n_layer=1, n_head=1, n_kv_head=1, n_embd=2)
META: Any = {"model_config": asdict(SHAPE), "compute_dtype": "float32", "tokenizer_hash": ""}


def tensor_shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the weights of a model, by name."""
    return {name: tuple(tensor.shape) for name, tensor in GPT(config).state_dict().items()}


def save(folder: Path, step: int, value: float = 0.0, **options: Any) -> Path:
    """Save a small checkpoint in which every number is `value`."""
    weights = {name: torch.full(shape, value) for name, shape in tensor_shapes(SHAPE).items()}
    state = {"w.momentum": torch.full((100,), value)}
    return save_checkpoint(folder, step, weights, state, {**META, "value": value}, **options)


def load(folder: Path, step: int = -1) -> tuple[int, float]:
    """Load a checkpoint of `save`; return its step and its value, which is the same in all of its files."""
    checkpoint = open_checkpoint(folder, step)
    values = {checkpoint.meta["value"]}
    for tensors in (checkpoint.load_weights(), checkpoint.load_optimizer_state()):
        for tensor in tensors.values():
            values |= set(tensor.flatten().tolist())
    [value] = values
    return checkpoint.step, value


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- killed at every moment ------------------------------------------------------------------------------------------


def _die_at(moment: int, folder: Path) -> None:
    """Kill this process at the n-th time that a save touches the folder or is in the middle of writing a file."""
    num_passed = 0

    def pass_moment() -> None:
        nonlocal num_passed
        num_passed += 1
        if num_passed == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        path = str(arguments[0])  # relative in rmtree
        if event in AUDIT_EVENTS and (path.startswith(str(folder)) or not os.path.isabs(path)):
            pass_moment()

    save_file = checkpoint_manager.write_tensors

    def save_file_in_halves(tensors: dict[str, Tensor], path: Path) -> None:
        save_file(tensors, path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        pass_moment()
        path.write_bytes(content)

    checkpoint_manager.write_tensors = save_file_in_halves  # type: ignore[assignment]
    sys.addaudithook(hook)  # cannot be removed: each moment needs a separate process


def _print_states_after_kills(folder: Path) -> None:
    os.fsync = lambda _: None  # slow, and a killed process does not need it
    scenarios: dict[str, Callable[[], Path]] = {
        "next": lambda: save(folder, 6, 2.0),
        "again": lambda: save(folder, 4, 2.0),
        "pruned": lambda: save(folder, 6, 2.0, keep_last=1),
    }
    states: dict[str, list[Any]] = {}
    for name, scenario in scenarios.items():
        for moment in range(1, 1000):
            shutil.rmtree(folder, ignore_errors=True)
            save(folder, 4, 1.0)
            child = os.fork()
            if child == 0:
                _die_at(moment, folder)
                scenario()
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            last = load(folder)
            value_at_4 = load(folder, 4)[1] if 4 in list_steps(folder) else None
            save(folder, 8, 3.0)
            states.setdefault(name, []).append([code, last, value_at_4, load(folder), names(folder)])
            if code != -signal.SIGKILL:
                break
    print(json.dumps(states))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no os.fork: Linux and macOS do")
def test_killed_at_every_moment_of_a_save(tmp_path: Path) -> None:
    """The last checkpoint is the old one, then from some moment on the new one; the next save removes leftovers."""
    command = [sys.executable, __file__, str(tmp_path / "d4")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    states = json.loads(done.stdout)
    values_at_4 = {"next": {1.0}, "again": {1.0, 2.0}, "pruned": {1.0, None}}
    for name, new in (("next", [6, 2.0]), ("again", [4, 2.0]), ("pruned", [6, 2.0])):
        *killed, finished = states[name]
        assert len(killed) > 10, f"{name}: only {len(killed)} moments"
        assert {code for code, *_ in killed} == {-signal.SIGKILL}
        last = [state[1] for state in killed]
        switch = last.index(new)
        assert last == [[4, 1.0]] * switch + [new] * (len(last) - switch)
        assert switch > 5
        assert finished[:2] == [0, new]
        for _, _, value_at_4, next_saved, files in states[name]:
            assert value_at_4 in values_at_4[name]
            assert next_saved == [8, 3.0]
            assert set(files) <= {"step_000004", "step_000004.old", "step_000006", "step_000008"}
            assert not {"step_000004", "step_000004.old"} <= set(files)


# --- saving ----------------------------------------------------------------------------------------------------------


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old checkpoint stays, the incomplete new one is removed, and the message gives the reason."""
    save(tmp_path, 4, 1.0)

    def raise_disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("save_tensors", "flush_folder", "move_into_place"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_manager, name, raise_disk_full)
            with pytest.raises(UserError, match=r"cannot save .*step_000006 .*No space left.* are intact"):
                save(tmp_path, 6, 2.0)
        assert names(tmp_path) == ["step_000004"]
        assert load(tmp_path) == (4, 1.0)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="cannot save"):
        save(tmp_path / "file" / "d4", 4)


def test_keep_last(tmp_path: Path) -> None:
    for step in range(2, 12, 2):
        save(tmp_path, step, float(step), keep_last=2)
    assert names(tmp_path) == ["step_000008", "step_000010"]
    save(tmp_path, 12, keep_last=-1)
    assert list(list_steps(tmp_path)) == [8, 10, 12]


def test_the_last_checkpoint_is_the_one_written_last(tmp_path: Path) -> None:
    """Checkpoints of a new run in an old run's folder are the last ones."""
    save(tmp_path, 1000, 1.0)
    save(tmp_path, 4, 2.0)
    assert load(tmp_path) == (4, 2.0)
    assert load(tmp_path, 1000) == (1000, 1.0)


def test_keep_last_leaves_other_runs_alone(tmp_path: Path) -> None:
    """Three runs in one folder, the first of which goes on after the others: each removes its own checkpoints only."""

    def save_of_run(first_serial: int, step: int) -> None:
        weights = {name: torch.zeros(shape) for name, shape in tensor_shapes(SHAPE).items()}
        save_checkpoint(tmp_path, step, weights, {}, {**META, "first_serial": first_serial}, keep_last=1)

    save(tmp_path, 100)  # of an earlier version, or imported: it names no run
    for step in (10, 20):
        save_of_run(2, step)
    for step in (5, 7):
        save_of_run(4, step)
    assert list(list_steps(tmp_path)) == [7, 20, 100]
    save_of_run(2, 30)
    assert list(list_steps(tmp_path)) == [7, 30, 100]
    save(tmp_path, 110, keep_last=1)
    assert list(list_steps(tmp_path)) == [7, 30, 110]


def test_keep_last_and_one_more(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        save(tmp_path, step, keep_last=1, keep_step=20)
    assert list(list_steps(tmp_path)) == [20, 40]
    save(tmp_path, 50, keep_last=1, keep_step=40)
    assert list(list_steps(tmp_path)) == [40, 50]


def test_the_same_step_again(tmp_path: Path) -> None:
    for value in (1.0, 2.0, 3.0):
        save(tmp_path, 4, value)
        assert load(tmp_path) == (4, value)
    assert names(tmp_path) == ["step_000004"]


def test_other_files_in_the_folder_are_ignored(tmp_path: Path) -> None:
    """Stray files, incomplete folders and other names are neither listed nor removed; only leftovers of a save are."""
    save(tmp_path, 4, 1.0)
    (tmp_path / "step_000009").write_text("a file", encoding="utf-8")
    (tmp_path / "step_000010").mkdir()
    (tmp_path / "step_000011").mkdir()
    (tmp_path / "step_000011" / "model.safetensors").write_bytes(b"half")
    for name in ("step_12", "step_000013_best", "Step_000014", "notes", ".step_000015.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "meta.json").write_text("{}", encoding="utf-8")
    assert list(list_steps(tmp_path)) == [4]
    before = set(names(tmp_path))
    save(tmp_path, 6, 2.0, keep_last=1)
    assert load(tmp_path) == (6, 2.0)
    assert set(names(tmp_path)) == before - {"step_000004", ".step_000015.tmp"} | {"step_000006"}
    save(tmp_path, 10, 3.0)  # replaces an incomplete one
    assert load(tmp_path) == (10, 3.0)


def test_an_unreadable_checkpoint_does_not_stop_a_save(tmp_path: Path) -> None:
    """A run of many hours must not fail at its first checkpoint because an old one has another format."""
    path = save(tmp_path, 4)
    (path / "meta.json").write_text('{"format": 0', encoding="utf-8")
    save(tmp_path, 6, 2.0, keep_last=1)
    assert load(tmp_path, 6) == (6, 2.0)
    with pytest.raises(UserError, match=r"step_000004.*cannot be read"):
        open_checkpoint(tmp_path)  # it is unknown which of the two is the last


# --- file systems -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.parametrize("only_folders", [True, False])
def test_a_file_system_that_cannot_flush(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, only_folders: bool
) -> None:
    """Some network file systems answer so for folders, some for everything: the checkpoint is complete all the same."""

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) or not only_folders:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    for step, value in ((4, 1.0), (4, 2.0), (6, 3.0)):
        save(tmp_path, step, value, keep_last=1)
        assert load(tmp_path) == (step, value)
    assert names(tmp_path) == ["step_000006"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_flush_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Data may be lost then: it is no checkpoint."""
    save(tmp_path, 4, 1.0)

    def fsync(_: int) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(UserError, match="cannot save"):
            save(tmp_path, 6, 2.0)
    assert names(tmp_path) == ["step_000004"]
    assert load(tmp_path) == (4, 1.0)


def test_an_old_checkpoint_that_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The new one is saved; a line says what is left."""
    save(tmp_path, 4, 1.0)
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        if Path(source).name == "step_000004":
            raise PermissionError(errno.EPERM, "Operation not permitted")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    save(tmp_path, 6, 2.0, keep_last=1)
    assert load(tmp_path) == (6, 2.0)
    assert "step_000004 cannot be removed ([Errno 1] Operation not permitted)" in capsys.readouterr().out


# --- weights that are not finite --------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, value: float) -> None:
    """Nor is such a state of the optimizer. What is there stays, whatever `keep_last` is, and at the same step, too."""
    save(tmp_path, 4, 1.0)
    for step in (4, 6):
        with pytest.raises(
            UserError, match=r"step_00000. is not saved: .* is (not finite|too large.*), the training has diverged"
        ):
            save(tmp_path, step, value, keep_last=1)
    weights = {name: torch.zeros(shape) for name, shape in tensor_shapes(SHAPE).items()}
    with pytest.raises(UserError, match=r"w.momentum is not finite"):
        save_checkpoint(tmp_path, 6, weights, {"w.momentum": torch.tensor([0.0, value * 10])}, META, keep_last=1)
    assert names(tmp_path) == ["step_000004"]
    assert load(tmp_path) == (4, 1.0)


def test_keep_last_counts_finite_weights_only(tmp_path: Path) -> None:
    """Checkpoints of an earlier version may be diverged ones: a run resumed before them keeps what it can use."""
    for step in (2, 4, 6, 8):
        path = save(tmp_path, step, float(step))
        as_earlier_version(path)
        if step in (4, 8):
            diverge(path)
    save(tmp_path, 10, 10.0, keep_last=2)
    assert names(tmp_path) == ["step_000006", "step_000008", "step_000010"]
    save(tmp_path, 12, 12.0, keep_last=2)
    assert names(tmp_path) == ["step_000010", "step_000012"]


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_tensors_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    """Bit for bit, with infinities and NaN; of a view, only the visible elements are written."""
    numbers = torch.tensor([0.0, -0.0, 1e-40, 3e38, float("inf"), float("nan"), 1 / 3, -2.5])
    numbers = torch.arange(8) * 2**40 if dtype == torch.int64 else numbers.to(dtype)
    tensors = {"a": numbers, "view": numbers.clone().view(2, 4).T, "scalar": numbers[3].clone(), "empty": numbers[:0]}
    save_tensors(tmp_path / "t.safetensors", tensors)
    loaded = load_tensors(tmp_path / "t.safetensors")
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (loaded[name].dtype, loaded[name].shape) == (dtype, tensor.shape)
        loaded_bytes, saved_bytes = (x.reshape(-1).contiguous().view(torch.uint8) for x in (loaded[name], tensor))
        assert torch.equal(loaded_bytes, saved_bytes)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
@pytest.mark.parametrize("name", ["model", "optimizer"])
def test_truncated_tensors(tmp_path: Path, name: str, size: int) -> None:
    path = save(tmp_path, 4) / f"{name}.safetensors"
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(UserError, match=rf"{name}.safetensors cannot be read .*remove its folder"):
        checkpoint.load_weights() if name == "model" else checkpoint.load_optimizer_state()


def test_missing_tensors(tmp_path: Path) -> None:
    (save(tmp_path, 4) / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"model.safetensors cannot be read"):
        open_checkpoint(tmp_path).load_weights()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read"),
        (b'{"format": 1, "arch', "cannot be read"),
        (b"[]", "format or arch is missing"),
        (b"{}", "format or arch is missing"),
        (b"\xff\xfe", "cannot be read"),
        (b'{"format": 1, "arch": "classic", "step": null, "serial": 1}', "compute_dtype is missing"),
        (b'{"format": 0, "arch": "classic"}', f"has format 0, arch 'classic'; this version reads {FORMAT}"),
        (b'{"format": 2, "arch": "classic"}', "has format 2"),
        (b'{"format": 1, "arch": "modern"}', "arch 'modern'"),
    ],
)
def test_a_damaged_or_unknown_meta_file(tmp_path: Path, content: bytes, words: str) -> None:
    (save(tmp_path, 4) / "meta.json").write_bytes(content)
    for step in (-1, 4):
        with pytest.raises(UserError, match=words) as failure:
            open_checkpoint(tmp_path, step)
        assert "step_000004" in str(failure.value)


def test_no_such_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint in"):
        open_checkpoint(tmp_path / "absent")
    save(tmp_path, 4)
    save(tmp_path, 12)
    with pytest.raises(UserError, match=r"no checkpoint of step 5 in .*: there are 4, 12"):
        open_checkpoint(tmp_path, 5)
    assert load(tmp_path, 4) == (4, 0.0)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data(), name=st.sampled_from(["model.safetensors", "optimizer.safetensors", "meta.json"]))
def test_damage_to_any_file_is_never_silent(tmp_path_factory: pytest.TempPathFactory, data: Any, name: str) -> None:
    """A flipped bit, a cut or zeros anywhere: one line that names the checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    path = save(folder, 4, 1.0)
    content = (path / name).read_bytes()
    damaged = data.draw(damaged_bytes(content))
    if damaged != content:
        (path / name).write_bytes(damaged)
        loaded, message = outcome(lambda: load(folder))
        assert loaded is None
        assert "step_000004" in message
    shutil.rmtree(folder)


def test_checkpoints_of_earlier_versions(tmp_path: Path) -> None:
    """Without hashes they load as before."""
    as_earlier_version(save(tmp_path, 4, 1.0))
    assert load(tmp_path) == (4, 1.0)
    save(tmp_path, 6, 2.0)
    assert load(tmp_path, 4) == (4, 1.0)


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tokenizer(base_dir: Path) -> Tokenizer:
    trained = RustBPETokenizer.train_from_iterator(iter(["some words, and some more words"]), 275)
    trained.save(base_dir / "tokenizer")
    return trained


def save_model(
    tag: str, tokenizer: Tokenizer, runtime: Runtime = CPU, step: int = 4, n_layer: int = 1
) -> dict[str, Any]:
    """Save an untrained model with a random head. Return its weights."""
    shape = GPTConfig(
        sequence_len=16, vocab_size=tokenizer.get_vocab_size(), n_layer=n_layer, n_head=2, n_kv_head=1, n_embd=16
    )
    model = build_model(shape, runtime)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(step))
    weights = model.state_dict()
    save_checkpoint(run_dir("base", tag), step, weights, {}, model_meta(model, runtime, tokenizer))
    return weights


def test_tags_are_sorted_by_depth(tokenizer: Tokenizer, base_dir: Path) -> None:
    assert list_tags("base") == []
    for tag, layers in (("d4", 1), ("d12", 2), ("experiment", 3)):
        save_model(tag, tokenizer, n_layer=layers)
    (base_dir / "base_checkpoints" / "d20").mkdir()  # empty
    (base_dir / "base_checkpoints" / "d30").write_text("a stray file", encoding="utf-8")
    assert list_tags("base") == ["experiment", "d4", "d12"]
    assert default_tag("base") == "d12"
    assert list_tags("mid") == []
    with pytest.raises(UserError, match=r"no mid checkpoint in .*: run that stage first"):
        default_tag("mid")
    assert load_model("base", CPU)[0].config.n_layer == 2
    assert load_model("base", CPU, model_tag="experiment")[0].config.n_layer == 3


@pytest.mark.parametrize("phase", ["eval", "train"])
def test_load_model(tokenizer: Tokenizer, phase: str) -> None:
    """The weights are equal, and the logits, which also depend on buffers that are not saved."""
    save_model("d1", tokenizer, step=2)
    expected = save_model("d1", tokenizer, step=4)
    model, loaded, meta = load_model("base", CPU, phase)
    assert (model.training, loaded.hash(), meta["step"]) == (phase == "train", tokenizer.hash(), 4)
    weights = model.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    built = build_model(model.config, CPU)
    built.load_state_dict(expected)
    tokens = torch.arange(16)[None]
    assert torch.equal(model(tokens), built(tokens))
    assert not torch.equal(load_model("base", CPU, step=2)[0](tokens), model(tokens))


def test_the_compute_dtype_is_that_of_the_training(tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    """float32, as in training, on a machine whose default is bfloat16; a notice tells the user."""
    save_model("d1", tokenizer)
    bf16_runtime = Runtime(0, 0, 1, torch.device("cpu"), torch.bfloat16, 42)
    model = restore_model(open_checkpoint(run_dir("base", "d1")), bf16_runtime)
    assert model.compute_dtype == torch.float32
    assert "Computing in float32" in capsys.readouterr().out


def test_load_model_errors(tokenizer: Tokenizer, base_dir: Path) -> None:
    with pytest.raises(UserError, match=r"no base checkpoint in .*: run that stage first"):
        load_model("base", CPU)
    with pytest.raises(UserError, match="no stage 'best': choose one of base, mid, sft, rl"):
        load_model("best", CPU)
    save_model("d1", tokenizer)
    with pytest.raises(UserError, match=r"no checkpoint in .*d2"):
        load_model("base", CPU, model_tag="d2")
    with pytest.raises(UserError, match="no checkpoint of step 5"):
        load_model("base", CPU, step=5)
    RustBPETokenizer.train_from_iterator(iter(["something else"]), 270).save(base_dir / "tokenizer")
    with pytest.raises(UserError, match="another tokenizer"):
        load_model("base", CPU)


def test_weights_of_another_model(tokenizer: Tokenizer) -> None:
    """A weights file copied from another checkpoint is refused."""
    save_model("d1", tokenizer)
    save_tensors(run_dir("base", "d1") / "step_000004" / "model.safetensors", {"strange": torch.zeros(3)})
    with pytest.raises(UserError, match=r"does not hold the weights that its meta.json describes"):
        load_model("base", CPU)


@pytest.mark.parametrize(
    ("field", "value"),
    [("n_layer", 2), ("n_layer", 4096), ("n_embd", 32), ("n_embd", 1 << 18), ("vocab_size", 1 << 22), ("n_kv_head", 2)],
)
def test_sizes_are_believed_after_the_weights(tokenizer: Tokenizer, field: str, value: int) -> None:
    """Nothing of the size that a changed meta.json gives is allocated: the weights' header is compared before."""
    save_model("d1", tokenizer)
    path = run_dir("base", "d1") / "step_000004"
    as_earlier_version(path)
    meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
    meta["model_config"][field] = value
    (path / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    with pytest.raises(UserError, match=r"does not hold the weights that its meta.json describes"):
        load_model("base", CPU)


if __name__ == "__main__":
    _print_states_after_kills(Path(sys.argv[1]))
