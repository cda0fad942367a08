"""The evaluation script: from the data to the report, its choice of tasks, and its settings."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from nanochat.checkpoint_manager import model_meta, run_dir, save_checkpoint
from nanochat.common import UserError
from nanochat.configurator import parse
from nanochat.data import storyworld
from nanochat.data.shards import write_dataset
from nanochat.eval.task_eval import CHAT_CORE, choose_rows
from nanochat.runtime import Runtime
from nanochat.tokenization.chat_format import Conversation
from scripts import chat_eval
from scripts.chat_eval import Config
from tests.support.models import constant_model
from tests.support.talks import TOKENIZER

RUNTIME = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 0)


def save_model_that_says(character: str, source: str, context: int = 128) -> None:
    """Save a checkpoint of a model that generates one character without end."""
    model = constant_model(context, ord(character))
    TOKENIZER.save(run_dir(source, "").parent / "tokenizer")
    save_checkpoint(run_dir(source, "d1"), 5, model.state_dict(), {}, model_meta(model, RUNTIME, TOKENIZER))


@pytest.mark.shared_data
def test_a_model_that_prefers_b_scores_the_share_of_b(
    run_here: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ARC and MMLU from their files to the report, compared with a count of the answers in the files."""
    hub = shared_data / "hub"
    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(hub))
    save_model_that_says("B", "sft", context=512)
    monkeypatch.setattr(chat_eval, "SAMPLE_QUESTIONS", ("?" * 600, "?" * 600))  # too long: skipped without an error
    results = chat_eval.main(Config(task_name="ARC-Easy|arc-challenge|MMLU", max_problems=200, device="cpu"))
    assert [result.name for result in results] == ["ARC-Easy", "ARC-Challenge", "MMLU"]
    for result, files in zip(results, ("ai2_arc/ARC-Easy", "ai2_arc/ARC-Challenge", "mmlu/all"), strict=True):
        answers: list[Any] = []
        for path in sorted(hub.glob(f"*/{files}/test*.parquet")):
            answers += pq.read_table(path).column("answerKey" if "arc" in files else "answer").to_pylist()
        is_b = [answer in ("B", "2", 1) for answer in answers]
        assert len(is_b) > 1000
        rows = choose_rows(len(is_b), 200)
        assert result.correct == [is_b[row] for row in rows]
        assert 0.24 < result.chance < 0.26
    section = json.loads((run_here / "report" / "chat_eval_sft.json").read_text(encoding="utf-8"))
    assert section["metrics"]["MMLU"] == results[2].metric
    assert section["headline"] == ["ARC-Easy", "ARC-Challenge", "MMLU", "mean of centred accuracies over 3 tasks"]
    assert section["samples"] == []
    assert any("prompts were too long" in note for note in section["notes"])


def test_the_embedded_world(run_here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the embedded world's data its tasks are the default; the report and the file of results."""
    write_dataset(
        *(list(islice(storyworld.generate_stories(split, 1), 2)) for split in ("train", "val")), source="storyworld"
    )
    save_model_that_says("C", "mid")
    results = chat_eval.main(Config(source="mid", max_problems=12, batch_size=16, max_new_tokens=6, device="cpu"))
    out = capsys.readouterr().out
    assert [result.name for result in results] == list(chat_eval.WORLD_TASKS)
    choice = next(result for result in results if result.name == "FactChoice")
    assert choice.accuracy == sum(c["messages"][-1]["content"] == "C" for c in chosen_rows("FactChoice", 12)) / 12
    section = json.loads((run_here / "report" / "chat_eval_mid.json").read_text(encoding="utf-8"))
    assert (section["model"], section["checkpoint"]) == ("mid", "d1:5")
    assert section["answers"]["FactChoice"] == {"problems": choice.examples_hash, "correct": choice.answers["correct"]}
    assert section["metrics"]["FactChoice"] == choice.metric
    saved = json.loads((run_here / "chat_eval" / "mid_d1.json").read_text(encoding="utf-8"))
    assert saved == section["answers"]
    [sample] = section["samples"]
    assert sample["messages"][0] == {"role": "user", "content": "Hello! Who are you?"}
    assert {message["content"] for message in sample["messages"][1::2]} == {"CCCCCC"}
    assert len(sample["messages"]) > 2
    lines = out.splitlines()
    assert sum(line.startswith(f"{name} ") for line in lines for name in chat_eval.WORLD_TASKS) == 6
    assert "mean of centred accuracies over 6 tasks" in section["metrics"]
    assert any(line.startswith("mean of centred accuracies over 6 tasks: ") for line in lines)


def chosen_rows(name: str, max_rows: int) -> list[Conversation]:
    """The examples of a task that an evaluation of `max_rows` chooses."""
    task = chat_eval.open_task(name)
    return [task[row] for row in choose_rows(len(task), max_rows)]


def test_pass_at_k_is_reported_under_its_own_name(run_here: Path) -> None:
    save_model_that_says("C", "rl")
    config = Config(
        source="rl", task_name="SpellingBee", max_problems=3, num_samples=2, temperature=1.0, max_new_tokens=2
    )
    [result] = chat_eval.main(config)
    assert (result.name, result.num_samples) == ("SpellingBee pass@2", 2)
    assert "SpellingBee pass@2" in json.loads((run_here / "chat_eval" / "rl_d1.json").read_text(encoding="utf-8"))


def test_without_the_worlds_data_the_default_is_chat_core(base_dir: Path) -> None:
    assert chat_eval.choose_tasks(Config()) == list(CHAT_CORE)
    assert chat_eval.choose_tasks(Config(task_name="MMLU | gsm8k|MMLU")) == ["MMLU", "GSM8K"]
    assert not list(base_dir.iterdir())


def test_the_variants_of_spelling_bee_differ_in_quotes() -> None:
    quoted, unquoted = (
        [c["messages"][0]["content"] for c in islice(chat_eval.open_task(f"SpellingBee-{kind}"), 50)]
        for kind in ("quoted", "unquoted")
    )
    assert all("'" in text or '"' in text for text in quoted)
    assert not any('"' in text for text in unquoted)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-a", "GSM8"], "no task 'GSM8'"),
        (["-a", ""], "no task ''"),
        (["-a", "GSM8K|"], "no task ''"),
        (["-x", "0"], "max_problems is 0"),
        (["-b", "0"], "batch_size is 0"),
        (["-m", "0"], "max_new_tokens is 0"),
        (["-n", "0"], "num_samples is 0"),
        (["-n", "2"], "at temperature 0"),
        (["-t", "-1"], "temperature is -1"),
        (["-k", "0"], "top_k is 0"),
        (["-i", "chat"], "one of base, mid, sft, rl"),
    ],
)
def test_impossible_settings_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(Config, flags)


def test_a_training_task_has_no_score(base_dir: Path) -> None:
    with pytest.raises(UserError, match="WorldChat is a training task without a score"):
        chat_eval.main(Config(task_name="WorldChat", device="cpu"))
    assert not list(base_dir.iterdir())
