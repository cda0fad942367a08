"""Tasks as sequences, numbers in answers, and the data sets of the hub."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.sandbox.calculator import calculate
from nanochat.tokenization.chat_format import Conversation
from nanochat.tokenizer import RustBPETokenizer, Tokenizer
from tasks.arc import ARC
from tasks.common import (
    Task,
    TaskMixture,
    TaskSequence,
    extract_final_number,
    final_numbers_match,
    make_conversation,
    make_multiple_choice,
    parse_number,
    text_part,
    tool_call_parts,
)
from tasks.gsm8k import GSM8K, solution_parts
from tasks.hub import DatasetUnavailableError, load_table
from tasks.mmlu import MMLU
from tasks.registry import TASKS, UNBOUNDED_TASKS, get_task
from tasks.smoltalk import SYSTEM_MESSAGE_PROB, SmolTalk

OFFLINE = "NANOCHAT_HUB_DIR"


class Numbers(Task):
    """Row i asks for i."""

    def __init__(self, count: int, **rows: Any) -> None:
        super().__init__(**rows)
        self.count = count

    def num_examples(self) -> int:
        return self.count

    def get_example(self, index: int) -> Conversation:
        assert 0 <= index < self.count
        return make_conversation(f"{index}?", str(index))


def asked(task: Task) -> list[int]:
    return [int(conversation["messages"][0]["content"].rstrip("?")) for conversation in task]


# --- sequences --------------------------------------------------------------------------------------------------------

bounds = st.none() | st.integers(-12, 12)


@given(st.integers(0, 9), bounds, bounds, st.none() | st.integers(-3, 3).filter(bool))
def test_rows_are_sliced_as_a_list_is(count: int, start: int | None, stop: int | None, step: int | None) -> None:
    task = Numbers(count, start=start, stop=stop, step=step)
    expected = list(range(count))[start:stop:step]
    assert asked(task) == expected
    assert len(task) == len(expected)
    for index in range(-len(expected), len(expected)):
        assert task[index] == make_conversation(f"{expected[index]}?", str(expected[index]))
    for index in (len(expected), -len(expected) - 1):
        with pytest.raises(IndexError):
            task[index]


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 3))
def test_slices_of_one_shuffle_share_no_row(count: int, cut: int, seed: int) -> None:
    before, after = Numbers(count, stop=cut, shuffle=seed), Numbers(count, start=cut, shuffle=seed)
    assert sorted(asked(before) + asked(after)) == list(range(count))
    assert asked(before) == asked(Numbers(count, stop=cut, shuffle=seed))


def test_a_shuffle_is_one() -> None:
    assert asked(Numbers(100, shuffle=1)) != asked(Numbers(100, shuffle=2))
    assert asked(Numbers(100, shuffle=1)) != list(range(100))


@given(st.lists(st.integers(0, 8), min_size=1, max_size=5), st.integers(0, 3))
def test_a_mixture_has_each_row_as_often_as_its_task_is_listed(counts: list[int], seed: int) -> None:
    tasks: list[Task] = [Numbers(1000 * (i + 1) + count, start=1000 * (i + 1)) for i, count in enumerate(counts)]
    mixture = TaskMixture([*tasks, tasks[0]], seed)
    assert sorted(asked(mixture)) == sorted([row for task in [*tasks, tasks[0]] for row in asked(task)])
    assert asked(mixture) == asked(TaskMixture([*tasks, tasks[0]], seed))
    in_order = TaskSequence(tasks)
    assert asked(in_order) == [row for task in tasks for row in asked(task)]
    for index in range(len(in_order)):
        task, row = in_order.locate(index)
        assert tasks[task][row] == in_order[index]


def test_a_mixture_is_mixed_and_its_seed_counts() -> None:
    parts: list[Task] = [Numbers(50), Numbers(100, start=50)]
    first = asked(TaskMixture(parts, 1))
    assert first != sorted(first)
    assert first != asked(TaskMixture(parts, 2))
    assert min(sum(row < 50 for row in first[:50]), sum(row >= 50 for row in first[:50])) > 10


def test_what_has_no_right_answer_has_no_score() -> None:
    with pytest.raises(UserError, match="no score"):
        Numbers(1).evaluate(make_conversation("?", "!"), "!")


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "number"),
    [
        *[("7", 7), (" 7", 7), ("7.", 7), ("7 apples", 7), ("1,000", 1000), ("1,234,567.5", Fraction("1234567.5"))],
        *[("$5", 5), ("$ 5", 5), ("-$5", -5), ("$-5", -5), ("\u22125", -5), ("- 5", -5), ("+5", 5), (".50", 0.5)],
        *[("1000.0", 1000), ("5%", 5), ("5$", 5), ("007", 7), ("\n7", 7), ("1,2", 1), ("1,2345", 1), ("3/4", 3)],
        *[("", None), ("seven", None), ("--5", None), ("-$-5", None), ("$", None), ("٣", None), ("x7", None)],
        *[("9" * 100, int("9" * 100)), ("9" * 101, None), ("9" * 10_000, None), ("0" * 5 + "," * 9_000, 0)],
    ],
)  # fmt: skip
def test_numbers_are_read(words: str, number: Fraction | float | None) -> None:
    assert parse_number(words) == number


@given(st.integers(-(10**12), 10**12), st.integers(0, 3), st.sampled_from(["{:,}", "{}"]), st.sampled_from(["$", ""]))
def test_a_number_is_read_however_it_is_written(whole: int, zeros: int, form: str, dollar: str) -> None:
    written = dollar + form.format(whole) + ("." + "0" * zeros if zeros else "")
    assert final_numbers_match(make_conversation("?", f"#### {whole}"), f"so\n#### {written}")
    assert not final_numbers_match(make_conversation("?", f"#### {whole + 1}"), f"so\n#### {written}")


@given(st.text(max_size=40))
def test_no_text_breaks_the_reading_of_numbers(words: str) -> None:
    assert extract_final_number(words) is None or "####" in words
    found = parse_number(words)
    assert found is None or re.search("[0-9]", words)


def test_the_last_result_counts() -> None:
    assert extract_final_number("#### 3\nno\n#### 4") == 4
    assert extract_final_number("3") is None
    assert extract_final_number("####") is None


# --- multiple choice --------------------------------------------------------------------------------------------------


def test_a_categorical_answer_is_its_letter() -> None:
    conversation = make_multiple_choice("Which?", ["x", "y", "z"], 1)
    assert conversation["letters"] == ("A", "B", "C")
    assert conversation["messages"][0]["content"].split("\n")[1:4] == ["- x=A", "- y=B", "- z=C"]
    assert conversation["messages"][1]["content"] == "B"


def always(task: Task, letter: str) -> float:
    return sum(task.evaluate(conversation, letter) for conversation in task) / len(task)


@pytest.mark.parametrize("name", ["ARC-Easy", "ARC-Challenge", "MMLU"])
def test_who_always_says_b_scores_the_share_of_b(name: str, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OFFLINE, str(shared_data / "hub"))
    task = get_task(name, step=7 if name == "MMLU" else None)
    if name == "MMLU":
        table = pq.read_table(next((shared_data / "hub/cais/mmlu/all").glob("test-*")))
        is_b = [answer == 1 for answer in table["answer"].to_pylist()][::7]
    else:
        table = pq.read_table(next((shared_data / "hub/allenai/ai2_arc" / name).glob("test-*")))
        is_b = [key == "B" for key in table["answerKey"].to_pylist()]
    assert 0.1 < always(task, "B") < 0.4
    assert always(task, "B") == sum(is_b) / len(is_b)
    assert abs(task.chance - 0.25) < 0.001


@pytest.mark.shared_data
def test_arc_has_three_to_five_letters(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OFFLINE, str(shared_data / "hub"))
    task = get_task("ARC-Challenge")
    numbers = Counter(len(conversation["letters"]) for conversation in task)
    assert numbers == {4: 1165, 3: 4, 5: 3}
    assert task.chance == pytest.approx((1165 / 4 + 4 / 3 + 3 / 5) / 1172)
    for conversation in task:
        assert conversation["messages"][-1]["content"] in conversation["letters"]


def mirror(folder: Path, path: str, table: pa.Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror of the hub with one file."""
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, folder / path)
    monkeypatch.setenv(OFFLINE, str(folder))


