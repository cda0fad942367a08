"""What stands around the loop: compiling, the command that resumes, what may change and what may not, the report."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.checkpoint_manager import build_model, open_checkpoint
from nanochat.common import UserError
from nanochat.configurator import Settings, parse, setting
from nanochat.data.shards import write_dataset
from nanochat.gpt import GPT, GPTConfig
from nanochat.optim import OptimSettings, build_optimizer
from nanochat.runtime import Runtime
from nanochat.tokenizer import RustBPETokenizer, Tokenizer
from nanochat.train import LoopState
from nanochat.training import setup as stage

CPU = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 42)
SHAPE = GPTConfig(sequence_len=16, vocab_size=270, n_layer=1, n_head=2, n_kv_head=2, n_embd=16)
META: dict[str, Any] = {"settings": {}, "model_config": asdict(SHAPE), "compute_dtype": "float32"}


@dataclass(frozen=True)
class Config(Settings):
    """The settings of some stage."""

    depth: int = setting(4, "layers")
    lr: float = setting(0.5, "rate")
    name: str | None = setting(None, "name")
    quiet: bool = setting(False, "whether to be quiet")
    device_batch_size: str = setting("auto", "rows")
    resume: bool = setting(False, "go on")
    resume_from_step: int = setting(-1, "go on from here")
    resuming = True


@pytest.fixture
def model() -> GPT:
    return build_model(SHAPE, CPU)


@pytest.fixture
def tokenizer(base_dir: Path) -> Tokenizer:
    trained = RustBPETokenizer.train_from_iterator(iter(["some words, and some more words"]), 270)
    trained.save(base_dir / "tokenizer")
    return trained


# --- the command that resumes ----------------------------------------------------------------------------------------


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCHELASTIC_RUN_ID", "GROUP_WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("alone")
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
def test_resume_command_says_all_settings(config: Config) -> None:
    """A shell and our own parser understand it as the same settings, whatever characters are in them."""
    words = shlex.split(stage.resume_command("scripts.x", config))
    assert words[:3] == ["python", "-m", "scripts.x"]
    assert parse(Config, words[3:]) == replace(config, resume=True, resume_from_step=-1)


@pytest.mark.usefixtures("alone")
def test_resume_command_is_short() -> None:
    config = Config(depth=2, name="a run", resume_from_step=3)
    expected = "python -m scripts.x --depth=2 '--name=a run' --resume"
    assert stage.resume_command("scripts.x", config) == expected


@pytest.mark.parametrize(
    ("nodes", "launcher"),
    [("1", "torchrun --standalone --nproc_per_node=8"), ("2", "torchrun --nnodes=2 ... --nproc_per_node=8")],
)
def test_resume_command_under_torchrun(monkeypatch: pytest.MonkeyPatch, nodes: str, launcher: str) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("GROUP_WORLD_SIZE", nodes)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert stage.resume_command("scripts.x", Config(depth=2)) == f"{launcher} -m scripts.x -- --depth=2 --resume"


# --- what may change -------------------------------------------------------------------------------------------------


def test_changed_settings() -> None:
    before = {**asdict(Config()), "resume": True, "of_an_older_version": 3}
    assert stage.changed_settings(before, Config()) == []
    assert stage.changed_settings(before, Config(lr=0.25, name="x", resume_from_step=4)) == [
        "lr: 0.5 -> 0.25",
        "name: None -> x",
    ]


def test_checkpoint_to_resume(
    tmp_path: Path, model: GPT, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, optimizer = tmp_path / "d1", build_optimizer(model, CPU)
    meta = {
        "settings": asdict(Config()),
        "data_hash": "1234",
        "tokenizer_hash": tokenizer.hash(),
        "model_config": asdict(SHAPE),
    }
    stage.saver(folder, model, optimizer, meta, keep_last=-1)(LoopState(step=7))

    def resume(**changes: Any) -> Any:
        arguments = {"tokenizer": tokenizer, "data_hash": "1234", "shape": SHAPE, "config": Config()}
        return stage.checkpoint_to_resume(folder, **(arguments | changes))

    assert resume(config=SimpleNamespace(resuming=False)) is None
    assert resume().step == 7
    assert "Not as when" not in capsys.readouterr().out
    assert resume(config=Config(lr=0.25)).step == 7
    assert "Not as when step_000007 was written: lr: 0.5 -> 0.25" in capsys.readouterr().out
    for changes, words in [
        ({"data_hash": "5678"}, "other data"),
        ({"shape": replace(SHAPE, n_layer=3, n_embd=32)}, "n_layer 1 -> 3, n_embd 16 -> 32"),
        ({"config": Config(resume_from_step=3)}, "no checkpoint of step 3"),
        ({"tokenizer": RustBPETokenizer.train_from_iterator(iter(["abab"]), 266)}, "another tokenizer"),
    ]:
        with pytest.raises(UserError, match=words):
            resume(**changes)
    stage.saver(folder, model, optimizer, meta | {"data_hash": "", "imported_from": "a"}, keep_last=-1)(
        LoopState(step=8)
    )
    with pytest.raises(UserError, match="step_000008 was imported, without an optimizer's state"):
        resume()


# --- saving and restoring --------------------------------------------------------------------------------------------


def test_save_and_restore(tmp_path: Path, model: GPT) -> None:
    """Weights, the optimizer's moments, and the whole loop state come back, but for the wish to stop."""
    optimizer = build_optimizer(model, CPU)
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    optimizer.step(1.0, 0.9)
    state = LoopState(
        step=5, progress=0.25, seconds=3.5, cursor={"epoch": 1, "document": 2, "skip": 3, "tokens": 4},
        history=[{"step": 4, "loss": 1.5}], recent=[1.25, 0.1], stopped=15,
    )  # fmt: skip
    assert stage.saver(tmp_path, model, optimizer, META, keep_last=-1)(state) == {}
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.meta["world_size"] == 1
    other, fresh, loaded = stage.begin(checkpoint, SHAPE, OptimSettings(), CPU)
    assert loaded == replace(state, stopped=0)
    for found, expected in ((fresh.state_dict(), optimizer.state_dict()), (other.state_dict(), model.state_dict())):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_begin_anew() -> None:
    """The first weights, which the seed decides; an optimizer and a loop that have taken no step."""
    model, optimizer, state = stage.begin(None, SHAPE, OptimSettings(), CPU)
    twin = build_model(SHAPE, CPU).state_dict()
    assert all(torch.equal(tensor, twin[name]) for name, tensor in model.state_dict().items())
    assert (optimizer.steps, state) == (0, LoopState())


