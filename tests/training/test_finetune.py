"""Runs on conversations, by mid_train and chat_sft alike: settings, mixtures, stopping and resuming, the report."""

from __future__ import annotations

import json
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nanochat import train
from nanochat.checkpoint_manager import list_steps, open_checkpoint
from nanochat.common import StoppedBySignal, UserError
from nanochat.configurator import parse
from nanochat.data.shards import write_dataset
from nanochat.train import LoopState
from nanochat.training import finetune
from scripts import chat_sft, mid_train
from tests.support.finetune import FAST
from tests.support.talks import TOKENIZER, save_model, sums, talk, task_entry, write_mixture, write_talks

BOTH = pytest.mark.parametrize("script", [mid_train, chat_sft], ids=lambda script: script.__name__)
CHECKPOINT_FOLDERS = {mid_train: "mid_checkpoints", chat_sft: "chatsft_checkpoints"}


def run(script: ModuleType, *flags: str) -> LoopState:
    source = ("--source=base",) if script is chat_sft else ()
    state: LoopState = script.main(parse(script.Config, [*source, *FAST, *flags]))
    return state


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_device")
def test_refused_by_what_is_there(refusal: Callable[..., str], base_dir: Path, tmp_path: Path) -> None:
    """Tokenizer, model, batch, context and files, in words that help; before a device is touched."""
    assert "scripts.tok_train" in refusal(mid_train)
    TOKENIZER.save(base_dir / "tokenizer")
    assert "no base checkpoint in" in refusal(mid_train)
    assert "no mid checkpoint in" in refusal(chat_sft)
    save_model(base_dir)
    assert "base_checkpoints/d9: train one first" in refusal(mid_train, "--model_tag=d9")
    assert "no checkpoint of step 3" in refusal(mid_train, "--source_step=3")
    assert "context holds 64 tokens" in refusal(mid_train, "--max_seq_len=65")
    assert "total_batch_size 100 does not divide" in refusal(mid_train, "--total_batch_size=100")
    assert "x 3 = " not in refusal(mid_train, "--total_batch_size=100")
    assert "absent.toml" in refusal(mid_train, "--mixture=absent.toml")
    good = write_talks(tmp_path / "good.jsonl", sums(3))
    bad = tmp_path / "bad.jsonl"
    bad.write_text(good.read_text(encoding="utf-8") + '{"messages": [{"role": "user"}]}\n', encoding="utf-8")
    mixture = write_mixture(tmp_path / "mixture.toml", task_entry(good))
    for flags in ([f"--mixture={mixture}", f"--conversations={bad}"], [f"--conversations={bad}", "--kind=world"]):
        error = refusal(mid_train, *flags)
        assert str(bad) in error
        assert re.search(r"\b4\b", error.partition("bad.jsonl")[2]), "the line's number"
        assert "message 1: must have a role and a content" in error


@pytest.mark.parametrize("script", [mid_train, chat_sft])
def test_fp8_without_a_gpu(refusal: Callable[..., str], mixture: str, script: ModuleType) -> None:
    assert "the device is cpu, but fp8 needs" in refusal(script, mixture, *FAST, "--source=base", "--fp8")


@pytest.mark.parametrize(("source", "kind"), [("storyworld", "world"), ("files", "web"), (None, "web")])
def test_auto_mixture(base_dir: Path, monkeypatch: pytest.MonkeyPatch, source: str | None, kind: str) -> None:
    """The mixture suits the base data; the other settings are passed on."""
    calls: list[Any] = []

    def build_mixture(*args: Any, **options: Any) -> Any:
        calls.append((args, options))
        return sums(1), [], []

    monkeypatch.setattr(finetune, "build_mixture", build_mixture)
    if source:
        write_dataset(["text"] * 9, ["text"], base_dir / "base_data", source=source)
    config = mid_train.Config(conversations="mine.jsonl", mixture="m.toml", allow_missing=True, seed=5)
    finetune.load_data(mid_train.STAGE, config)
    options = {"conversations": "mine.jsonl", "mixture_file": "m.toml", "allow_missing": True, "seed": 5}
    assert calls == [(("mid", kind), options)]