def test_arc_calls_numbered_choices_by_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        {"question": "Q", "choices": {"text": ["p", "q", "r"], "label": ["1", "2", "3"]}, "answerKey": "3"},
        {"question": "Q", "choices": {"text": ["p", "q"], "label": ["B", "D"]}, "answerKey": "D"},
    ]
    mirror(tmp_path, "allenai/ai2_arc/ARC-Easy/test-00000-of-00001.parquet", pa.Table.from_pylist(rows), monkeypatch)
    task = ARC("ARC-Easy")
    assert task[0]["letters"] == ("A", "B", "C")
    assert task[0]["messages"][-1]["content"] == "C"
    assert task[1]["letters"] == ("B", "D")
    assert task[1]["messages"][-1]["content"] == "D"
    assert task.chance == (1 / 3 + 1 / 2) / 2


@pytest.mark.parametrize("wrapped", [False, True])
def test_mmlu_is_read_flat_and_wrapped(wrapped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"question": "Q", "subject": "S", "choices": ["p", "q", "r", "s"], "answer": 2}
    table = pa.Table.from_pylist([{"train": row} if wrapped else row] * 3)
    mirror(tmp_path, "cais/mmlu/auxiliary_train/train-00000-of-00001.parquet", table, monkeypatch)
    task = MMLU("auxiliary_train")
    assert len(task) == 3
    assert task[0] == {**make_multiple_choice("Q", ["p", "q", "r", "s"], 2), "subject": "S"}


