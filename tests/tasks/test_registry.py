"""The registry: tasks by name, messages for unknown names and options, and every task through the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nanochat.common import UserError
from nanochat.data.shards import write_dataset
from nanochat.tokenizer import RustBPETokenizer, Tokenizer
from tasks.registry import TASKS, UNBOUNDED_TASKS, get_task

HUB_TASKS = ("ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K", "HumanEval", "SmolTalk")
# Tasks without a score, and HumanEval, whose programs have a test of their own.
NOT_SCORED_HERE = ("SmolTalk", "Identity", "CustomJSON", "WorldChat", "HumanEval")


@pytest.mark.parametrize(
    ("name", "message"),
    [("spelingbee", "SpellingBee"), ("GSM", "GSM8K"), ("xyzzy", "ARC-Easy, ARC-Challenge, MMLU"), ("", "known are")],
)
def test_an_unknown_name_gives_the_closest_names(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_task(name)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(UserError, match="SpellingBee cannot be built with colour='red'"):
        get_task("SpellingBee", colour="red")


@pytest.mark.parametrize("name", UNBOUNDED_TASKS)
def test_unbounded_tasks_take_a_size(name: str) -> None:
    options: dict[str, Any] = {"size": 1_000_003, "start": 1_000_000}
    assert len(get_task(name, "train", **options)) == 3


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return RustBPETokenizer.train_from_iterator(["some words to learn from, 12 of them"], 300)


@pytest.mark.parametrize("name", TASKS)
def test_every_task_renders_and_accepts_its_own_answers(
    name: str, tokenizer: Tokenizer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if name in HUB_TASKS:
        request.getfixturevalue("hub_data")
    options: dict[str, Any] = {"size": 20} if name in UNBOUNDED_TASKS else {"stop": 20}
    if name == "CustomJSON":
        path = tmp_path / "my.jsonl"
        path.write_text('[{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]\n' * 20, "utf-8")
        options = {"path": path}
    if name == "BaseText":
        write_dataset(["A text."], ["Held out."], request.getfixturevalue("base_dir") / "base_data", source="test")
    task = get_task(name.upper(), **options)
    assert task.name == name
    assert len(task) > 0
    for index, conversation in enumerate(task):
        assert conversation == task[index]
        ids, mask = tokenizer.render_conversation(conversation)
        assert any(mask)
        if "text" in conversation:  # a document without a question
            continue
        prompt = tokenizer.render_for_completion(conversation)
        assert ids[: len(prompt)] == prompt
        assert not mask[len(prompt) - 1]
        assert all(mask[len(prompt) :]) or "<|output_start|>" in tokenizer.decode(ids)
        if task.eval_type == "categorical":
            assert task.evaluate(conversation, conversation["messages"][-1]["content"])
            assert 0 < task.chance < 1
        elif name not in NOT_SCORED_HERE:
            answer = tokenizer.decode(ids[len(prompt) :]).removesuffix("<|assistant_end|>")
            assert task.evaluate(conversation, answer)
            assert task.reward(conversation, answer) == 1
            assert not task.evaluate(conversation, "")
            assert task.chance == 0
