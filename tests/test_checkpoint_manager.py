"""Checkpoints are whole or absent, whatever ends a save; the last one is found; what is not one is refused.

Run as a program, `python tests/test_checkpoint_manager.py FOLDER`, this file saves again and again, killed (SIGKILL) at
one moment after the other, in forks of itself, and prints what each has left.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
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
from nanochat.gpt import GPTConfig
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer, Tokenizer

ROOT = Path(__file__).resolve().parent.parent
CPU = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 42)
# What changes a folder, and what can be interrupted between two such changes, as Python announces it (PEP 578).
MOMENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir", "os.listdir", "shutil.rmtree"}


def save(folder: Path, step: int, value: float = 0.0, **options: Any) -> Path:
    """A small checkpoint whose every number is `value`."""
    weights, state = {"w": torch.full((100,), value)}, {"w.momentum": torch.full((100,), value)}
    return save_checkpoint(folder, step, weights, state, {"value": value}, **options)


def value_of(folder: Path, step: int = -1) -> tuple[int, float]:
    """The step and the one value of a checkpoint, all of which is looked at."""
    checkpoint = open_checkpoint(folder, step)
    values = {checkpoint.meta["value"]}
    for tensors in (checkpoint.load_weights(), checkpoint.load_optimizer_state()):
        [tensor] = tensors.values()
        values |= set(tensor.tolist())
    [value] = values
    return checkpoint.step, value


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- killed at every moment ------------------------------------------------------------------------------------------


def _die_at(moment: int, folder: Path) -> None:
    """Kill this process at the n-th moment at which a save touches the folder, or is in the middle of a file."""
    passed = [0]

    def point() -> None:
        passed[0] += 1
        if passed[0] == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        path = str(arguments[0])  # rmtree goes through a folder by names alone
        if event in MOMENTS and (path.startswith(str(folder)) or not os.path.isabs(path)):
            point()

    plain = checkpoint_manager.save_file

    def save_half_first(tensors: dict[str, Tensor], path: Path) -> None:
        plain(tensors, path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        point()
        path.write_bytes(content)

    checkpoint_manager.save_file = save_half_first  # type: ignore[assignment]
    sys.addaudithook(hook)  # cannot be removed: each moment has a process of its own


def _serve(folder: Path) -> None:
    os.fsync = lambda _: None  # what a killed process has written is safe without it, and this is slow
    scenarios: dict[str, Callable[[], Path]] = {
        "next": lambda: save(folder, 6, 2.0),
        "again": lambda: save(folder, 4, 2.0),
        "pruned": lambda: save(folder, 6, 2.0, keep_last=1),
    }
    told: dict[str, list[Any]] = {}
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
            left = value_of(folder)
            at_four = value_of(folder, 4)[1] if 4 in list_steps(folder) else None
            save(folder, 8, 3.0)
            told.setdefault(name, []).append([code, left, at_four, value_of(folder), names(folder)])
            if code != -signal.SIGKILL:
                break
    print(json.dumps(told))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no os.fork: Linux and macOS do")
def test_killed_at_every_moment_of_a_save(tmp_path: Path) -> None:
    """Before, the old checkpoint is there, whole; after, the new one; and the next save removes what was left."""
    command = [sys.executable, __file__, str(tmp_path / "d4")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    told = json.loads(done.stdout)
    for name, new in (("next", [6, 2.0]), ("again", [4, 2.0]), ("pruned", [6, 2.0])):
        deaths, [code, *end] = told[name][:-1], told[name][-1]
        assert len(deaths) > 10, f"{name}: only {len(deaths)} moments"
        assert {death[0] for death in deaths} == {-signal.SIGKILL}
        assert code == 0
        seen = [death[1] for death in deaths]
        switch = seen.index(new)
        assert seen == [[4, 1.0]] * switch + [new] * (len(seen) - switch)
        assert switch > 5
        assert end[0] == new
        for _, _, at_four, after, files in told[name]:
            assert at_four in ({1.0, 2.0} if name == "again" else {1.0} if name == "next" else {1.0, None})
            assert after == [8, 3.0]
            assert set(files) <= {"step_000004", "step_000004.old", "step_000006", "step_000008"}
            assert not {"step_000004", "step_000004.old"} <= set(files)


# --- saving ----------------------------------------------------------------------------------------------------------


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old checkpoint stays, the half of the new one goes, the message says what happened."""
    save(tmp_path, 4, 1.0)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("save_tensors", "fsync_dir", "move_into_place"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoint_manager, name, full)
            with pytest.raises(UserError, match=r"cannot save .*step_000006 .*No space left.* are intact"):
                save(tmp_path, 6, 2.0)
        assert names(tmp_path) == ["step_000004"]
        assert value_of(tmp_path) == (4, 1.0)


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(UserError, match="cannot save"):
        save(tmp_path / "file" / "d4", 4)


def test_keep_last(tmp_path: Path) -> None:
    for step in range(2, 12, 2):
        save(tmp_path, step, float(step), keep_last=2)
    assert names(tmp_path) == ["step_000008", "step_000010"]
    save(tmp_path, 12, keep_last=-1)
    assert list(list_steps(tmp_path)) == [8, 10, 12]


