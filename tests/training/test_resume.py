"""Resuming: the command line, changed settings, and the checkpoints that are refused.

That a resumed run equals one that was never stopped is tested in test_stop_and_resume.py.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.checkpoint_manager import Checkpoint, build_model
from nanochat.common import UserError
from nanochat.configurator import parse
from nanochat.optim import build_optimizer
from nanochat.tokenizer import RustBPETokenizer
from nanochat.train import LoopState
from nanochat.training.checkpoint_saver import CheckpointSaver
from nanochat.training.resume import (
    changed_settings,
    checkpoint_to_resume,
    is_resuming,
    restore_loop_state,
    resume_command,
)
from scripts import base_train, chat_rl, chat_sft, mid_train
from tests.support.training import CPU, SHAPE, Config, train_tokenizer

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


def test_checkpoint_to_resume(tmp_path: Path, base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "d1"
    model = build_model(SHAPE, CPU)
    optimizer = build_optimizer(model, CPU)
    tokenizer = train_tokenizer(base_dir)
    meta = {
        "settings": asdict(Config()),
        "data_hash": "1234",
        "tokenizer_hash": tokenizer.hash(),
        "model_config": asdict(SHAPE),
    }
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