# --- GSM8K ------------------------------------------------------------------------------------------------------------


def test_annotations_become_calls() -> None:
    parts = solution_parts("Half of 12 is 12/2=$<<12/2=6>>6.\nAnd <<6-7=-1>>-1 < 2.\n#### -1")
    assert parts == [
        text_part("Half of 12 is 12/2=$"),
        *tool_call_parts("12/2", "6"),
        text_part("6.\nAnd "),
        *tool_call_parts("6-7", "-1"),
        text_part("-1 < 2.\n#### -1"),
    ]
    assert solution_parts("no <<call>>, no <<a=b=>>") == [text_part("no <<call>>, no <<a=b=>>")]


@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_every_solution_parses(split: str, count: int, shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OFFLINE, str(shared_data / "hub"))
    task = GSM8K(split)
    assert len(task) == count
    table = pq.read_table(next((shared_data / "hub/openai/gsm8k/main").glob(f"{split}-*")))
    calls = 0
    for conversation, solution in zip(task, table["answer"].to_pylist(), strict=True):
        parts = conversation["messages"][-1]["content"]
        told = "".join(part["text"] for part in parts if part["type"] == "text")
        assert told == re.sub(r"<<.*?>>", "", solution)
        assert len([part for part in parts if part["type"] == "python"]) == solution.count("<<")
        assert task.evaluate(conversation, told)
        assert not task.evaluate(conversation, told + "1")
        assert int(solution.rpartition("#### ")[2].replace(",", "")) == extract_final_number(told)
        calls += solution.count("<<")
    assert calls == {"train": 23716, "test": 4282}[split]


@pytest.mark.shared_data
def test_the_calculator_gives_the_annotated_results(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """27,998 annotations: 27,175 results are the calculator's own text, 822 the same number with other zeros, and one,
    `<<3/4=3/4>>`, is left as it is asked."""
    monkeypatch.setenv(OFFLINE, str(shared_data / "hub"))
    found: Counter[str] = Counter()
    for conversation in TaskSequence([GSM8K("train"), GSM8K("test")]):
        parts = conversation["messages"][-1]["content"]
        for call, output in itertools.pairwise(parts):
            if call["type"] != "python":
                continue
            result = calculate(call["text"])
            assert result is not None
            if result == output["text"]:
                found["same text"] += 1
            elif re.fullmatch(r"\d*\.?\d*", output["text"]) and Fraction(result) == Fraction(output["text"]):
                found["same number"] += 1
            else:
                found[f"{call['text']}={output['text']}"] += 1
    assert found == {"same text": 27_175, "same number": 822, "3/4=3/4": 1}


# --- SmolTalk ---------------------------------------------------------------------------------------------------------


@pytest.mark.shared_data
def test_some_conversations_get_a_system_message(shared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OFFLINE, str(shared_data / "hub"))
    task = SmolTalk("test")
    assert len(task) == 600
    plain = pq.read_table(next((shared_data / "hub/HuggingFaceTB/smol-smoltalk/data").glob("test-*")))
    with_one = 0
    for conversation, messages in zip(task, plain["messages"].to_pylist(), strict=True):
        first = conversation["messages"][0]
        with_one += first["role"] == "system"
        assert conversation["messages"][first["role"] == "system" :] == messages
    assert (
        abs(with_one / 600 - SYSTEM_MESSAGE_PROB) < 4 * (SYSTEM_MESSAGE_PROB * (1 - SYSTEM_MESSAGE_PROB) / 600) ** 0.5
    )
    assert not task.invalid_rows
    assert task[3] == SmolTalk("test", start=3, stop=4)[0]


def test_a_row_that_is_no_conversation_gives_the_next_that_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    rows = [
        {"messages": messages}
        for messages in ([], good, good[:2] + good[1:], None, [*good[1:2], {"role": "assistant"}])
    ]
    path = "HuggingFaceTB/smol-smoltalk/data/test-00000-of-00001.parquet"
    mirror(tmp_path, path, pa.Table.from_pylist(rows), monkeypatch)
    task = SmolTalk("test")
    assert list(task) == [{"messages": good}] * 5
    assert task.invalid_rows == {0, 2, 3, 4}
    mirror(
        tmp_path, path, pa.Table.from_pylist(rows[:1] * 2, pa.schema({"messages": pa.list_(pa.null())})), monkeypatch
    )
    with pytest.raises(UserError, match="no valid conversation"):
        SmolTalk("test")[0]


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_had_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.hub._is_hub_reachable", lambda: False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # is set to 1, and put back afterwards
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=fail))
    monkeypatch.delenv(OFFLINE, raising=False)
    with pytest.raises(
        DatasetUnavailableError, match=r"openai/gsm8k.*NANOCHAT_HUB_DIR is not set.*no way.*main/test-\*\.parquet"
    ):
        GSM8K()
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setenv(OFFLINE, str(tmp_path))
    with pytest.raises(DatasetUnavailableError, match=re.escape(f"not under $NANOCHAT_HUB_DIR ({tmp_path})")):
        GSM8K()


