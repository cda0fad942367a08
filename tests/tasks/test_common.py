"""Tasks as sequences, mixtures, numbers in answers, multiple choice."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.tokenization.chat_format import Conversation
from tasks.common import (
    CategoricalTask,
    FreshRows,
    Task,
    TaskMixture,
    TaskSequence,
    extract_final_number,
    final_numbers_match,
    make_conversation,
    make_multiple_choice,
    parse_number,
)


class NumberTask(Task):
    """Row i asks for i."""

    def __init__(self, count: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.count = count

    def num_examples(self) -> int:
        return self.count

    def get_example(self, index: int) -> Conversation:
        assert 0 <= index < self.count
        return make_conversation(f"{index}?", str(index))


def row_numbers(task: Task) -> list[int]:
    return [int(conversation["messages"][0]["content"].rstrip("?")) for conversation in task]


# --- sequences --------------------------------------------------------------------------------------------------------

bounds = st.none() | st.integers(-12, 12)


@given(st.integers(0, 9), bounds, bounds, st.none() | st.integers(-3, 3).filter(bool))
def test_rows_are_sliced_like_a_list(count: int, start: int | None, stop: int | None, step: int | None) -> None:
    task = NumberTask(count, start=start, stop=stop, step=step)
    expected = list(range(count))[start:stop:step]
    assert row_numbers(task) == expected
    assert len(task) == len(expected)
    for index in range(-len(expected), len(expected)):
        assert task[index] == make_conversation(f"{expected[index]}?", str(expected[index]))
    for index in (len(expected), -len(expected) - 1):
        with pytest.raises(IndexError):
            task[index]


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 3))
def test_slices_of_one_shuffle_are_disjoint(count: int, cut: int, seed: int) -> None:
    before = NumberTask(count, stop=cut, shuffle=seed)
    after = NumberTask(count, start=cut, shuffle=seed)
    assert sorted(row_numbers(before) + row_numbers(after)) == list(range(count))
    assert row_numbers(before) == row_numbers(NumberTask(count, stop=cut, shuffle=seed))


def test_a_shuffle_permutes_and_depends_on_its_seed() -> None:
    assert row_numbers(NumberTask(100, shuffle=1)) != row_numbers(NumberTask(100, shuffle=2))
    assert row_numbers(NumberTask(100, shuffle=1)) != list(range(100))


@given(st.lists(st.integers(0, 8), min_size=1, max_size=5), st.integers(0, 3))
def test_a_mixture_has_each_row_as_often_as_its_task_is_listed(counts: list[int], seed: int) -> None:
    tasks: list[Task] = [NumberTask(1000 * (i + 1) + count, start=1000 * (i + 1)) for i, count in enumerate(counts)]
    mixture = TaskMixture([*tasks, tasks[0]], seed)
    assert sorted(row_numbers(mixture)) == sorted([row for task in [*tasks, tasks[0]] for row in row_numbers(task)])
    assert row_numbers(mixture) == row_numbers(TaskMixture([*tasks, tasks[0]], seed))
    sequence = TaskSequence(tasks)
    assert row_numbers(sequence) == [row for task in tasks for row in row_numbers(task)]
    for parts in (sequence, mixture):
        for index in range(len(parts)):
            task_index, row = parts.locate(index)
            assert parts.tasks[task_index][row] == parts[index]


def test_a_mixture_is_shuffled_by_its_seed() -> None:
    parts: list[Task] = [NumberTask(50), NumberTask(100, start=50)]
    rows = row_numbers(TaskMixture(parts, 1))
    assert rows != sorted(rows)
    assert rows != row_numbers(TaskMixture(parts, 2))
    assert min(sum(row < 50 for row in rows[:50]), sum(row >= 50 for row in rows[:50])) > 10


@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 6))
def test_passes_over_fresh_rows_read_a_task_in_turn(count: int, rows: int, num_passes: int) -> None:
    """No row is read again before all were read: the counts of two rows differ by one at most."""
    task = FreshRows(NumberTask(count, shuffle=3), rows)
    passes = [row_numbers(task.for_pass(number)) for number in range(num_passes)]
    assert all(len(numbers) == rows for numbers in passes)
    read = [number for numbers in passes for number in numbers]
    assert all(sorted(read[start : start + count]) == list(range(count)) for start in range(len(read) - count + 1))
    assert max(map(read.count, range(count))) - min(map(read.count, range(count))) <= 1
    assert len(FreshRows(NumberTask(0), rows)) == 0


def test_a_pass_over_a_mixture_changes_its_fresh_rows_alone() -> None:
    mixture = TaskMixture([NumberTask(3), FreshRows(NumberTask(100, start=10), 4)])
    passes = [row_numbers(mixture.for_pass(number)) for number in range(3)]
    assert row_numbers(mixture) == passes[0]
    assert [sorted(numbers) for numbers in passes] == [
        [0, 1, 2, *range(10 + 4 * number, 14 + 4 * number)] for number in range(3)
    ]
    assert row_numbers(mixture.for_pass(2)) == passes[2]


def test_a_task_without_right_answers_has_no_score() -> None:
    with pytest.raises(UserError, match=r"task has no score.*defines `evaluate`"):
        NumberTask(1).evaluate(make_conversation("?", "!"), "!")


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        *[("7", 7), (" 7", 7), ("7.", 7), ("7 apples", 7), ("1,000", 1000), ("1,234,567.5", Fraction("1234567.5"))],
        *[("$5", 5), ("$ 5", 5), ("-$5", -5), ("$-5", -5), ("\u22125", -5), ("- 5", -5), ("+5", 5), (".50", 0.5)],
        *[("1000.0", 1000), ("5%", 5), ("5$", 5), ("007", 7), ("\n7", 7), ("1,2", 1), ("1,2345", 1), ("3/4", 3)],
        *[("", None), ("seven", None), ("--5", None), ("-$-5", None), ("$", None), ("٣", None), ("x7", None)],
        *[("9" * 100, int("9" * 100)), ("9" * 101, None), ("9" * 10_000, None), ("0" * 5 + "," * 9_000, 0)],
    ],
)  # fmt: skip
def test_numbers_are_parsed(text: str, number: Fraction | float | None) -> None:
    assert parse_number(text) == number


@given(st.integers(-(10**12), 10**12), st.integers(0, 3), st.sampled_from(["{:,}", "{}"]), st.sampled_from(["$", ""]))
def test_numbers_match_in_any_notation(whole: int, num_zeros: int, template: str, dollar: str) -> None:
    written = dollar + template.format(whole) + ("." + "0" * num_zeros if num_zeros else "")
    assert final_numbers_match(make_conversation("?", f"#### {whole}"), f"so\n#### {written}")
    assert not final_numbers_match(make_conversation("?", f"#### {whole + 1}"), f"so\n#### {written}")


@given(st.text(max_size=40))
def test_any_text_can_be_parsed_for_numbers(text: str) -> None:
    assert extract_final_number(text) is None or "####" in text
    assert parse_number(text) is None or re.search("[0-9]", text)


def test_the_last_marked_number_is_final() -> None:
    assert extract_final_number("#### 3\nno\n#### 4") == 4
    assert extract_final_number("3") is None
    assert extract_final_number("####") is None


# --- multiple choice --------------------------------------------------------------------------------------------------


class ChoiceTask(CategoricalTask):
    """Row 0 has two choices, row 1 three; the first choice is correct."""

    def num_examples(self) -> int:
        return 2

    def get_example(self, index: int) -> Conversation:
        return make_multiple_choice("Which?", ["x", "y", "z"][: index + 2], 0)


def test_a_categorical_answer_is_its_letter() -> None:
    conversation = make_multiple_choice("Which?", ["x", "y", "z"], 1)
    assert conversation["letters"] == ("A", "B", "C")
    assert conversation["messages"][0]["content"].split("\n")[1:4] == ["- x=A", "- y=B", "- z=C"]
    assert conversation["messages"][1]["content"] == "B"


def test_a_categorical_task_scores_letters_and_knows_its_chance() -> None:
    task = ChoiceTask()
    assert [task.evaluate(conversation, "A") for conversation in task] == [True, True]
    assert not task.evaluate(task[0], "B")
    assert task.chance == (1 / 2 + 1 / 3) / 2
    assert NumberTask(3).chance == 0


@pytest.mark.parametrize("run", [" ", "\n", " -", "$ ", "- ", "0", ",000", "#", "####"])
def test_long_runs_before_a_number(run: str) -> None:
    """A completion of many spaces is read in time in proportion to its length; each `\\s*` more would be a power."""
    for text in (run * 200_000, "####" + run * 200_000 + "x", "#### -" + run * 200_000 + "7"):
        assert extract_final_number(text) in (None, 7, -7)