def test_the_last_is_what_was_written_last(tmp_path: Path) -> None:
    """A new run in the folder of an old one: its checkpoints count, and are not the ones that `keep_last` removes."""
    save(tmp_path, 1000, 1.0)
    save(tmp_path, 4, 2.0)
    assert value_of(tmp_path) == (4, 2.0)
    assert value_of(tmp_path, 1000) == (1000, 1.0)
    save(tmp_path, 8, 3.0, keep_last=2)
    assert names(tmp_path) == ["step_000004", "step_000008"]


def test_the_same_step_again(tmp_path: Path) -> None:
    for value in (1.0, 2.0, 3.0):
        save(tmp_path, 4, value)
        assert value_of(tmp_path) == (4, value)
    assert names(tmp_path) == ["step_000004"]


def test_what_else_lies_in_the_folder(tmp_path: Path) -> None:
    """Stray files, half folders, other names: overlooked, also by a save, and left alone but for our own leftovers."""
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
    assert value_of(tmp_path) == (6, 2.0)
    assert set(names(tmp_path)) == before - {"step_000004", ".step_000015.tmp"} | {"step_000006"}
    save(tmp_path, 10, 3.0)  # in place of a half one
    assert value_of(tmp_path) == (10, 3.0)


def test_an_unreadable_neighbour_does_not_stop_a_save(tmp_path: Path) -> None:
    """A run of many hours must not fail at its first checkpoint because an old one is of another format."""
    path = save(tmp_path, 4)
    (path / "meta.json").write_text('{"format": 0', encoding="utf-8")
    save(tmp_path, 6, 2.0, keep_last=1)
    assert value_of(tmp_path, 6) == (6, 2.0)
    with pytest.raises(UserError, match=r"step_000004.*cannot be read"):
        open_checkpoint(tmp_path)  # which of the two is the last cannot be known


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_tensors_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    """Bit for bit, infinities and not-a-numbers too; a tensor that is a view is written as what it shows."""
    numbers = torch.tensor([0.0, -0.0, 1e-40, 3e38, float("inf"), float("nan"), 1 / 3, -2.5])
    numbers = torch.arange(8) * 2**40 if dtype == torch.int64 else numbers.to(dtype)
    tensors = {"a": numbers, "view": numbers.clone().view(2, 4).T, "scalar": numbers[3].clone(), "empty": numbers[:0]}
    save_tensors(tmp_path / "t.safetensors", tensors)
    found = load_tensors(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (dtype, tensor.shape)
        ours, theirs = (one.reshape(-1).contiguous().view(torch.uint8) for one in (found[name], tensor))
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", [0, 4, 100, -1])
@pytest.mark.parametrize("name", ["model", "optimizer"])
def test_torn_tensors(tmp_path: Path, name: str, size: int) -> None:
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
        (b"[]", "cannot be read"),
        (b"{}", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b'{"format": 1, "arch": "classic", "step": null, "serial": 1}', "cannot be read"),
        (b'{"format": 0, "arch": "classic"}', f"has format 0, arch 'classic'; this version reads {FORMAT}"),
        (b'{"format": 2, "arch": "classic"}', "has format 2"),
        (b'{"format": 1, "arch": "modern"}', "arch 'modern'"),
    ],
)
def test_a_meta_file_that_is_not_ours(tmp_path: Path, content: bytes, words: str) -> None:
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
    assert value_of(tmp_path, 4) == (4, 0.0)


# --- models ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tokenizer(base_dir: Path) -> Tokenizer:
    trained = RustBPETokenizer.train_from_iterator(iter(["some words, and some more words"]), 275)
    trained.save(base_dir / "tokenizer")
    return trained


def save_model(
    tag: str, tokenizer: Tokenizer, runtime: Runtime = CPU, step: int = 4, n_layer: int = 1
) -> dict[str, Any]:
    """An untrained model with a head that is not zero; returns its weights."""
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
    (base_dir / "base_checkpoints" / "d20").mkdir()  # nothing in it
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
    """The same weights, and the same logits, which the buffers that are not saved have a part in."""
    save_model("d1", tokenizer, step=2)
    expected = save_model("d1", tokenizer, step=4)
    model, loaded, meta = load_model("base", CPU, phase)
    assert (model.training, loaded.hash(), meta["step"]) == (phase == "train", tokenizer.hash(), 4)
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    built = build_model(model.config, CPU)
    built.load_state_dict(expected)
    tokens = torch.arange(16)[None]
    assert torch.equal(model(tokens), built(tokens))
    assert not torch.equal(load_model("base", CPU, step=2)[0](tokens), model(tokens))


def test_the_dtype_is_that_of_the_training(tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    """Computed in float32, as trained, on a machine that would take bfloat16; the notice says so."""
    save_model("d1", tokenizer)
    here = Runtime(0, 0, 1, torch.device("cpu"), torch.bfloat16, 42)
    model = restore_model(open_checkpoint(run_dir("base", "d1")), here)
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
    """A file that someone has copied from elsewhere."""
    save_model("d1", tokenizer)
    save_tensors(run_dir("base", "d1") / "step_000004" / "model.safetensors", {"strange": torch.zeros(3)})
    with pytest.raises(UserError, match=r"does not hold the weights that its meta.json describes"):
        load_model("base", CPU)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