def test_a_failed_save_fails_in_every_process(tmp_path: Path, model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are told, instead of waiting for ever; and none of them writes."""

    def full(*_: object) -> None:
        raise UserError("cannot save: the disk is full")

    optimizer = build_optimizer(model, CPU)
    monkeypatch.setattr(stage, "save_checkpoint", full)
    with pytest.raises(UserError, match="the disk is full"):
        stage.saver(tmp_path, model, optimizer, {}, -1)(LoopState())

    class Second(Runtime):
        def broadcast(self, value: Any) -> Any:
            assert value is None
            return "cannot save: the disk is full"

    optimizer.runtime = Second(1, 1, 1, torch.device("cpu"), torch.float32, 42)
    monkeypatch.setattr(stage, "save_checkpoint", lambda *_: pytest.fail("only the main process writes"))
    with pytest.raises(UserError, match="the disk is full"):
        stage.saver(tmp_path, model, optimizer, {}, -1)(LoopState())


# --- compiling -------------------------------------------------------------------------------------------------------


def _compile(monkeypatch: pytest.MonkeyPatch, make: Callable[..., Any]) -> list[dict[str, Any]]:
    """Let `make` stand for torch.compile; returns the list of its calls' arguments."""
    calls: list[dict[str, Any]] = []

    def compile(model: Any, **options: Any) -> Any:
        calls.append(options)
        return make(model)

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/c++")
    return calls


def _on(kind: str) -> Runtime:
    return Runtime(0, 0, 1, torch.device(kind), torch.float32, 42)


@pytest.mark.parametrize(
    ("mode", "num_steps", "kind", "compiles"),
    [
        ("off", 1000, "cpu", False),
        ("on", 1, "cpu", True),
        ("auto", 1000, "cpu", True),
        ("auto", stage.MIN_COMPILED_STEPS - 1, "cpu", False),
        ("auto", stage.MIN_COMPILED_STEPS, "cpu", True),
        ("auto", 1000, "mps", False),
        ("auto", 1000, "cuda", True),
    ],
)
def test_when_to_compile(
    monkeypatch: pytest.MonkeyPatch, model: GPT, mode: str, num_steps: int, kind: str, compiles: bool
) -> None:
    calls = _compile(monkeypatch, lambda plain: lambda *args, **kwargs: plain(*args, **kwargs))
    forward = stage.compile_model(model, mode, num_steps, 2, _on(kind))
    assert (forward is not model) == compiles
    assert calls == ([{"dynamic": False}] if compiles else [])
    assert all(param.grad is None for param in model.parameters())  # the trial has left nothing behind


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, model: GPT, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert stage.compile_model(model, "on", 1000, 2, CPU) is model
    assert "No C++ compiler" in capsys.readouterr().out


@pytest.mark.parametrize("error", [RuntimeError("Triton is missing\nand more"), RuntimeError()])
def test_compiling_fails(
    monkeypatch: pytest.MonkeyPatch, model: GPT, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    """Training goes on uncompiled, with a notice of one line."""

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    _compile(monkeypatch, lambda _: fail)
    assert stage.compile_model(model, "on", 1000, 2, CPU) is model
    told = capsys.readouterr().out
    assert "Compiling failed, so training runs uncompiled: RuntimeError: " in told
    assert "and more" not in told


def test_compiling_fails_elsewhere(
    monkeypatch: pytest.MonkeyPatch, model: GPT, capsys: pytest.CaptureFixture[str]
) -> None:
    """One process's failure is every process's: they must run the same."""

    class Two(Runtime):
        def any_rank(self, flag: bool) -> bool:
            assert not flag
            return True

    _compile(monkeypatch, lambda plain: plain)
    assert stage.compile_model(model, "on", 1000, 2, Two(0, 0, 1, CPU.device, CPU.compute_dtype, 42)) is model
    assert "on another process" in capsys.readouterr().out


# --- evaluating and reporting ----------------------------------------------------------------------------------------


def test_bpb_evaluator(base_dir: Path, tokenizer: Tokenizer, model: GPT, capsys: pytest.CaptureFixture[str]) -> None:
    """An untrained model finds all tokens equally likely. There is less data than was asked for, which is said."""
    write_dataset(["unused"], ["some words", "more words"], base_dir / "base_data", source="test")
    metrics = stage.bpb_evaluator(model, tokenizer, CPU, max_tokens=1000, batch_size=3)(LoopState())
    documents = [tokenizer.encode(text) for text in ("some words", "more words")]
    predicted = sum(map(len, documents))  # all but the first bos; the second has no bytes and is not counted
    expected = predicted * torch.tensor(270.0).log2().item() / len("some wordsmore words")
    assert metrics["val_bpb"] == pytest.approx(expected, rel=1e-5)
    assert f"The validation shard has {predicted + 1} tokens: --eval_tokens=1,000" in capsys.readouterr().out


def test_sampler(tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    """The main process prints a line for each prompt, and the others nothing."""
    roomy = build_model(replace(SHAPE, sequence_len=128), CPU)
    prompts = ["some words", "and"]
    assert stage.sampler(roomy, tokenizer, CPU, prompts)(LoopState()) == {}
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["  some words", "  and"]
    assert stage.sampler(roomy, tokenizer, replace(CPU, rank=1), prompts)(LoopState()) == {}
    assert capsys.readouterr().out == ""


def test_report(base_dir: Path, model: GPT) -> None:
    """The last measurements of the history, and the speed over the whole run."""
    history = [
        {"step": 1, "loss": 3.0, "lr_scale": 1.0, "tokens_per_second": 5.0},
        {"step": 1, "val_bpb": 2.0},
        {"step": 2, "loss": 2.5, "lr_scale": 0.5, "tokens_per_second": 5.0},
        {"step": 2, "val_bpb": 1.5},
    ]
    stage.report_training("base_train", "T", Config(), model, CPU, LoopState(seconds=4.0, history=history), 1000)
    section = json.loads((base_dir / "report" / "base_train.json").read_text(encoding="utf-8"))
    metrics = section["metrics"]
    assert metrics["training loss (nats per token)"] == 2.5
    assert metrics["validation bits per byte"] == 1.5
    assert metrics["tokens per second"] == 250
    assert metrics["training FLOPs"] == 1000 * model.estimate_flops()
    assert section["settings"]["depth"] == 4
    assert {(curve["x"][-1], curve["y"][-1]) for curve in section["curves"].values()} >= {(2, 2.5), (2, 1.5), (2, 0.5)}


def test_a_run_that_reads_its_text_too_often_is_told(
    base_dir: Path, model: GPT, capsys: pytest.CaptureFixture[str]
) -> None:
    history = [{"step": 1, "loss": 1.0, "val_bpb": 2.0}]
    for passes, told in ((7, False), (8, True)):
        state = LoopState(seconds=1.0, history=history, cursor={"epoch": passes})
        stage.report_training("base_train", "T", Config(), model, CPU, state, 1000)
        section = json.loads((base_dir / "report/base_train.json").read_text(encoding="utf-8"))
        assert bool(section.get("notes")) is told
        assert ("8 times" in capsys.readouterr().out) is told
