"""Resuming: the command line, changed settings, and the checkpoints that are refused.

That a resumed run equals one that was never stopped is tested in test_stop_and_resume.py.
"""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.checkpoint_manager import Checkpoint, build_model, open_checkpoint, run_dir
from nanochat.common import UserError
from nanochat.configurator import parse, setting
from nanochat.optim import build_optimizer
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer
from nanochat.train import LoopState
from nanochat.training import resume
from nanochat.training.checkpoint_saver import CheckpointSaver
from nanochat.training.resume import (
    changed_settings,
    checkpoint_to_resume,
    first_serial,
    is_resuming,
    restore_loop_state,
    resume_after_restart,
    resume_command,
    resume_stage_after_restart,
)
from scripts import base_train, chat_rl, chat_sft, mid_train
from tests.support.training import CPU, META, SHAPE, Config, train_tokenizer


@dataclass(frozen=True)
class RestartableConfig(Config):
    seed: int = setting(42, "seed")
    device: str = setting("cpu", "device")


@dataclass(frozen=True)
class StageConfig(RestartableConfig):
    source: str = setting("base", "stage")
    source_step: int = setting(-1, "step")
    model_tag: str | None = setting(None, "model")


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("one_process")
@given(
    config=st.builds(
        Config,
        depth=st.integers(1, 9),
        lr=st.floats(0, 10),
        name=st.none() | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
        quiet=st.booleans(),
        device_batch_size=st.sampled_from(["auto", "8"]),
        resume=st.booleans(),
        resume_from_step=st.integers(-1, 9),
    )
)
def test_resume_command_has_all_settings(config: Config) -> None:
    """A shell and the configurator read the command as the same settings, whatever characters they contain."""
    words = shlex.split(resume_command("scripts.x", config))
    assert words[:3] == ["python", "-m", "scripts.x"]
    assert parse(Config, words[3:]) == replace(config, resume=True, resume_from_step=-1)


@pytest.mark.usefixtures("one_process")
def test_resume_command_leaves_out_defaults() -> None:
    config = Config(depth=2, name="a run", resume_from_step=3)
    assert resume_command("scripts.x", config) == "python -m scripts.x --depth=2 '--name=a run' --resume"


@pytest.mark.parametrize(
    ("num_nodes", "launcher"),
    [("1", "torchrun --standalone --nproc_per_node=8"), ("2", "torchrun --nnodes=2 ... --nproc_per_node=8")],
)
def test_resume_command_under_torchrun(monkeypatch: pytest.MonkeyPatch, num_nodes: str, launcher: str) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("GROUP_WORLD_SIZE", num_nodes)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert resume_command("scripts.x", Config(depth=2)) == f"{launcher} -m scripts.x -- --depth=2 --resume"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({}, False), ({"resume": True}, True), ({"resume_from_step": 0}, True), ({"resume_from_step": 5}, True)],
)
def test_is_resuming(settings: dict[str, Any], expected: bool) -> None:
    assert is_resuming(Config(**settings)) is expected


# --- restarts by torchrun ---------------------------------------------------------------------------------------------


@pytest.fixture
def save(tmp_path: Path) -> Callable[[], None]:
    """A function that saves another checkpoint in `tmp_path`/d1."""
    model = build_model(SHAPE, CPU)
    saver = CheckpointSaver(tmp_path / "d1", model, build_optimizer(model, CPU), META, keep_last=-1)
    steps = itertools.count(1)

    def save() -> None:
        saver(LoopState(step=next(steps)))
        saver.finish()

    return save


@pytest.fixture
def restarting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    monkeypatch.setattr(Runtime, "start", lambda *_: CPU)