# --- a run ------------------------------------------------------------------------------------------------------------


@BOTH
def test_learns_and_reports(
    run_here: Path, mixture: str, tmp_path: Path, script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training on a mixture of two parts and on a user's own conversations, and its section of the report."""
    parts = [task_entry(tmp_path / "sums.jsonl"), "task = 'SimpleSpelling'\nrows = 30"]
    write_mixture(tmp_path / "mixture.toml", *parts)
    mine = write_talks(tmp_path / "mine.jsonl", [talk("who?", "me" * (i % 3 + 1)) for i in range(20)])
    flags = [mixture, f"--conversations={mine}", "--num_epochs=2", "--init_lr_frac=1", "--eval_every=5"]
    state = run(script, *flags)
    losses = [row["loss"] for row in state.history if "loss" in row]
    assert losses[0] == pytest.approx(
        5.58, abs=0.01
    )  # ln 265: the untrained model gives all tokens the same probability
    assert losses[-1] < 3
    assert (state.cursor or {})["epoch"] == 1
    assert state.progress == 1
    checkpoint = open_checkpoint(run_here / CHECKPOINT_FOLDERS[script] / "d1")
    assert checkpoint.step == state.step == len(losses)
    assert all(tensor.isfinite().all() for tensor in checkpoint.load_weights().values())
    section = json.loads((run_here / "report" / f"{script.STAGE.script}.json").read_text(encoding="utf-8"))
    assert section["model"] == script.STAGE.name
    metrics = section["metrics"]
    held_out = metrics["held-out loss (nats per trained token)"]
    assert held_out < 4
    assert metrics["conversations"] == 76 + 30 + 19  # every 20th of a file is held out
    assert 0 <= metrics["padding"] < 0.5
    assert metrics["trained tokens"] < metrics["tokens"]
    part_losses = {name for name in metrics if name.startswith("held-out loss of ")}
    assert part_losses == {"held-out loss of CustomJSON", "held-out loss of SimpleSpelling"}
    assert "CustomJSON 76" in section["notes"][0]
    assert "CustomJSON 19" in section["notes"][0]
    assert "mine.jsonl" in " ".join(section["notes"])
    assert section["curves"]["held-out loss"]["y"][-1] == held_out
    assert section["curves"]["held-out loss"]["x"][0] == 5
    assert section["settings"]["model_tag"] == "d1"
    out = capsys.readouterr().out
    assert "125 conversations: CustomJSON 76, SimpleSpelling 30, CustomJSON 19" in out


def test_number_of_steps(mixture: str) -> None:
    """As many steps as the passes take, or `num_iterations` steps over as many passes as they take."""
    assert [run(mid_train, mixture, f"--num_epochs={n}").step for n in (1, 2)] == [9, 17]
    state = run(mid_train, mixture, "--num_iterations=18")
    assert (state.step, (state.cursor or {})["rows"], (state.cursor or {})["epoch"]) == (18, 72, 2)


def test_defaults_from_the_model_before(run_here: Path, mixture: str) -> None:
    """By default the deepest tag, its last step, its context and its batch size; flags override each of them."""
    save_model(run_here, tag="d2", step=9, context=128)
    save_model(run_here, tag="d2", step=5, context=128)  # written last, so it counts as the last
    state = mid_train.main(parse(mid_train.Config, [mixture, "--device=cpu", "--compile=off", "--num_iterations=1"]))
    settings = open_checkpoint(run_here / "mid_checkpoints" / "d2").meta["settings"]
    assert (settings["max_seq_len"], settings["total_batch_size"], settings["model_tag"]) == (128, 512, "d2")
    assert (state.cursor or {})["rows"] == 4
    model = save_model(run_here, tag="d3", step=9)
    run(mid_train, mixture, "--num_iterations=1", "--source_step=9", "--init_lr_frac=1e-30")
    weights = open_checkpoint(run_here / "mid_checkpoints" / "d3").load_weights()
    assert all(torch.allclose(weights[name], value) for name, value in model.state_dict().items())
    run(mid_train, mixture, "--num_iterations=1", "--model_tag=d1", "--max_seq_len=32")
    checkpoint = open_checkpoint(run_here / "mid_checkpoints" / "d1")
    assert checkpoint.meta["settings"]["max_seq_len"] == 32
    assert checkpoint.meta["loop"]["cursor"]["rows"] == 8
    assert checkpoint.meta["model_config"]["sequence_len"] == 64


def test_nothing_is_held_out(mixture: str, tmp_path: Path) -> None:
    """A file too small for a held-out part: the loss is that of the training conversations."""
    write_talks(tmp_path / "sums.jsonl", sums(5))
    state = run(mid_train, mixture, "--num_iterations=1")
    assert state.history[-1]["val_loss"] > 0


# --- stopping and resuming --------------------------------------------------------------------------------------------


Contents = tuple[dict[str, Any], dict[str, torch.Tensor]]  # loop state and tensors of a checkpoint


def contents(folder: Path, step: int) -> Contents:
    """Loop state without measured times, and all tensors of a checkpoint."""
    checkpoint = open_checkpoint(folder, step)
    loop = checkpoint.meta["loop"]
    assert loop.pop("seconds") > 0
    loop["history"] = [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in loop["history"]]
    return loop, checkpoint.load_weights() | {f"state {k}": v for k, v in checkpoint.load_optimizer_state().items()}


@BOTH
@pytest.mark.parametrize("stop_at", [3, 12])  # in the first pass and in the second
def test_stop_and_resume(
    run_here: Path, mixture: str, monkeypatch: pytest.MonkeyPatch, script: ModuleType, stop_at: int
) -> None:
    """Ctrl-C in a step saves a checkpoint; the printed command continues to the same result, to the last bit."""
    flags = [mixture, "--num_epochs=2", "--eval_every=4", "--init_lr_frac=0.5"]
    folder = run_here / CHECKPOINT_FOLDERS[script] / "d1"
    whole = run(script, *flags)
    expected = contents(folder, whole.step)
    monkeypatch.setattr(train, "step", with_signal_in_call(stop_at, train.step))
    with pytest.raises(
        StoppedBySignal, match=f"Stopped at step {stop_at} of 17. To resume: python -m {script.__name__}"
    ) as stop:
        run(script, *flags)
    assert stop.value.exit_code == 130
    assert open_checkpoint(folder).step == stop_at
    words = shlex.split(str(stop.value).partition("To resume: ")[2])
    assert "--model_tag=d1" in words
    state = script.main(parse(script.Config, words[3:]))
    assert state.step == whole.step == 17
    assert_same_contents(contents(folder, whole.step), expected)


def assert_same_contents(actual: Contents, expected: Contents) -> None:
    """Two checkpoints are equal to the last bit, except for measured times."""
    assert actual[0] == expected[0]
    assert actual[1].keys() == expected[1].keys()
    assert [name for name in expected[1] if not torch.equal(actual[1][name], expected[1][name])] == []


def with_signal_in_call(number: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with a SIGINT at the beginning of its n-th call."""
    calls: list[int] = []

    def call(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return function(*args)

    return call


@pytest.mark.parametrize(("total_batch_size", "num_rows"), [(128, 4 * 4 + 6 * 2), (256, 40), (512, 4 * 4 + 6 * 8)])
def test_resuming_with_another_batch_size(run_here: Path, mixture: str, total_batch_size: int, num_rows: int) -> None:
    """Four steps of 4 rows, then others: ten steps are ten steps, and their rates are those of ten."""
    run(mid_train, mixture, "--num_iterations=4", "--warmdown_ratio=1")
    state = run(
        mid_train,
        mixture,
        "--num_iterations=10",
        "--warmdown_ratio=1",
        "--resume",
        f"--total_batch_size={total_batch_size}",
    )
    assert (state.step, (state.cursor or {})["rows"]) == (10, num_rows)
    rates = [row["lr_multiplier"] for row in state.history if "lr_multiplier" in row]
    assert rates[4] == pytest.approx(1 - 16 / num_rows)
    assert 0 < rates[9] < rates[8] < rates[4]
    state = run(mid_train, mixture, "--num_iterations=2", "--resume", f"--total_batch_size={total_batch_size}")
    assert (state.step, (state.cursor or {})["rows"]) == (10, num_rows)
    section = json.loads((run_here / "report" / "mid_train.json").read_text(encoding="utf-8"))
    assert section["metrics"]["tokens"] == (state.cursor or {})["tokens"]


def test_resume_from_a_step(run_here: Path, mixture: str) -> None:
    flags = [mixture, "--save_every=4", "--num_iterations=12"]
    folder = run_here / "mid_checkpoints" / "d1"
    run(mid_train, *flags)
    expected = contents(folder, 12)
    for step in (4, 8):
        run(mid_train, *flags, f"--resume_from_step={step}")
        assert_same_contents(contents(folder, 12), expected)


def test_a_new_run_leaves_the_checkpoints_of_an_earlier_one(
    run_here: Path, mixture: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resumed, it removes its own. mid_train's --model_tag names its source, so it is no way out."""
    folder = run_here / "mid_checkpoints" / "d1"
    run(mid_train, mixture, "--num_iterations=3")
    assert "NOTICE" not in capsys.readouterr().out
    run(mid_train, mixture, "--num_iterations=2", "--save_every=1", "--keep_last=1")
    assert f"NOTICE: {folder} holds 1 checkpoint of an earlier run, the last of step 3" in capsys.readouterr().out
    assert list(list_steps(folder)) == [2, 3]
    run(mid_train, mixture, "--num_iterations=4", "--keep_last=1", "--resume")
    assert list(list_steps(folder)) == [3, 4]


@pytest.mark.usefixtures("run_here", "mixture")
def test_conversations_without_room_for_an_answer_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the start of the run, for each of the user's own files."""
    long = [talk("x" * 1000, "y"), talk("z" * 1000, "y"), talk("x" * 1000, "z")]
    few = write_talks(tmp_path / "few.jsonl", [*sums(10), *long])
    every = write_talks(tmp_path / "every.jsonl", sums(10))
    file = write_mixture(tmp_path / "mixture.toml", task_entry(few) + "\nepochs = 2", task_entry(every))
    run(mid_train, f"--mixture={file}", "--num_iterations=1")
    notices = [line for line in capsys.readouterr().out.splitlines() if "not trained on" in line]
    assert len(notices) == 1
    assert "NOTICE: 3 of 13 conversations of CustomJSON are not trained on" in notices[0]


def test_a_run_resumes_on_the_same_data_only(mixture: str, tmp_path: Path) -> None:
    """The same conversations in the same order and rows: with others, some would be repeated and some left out."""
    run(mid_train, mixture, "--num_iterations=2")
    for flag, words in [("--seed=1", "seed is 1, but"), ("--max_seq_len=32", "max_seq_len is 32, but")]:
        with pytest.raises(UserError, match=words):
            run(mid_train, mixture, "--num_iterations=3", "--resume", flag)
    with pytest.raises(UserError, match="no checkpoint of step 9"):
        run(mid_train, mixture, "--num_iterations=3", "--resume_from_step=9")
    write_talks(tmp_path / "sums.jsonl", sums(80, first=1))
    with pytest.raises(UserError, match="trained on other data"):
        run(mid_train, mixture, "--num_iterations=3", "--resume")
    write_talks(tmp_path / "sums.jsonl", sums(80))
    assert run(mid_train, mixture, "--num_iterations=3", "--resume", "--device_batch_size=1").step == 3