def fail(*_: Any, **__: Any) -> None:
    raise ConnectionError("no way\nand more")


def test_without_a_mirror_the_hub_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets  # the real one makes the table

    given = []

    def load_dataset(*arguments: Any, **options: Any) -> datasets.Dataset:
        given.append((*arguments, options))
        return datasets.Dataset.from_list([{"question": "Q", "answer": "#### 1", "more": 1}])

    monkeypatch.setattr("tasks.hub._is_hub_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.delenv(OFFLINE, raising=False)
    assert GSM8K("train")[0] == make_conversation("Q", [text_part("#### 1")])
    load_table("a/b", "data", "test", ["question"])
    assert given == [("openai/gsm8k", "main", {"split": "train"}), ("a/b", None, {"split": "test"})]


def test_a_damaged_mirror_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a/b/main"
    mirror(tmp_path, "a/b/main/test-00000-of-00002.parquet", pa.table({"x": [1]}), monkeypatch)
    with pytest.raises(UserError, match=re.escape(f"{folder}: 1 files of test")):
        load_table("a/b", "main", "test", ["x"])
    mirror(tmp_path, "a/b/main/test-00001-of-00002.parquet", pa.table({"x": [2]}), monkeypatch)
    assert load_table("a/b", "main", "test", ["x"])["x"].to_pylist() == [1, 2]
    with pytest.raises(UserError, match="no column 'y' but x"):
        load_table("a/b", "main", "test", ["y"])
    (folder / "test-00001-of-00002.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=str(folder)):
        load_table("a/b", "main", "test", ["x"])


# --- the catalogue ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [("spelingbee", "SpellingBee"), ("GSM", "GSM8K"), ("xyzzy", "ARC-Easy, ARC-Challenge, MMLU"), ("", "known are")],
)
def test_an_unknown_task_is_told_the_nearest(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        get_task(name)


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(UserError, match="SpellingBee cannot be built with colour='red'"):
        get_task("SpellingBee", colour="red")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return RustBPETokenizer.train_from_iterator(["some words to learn from, 12 of them"], 300)


HUB_TASKS = ("ARC-Easy", "ARC-Challenge", "MMLU", "GSM8K", "HumanEval", "SmolTalk")


@pytest.mark.parametrize("name", TASKS)
def test_every_task_renders(
    name: str, tokenizer: Tokenizer, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name in HUB_TASKS:
        monkeypatch.setenv(OFFLINE, str(request.getfixturevalue("shared_data") / "hub"))
    options: dict[str, Any] = {"size": 20} if name in UNBOUNDED_TASKS else {"stop": 20}
    if name == "CustomJSON":
        (tmp_path / "my.jsonl").write_text(
            '[{"role":"user","content":"Q"},{"role":"assistant","content":"A"}]\n' * 20, "utf-8"
        )
        options = {"path": tmp_path / "my.jsonl"}
    task = get_task(name.upper(), **options)
    assert task.name == name
    assert len(task) > 0
    for index, conversation in enumerate(task):
        assert conversation == task[index]
        ids, mask = tokenizer.render_conversation(conversation)
        assert any(mask)
        if "text" in conversation:  # a document: nobody asks
            continue
        prompt = tokenizer.render_for_completion(conversation)
        assert ids[: len(prompt)] == prompt
        assert not mask[len(prompt) - 1]
        assert all(mask[len(prompt) :]) or "<|output_start|>" in tokenizer.decode(ids)
        if task.eval_type == "categorical":
            assert task.evaluate(conversation, conversation["messages"][-1]["content"])
            assert 0 < task.chance < 1
        elif name not in ("SmolTalk", "Identity", "CustomJSON", "WorldChat", "HumanEval"):
            answer = tokenizer.decode(ids[len(prompt) :]).removesuffix("<|assistant_end|>")
            assert task.evaluate(conversation, answer)
            assert task.reward(conversation, answer) == 1
            assert not task.evaluate(conversation, "")
            assert task.chance == 0