def launch(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make this process one of the torchrun with this name."""
    monkeypatch.setattr(resume, "launcher_id", lambda: name)


@pytest.mark.usefixtures("restarting")
def test_a_restart_resumes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, save: Callable[[], None]) -> None:
    """But only from a checkpoint of this launch: the one before it in the folder belongs to another run."""
    folder = tmp_path / "d1"
    config = RestartableConfig(resume_from_step=-1)
    save()
    launch(monkeypatch, "first")
    assert resume_after_restart(config, folder) == config
    assert resume_after_restart(config, folder) == config  # a restart before the first checkpoint
    save()
    assert resume_after_restart(config, folder) == replace(config, resume=True)
    from_a_step = replace(config, resume_from_step=1)
    assert resume_after_restart(from_a_step, folder) == replace(config, resume=True)
    launch(monkeypatch, "another")  # torchrun is run again
    assert resume_after_restart(config, folder) == config
    launch(monkeypatch, "first")  # the folder belongs to the other one now
    assert resume_after_restart(config, folder) == config


@pytest.mark.usefixtures("restarting")
def test_one_process_that_was_there_before_is_enough(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, save: Callable[[], None]
) -> None:
    """This machine joins the run, and another one, which was there from the start, says that it is a restart."""
    config = RestartableConfig()
    launch(monkeypatch, "first")
    resume_after_restart(config, tmp_path / "d1")
    save()
    launch(monkeypatch, "joined")
    with monkeypatch.context() as patch:
        patch.setattr(Runtime, "any_rank", lambda *_: True)
        assert resume_after_restart(config, tmp_path / "d1").resume
    assert resume_after_restart(config, tmp_path / "d1").resume  # known from now on


def test_without_restarts_nothing_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert resume_after_restart(RestartableConfig(), tmp_path) == RestartableConfig()
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("restarting")
def test_the_store_that_torchrun_shares_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for value, is_warned in [("False", False), ("True", True)]:
        monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", value)
        resume_after_restart(RestartableConfig(), tmp_path / value)
        assert ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in capsys.readouterr().out) == is_warned


@pytest.mark.usefixtures("restarting")
def test_a_stage_resumes_the_model_it_trained(
    monkeypatch: pytest.MonkeyPatch, base_dir: Path, save: Callable[[], None], tmp_path: Path
) -> None:
    """Not the deepest model of the stage."""
    config = StageConfig(source="base")
    save()
    for stage, tag in [("base", "d1"), ("mid", "d9")]:
        shutil.copytree(tmp_path / "d1", run_dir(stage, tag))
    launch(monkeypatch, "first")
    assert resume_stage_after_restart("mid", config) == config
    shutil.copytree(tmp_path / "d1", run_dir("mid", "d1"), dirs_exist_ok=True)
    assert resume_stage_after_restart("mid", config) == replace(config, resume=True, model_tag="d1")
    assert base_dir.exists()


def test_launcher_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the parent process: the same for all of its children, another one for another parent."""
    code = "from nanochat.training.resume import launcher_id; print(launcher_id())"
    ids = [subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()]
    monkeypatch.setattr(os, "getppid", os.getpid)
    assert ids == [resume.launcher_id()]
    monkeypatch.undo()
    assert resume.launcher_id() not in ids


@pytest.mark.usefixtures("restarting")
def test_times_of_files_decide_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, save: Callable[[], None]
) -> None:
    """After the clock was set back or forth, the files of this launch may seem older or newer than it."""
    launch(monkeypatch, "first")
    config = RestartableConfig()
    resume_after_restart(config, tmp_path / "d1")
    save()
    for seconds in (1, 4e9):
        for path in (tmp_path / "d1").rglob("*"):
            os.utime(path, (seconds, seconds))
        assert resume_after_restart(config, tmp_path / "d1").resume


@pytest.mark.usefixtures("restarting")
@pytest.mark.parametrize("content", ["", "[]", '{"last_serial": "x"}', '{"last_serial": 1, "launchers": [3]}'])
def test_a_damaged_launch_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str) -> None:
    launch(monkeypatch, "first")
    (tmp_path / resume.LAUNCH_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"launch\.json.*remove it, and resume with --resume"):
        resume_after_restart(RestartableConfig(), tmp_path)
    assert (tmp_path / resume.LAUNCH_FILE).read_text(encoding="utf-8") == content


def test_a_run_with_the_same_id_resumes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """If the last checkpoint in the folder has the id, whatever the times of files are."""
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    monkeypatch.setenv("NANOCHAT_RUN_ID", "mine")
    model = build_model(SHAPE, CPU)
    config = RestartableConfig()
    assert resume_after_restart(config, tmp_path) == config

    def save(step: int, run_id: str) -> None:
        saver = CheckpointSaver(tmp_path, model, build_optimizer(model, CPU), META | {"run_id": run_id}, keep_last=-1)
        saver(LoopState(step=step, progress=1.0))

    for step, name, resumes in [(9, "other", False), (2, "mine", True), (3, "", False), (4, "mine", True)]:
        save(step, name)
        for path in tmp_path.rglob("*"):
            os.utime(path, (1e9 - step, 1e9 - step))
        assert resume_after_restart(config, tmp_path) == replace(config, resume=resumes)
    from_a_step = replace(config, resume_from_step=2)
    assert resume_after_restart(from_a_step, tmp_path) == from_a_step
    monkeypatch.delenv("NANOCHAT_RUN_ID")
    assert resume_after_restart(config, tmp_path) == config


# --- settings and checkpoints -----------------------------------------------------------------------------------------


def test_changed_settings() -> None:
    saved = {**asdict(Config()), "resume": True, "of_an_older_version": 3}
    assert changed_settings(saved, Config()) == []
    assert changed_settings(saved, Config(lr=0.25, name="x", resume_from_step=4)) == [
        "lr: 0.5 -> 0.25",
        "name: None -> x",
    ]


OLD_NAMES = {
    "init_lr_frac": "lr_scale",
    "unembedding_lr": "head_lr",
    "warmup_ratio": "warmup",
    "warmdown_ratio": "warmdown",
    "final_lr_frac": "final_lr",
}
OLD_NAMES_OF_RL = {
    "examples_per_step": "num_problems",
    "eval_examples": "eval_problems",
    "sft_examples_per_step": "replay",
}


@pytest.mark.parametrize("script", [base_train, mid_train, chat_sft, chat_rl], ids=lambda script: script.__name__)
def test_old_names_of_settings(script: Any) -> None:
    """A checkpoint with the settings' earlier names: unchanged ones are not reported, changed ones by the new name."""
    old_names = OLD_NAMES | (OLD_NAMES_OF_RL if script is chat_rl else {})
    present = asdict(script.Config())
    saved = {old_names.get(name, name): value for name, value in present.items()}
    assert not set(old_names) & set(saved)
    assert changed_settings(saved, script.Config()) == []
    for name, old_name in old_names.items():
        changed = saved | {old_name: "another"}
        assert changed_settings(changed, script.Config()) == [f"{name}: another -> {present[name]}"]


def test_restore_loop_state() -> None:
    """The signal that stopped the run is not restored; rows of the history get the present names of metrics."""
    state = LoopState(step=2, stopped=15, history=[{"step": 1, "loss": 2.0, "lr_scale": 0.5}, {"step": 2, "bpb": 1.0}])
    restored = restore_loop_state(Checkpoint(Path("unused"), {"loop": asdict(state)}))
    history = [{"step": 1, "loss": 2.0, "lr_multiplier": 0.5}, {"step": 2, "bpb": 1.0}]
    assert restored == LoopState(step=2, history=history)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cursor": {"epoch": 0}}, "loop.cursor has the keys epoch: a position has others"),
        ({"cursor": {"prompts": 1.5}}, r"loop.cursor is {'prompts': 1.5}: must be an object"),
        ({"cursor": {"prompts": -1}}, "is negative"),
        ({"step": -1}, "is negative"),
        ({"step": "7"}, "loop.step is '7': must be a whole number"),
        ({"history": [{"step": None}]}, r"loop.history\[0\].step is None: must be a number"),
        ({"history": [{"loss": 1.5}]}, "a row of loop.history has no step"),
        ({"recent": 1}, "loop.recent is 1: must be a list"),
        ({"rank": 1}, "loop.rank is not a known key"),
    ],
)
def test_a_loop_state_that_cannot_be(change: dict[str, Any], words: str) -> None:
    loop = asdict(LoopState(step=2, cursor={"prompts": 32})) | change
    with pytest.raises(UserError, match=rf"step_2.meta.json is damaged: .*{words}"):
        restore_loop_state(Checkpoint(Path("step_2"), {"loop": loop}))


def test_a_new_run_among_checkpoints_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its number is new, and a run that goes on keeps its own; one of an earlier version has none."""
    model = build_model(SHAPE, CPU)

    def save(step: int, **meta: int) -> Checkpoint:
        saver = CheckpointSaver(tmp_path, model, build_optimizer(model, CPU), META | meta, keep_last=-1)
        saver(LoopState(step=step, progress=1.0))
        return open_checkpoint(tmp_path)

    assert first_serial(tmp_path, None) == 1
    assert "NOTICE" not in capsys.readouterr().out
    of_earlier_version = save(9)
    first = save(4, first_serial=2)
    assert first_serial(tmp_path, None, "ADVICE") == 3
    [notice] = [line for line in capsys.readouterr().out.splitlines() if "NOTICE" in line]
    assert f"{tmp_path} holds 2 checkpoints of an earlier run, the last of step 4: this run begins anew" in notice
    assert "replaces steps of the same number; --resume goes on with it, ADVICE" in notice
    assert (first_serial(tmp_path, first), first_serial(tmp_path, of_earlier_version)) == (2, 0)
    assert capsys.readouterr().out == ""


def test_checkpoint_to_resume(tmp_path: Path, base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "d1"
    model = build_model(SHAPE, CPU)
    optimizer = build_optimizer(model, CPU)
    tokenizer = train_tokenizer(base_dir)
    meta = META | {"settings": asdict(Config()), "data_hash": "1234", "tokenizer_hash": tokenizer.hash()}
    CheckpointSaver(folder, model, optimizer, meta, keep_last=-1)(LoopState(step=7, progress=1.0))

    def find(**changes: Any) -> Any:
        arguments = {"tokenizer": tokenizer, "data_hash": "1234", "shape": SHAPE, "config": Config(resume=True)}
        return checkpoint_to_resume(folder, **(arguments | changes))

    assert find(config=Config()) is None
    assert find().step == 7
    assert "Setting changed" not in capsys.readouterr().out
    assert find(config=Config(resume=True, lr=0.25)).step == 7
    assert "Setting changed since checkpoint step_000007: lr: 0.5 -> 0.25" in capsys.readouterr().out
    for changes, words in [
        ({"data_hash": "5678"}, "other data"),
        ({"shape": replace(SHAPE, n_layer=3, n_embd=32)}, "n_layer 1 -> 3, n_embd 16 -> 32"),
        ({"config": Config(resume_from_step=3)}, "no checkpoint of step 3"),
        ({"tokenizer": RustBPETokenizer.train_from_iterator(iter(["abab"]), 266)}, "another tokenizer"),
    ]:
        with pytest.raises(UserError, match=words):
            find(**changes)
    imported = meta | {"data_hash": "", "imported_from": "a"}
    CheckpointSaver(folder, model, optimizer, imported, keep_last=-1)(LoopState(step=8, progress=1.0))
    with pytest.raises(UserError, match="step_000008 was imported, without an optimizer state"):
        find()
