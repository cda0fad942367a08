"""WordProblems and HardProblems: the answer follows from the text, calls give the solution, scores, splits."""

from __future__ import annotations

import re
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.sandbox.calculator import calculate
from tasks.common import Task, reference_text
from tasks.world.problem_stories import SHAPES
from tasks.world.problems import LEVELS, HardProblems, WordProblems
from tests.support.problem_solver import DISTRACTOR, count_things, solve
from tests.support.world_problems import (
    NUM_PROBLEMS,
    SPLITS,
    answer_of,
    hard_problems,
    numbers_in,
    question_of,
    word_problems,
)

# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_of_a_word_problem_follows_from_its_text(split: str) -> None:
    task = word_problems(split)
    for index, row in enumerate(task):
        assert solve(question_of(row)) == answer_of(task, index), question_of(row)


def test_the_solver_can_fail() -> None:
    """Other texts have other answers, and unknown sentences are refused."""
    task = word_problems("test")
    texts = [question_of(row) for row in islice(task, 100)]
    assert sum(solve(text) == answer_of(task, index + 1) for index, text in enumerate(texts)) < 20
    for text in ("Mia has 3 nuts. The wind sings 4 songs. How many nuts does Mia have?", "Mia has 3 nuts. Then 2."):
        with pytest.raises(AssertionError):
            count_things(text)


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"more_than", "before"}))
def test_the_answer_of_a_hard_problem_follows_from_its_text(shape: str) -> None:
    task = hard_problems(shape)
    for index, row in enumerate(task):
        assert len(DISTRACTOR.findall(question_of(row))) == (shape == "distractor"), question_of(row)
        assert solve(question_of(row)) == answer_of(task, index), question_of(row)


def test_the_answer_of_a_more_than_problem_follows_from_its_text() -> None:
    task = hard_problems("more_than")
    for index, row in enumerate(task):
        first, difference = numbers_in(question_of(row))
        assert re.search(r"\d+ (\w+ )?more than|\d+ fewer than", question_of(row))
        assert first + first + difference == answer_of(task, index)


def test_the_answer_of_a_before_problem_follows_from_its_text() -> None:
    task = hard_problems("before")
    for index, row in enumerate(task):
        change, final = numbers_in(question_of(row))
        assert answer_of(task, index) == (final - change if " more" in question_of(row) else final + change)


# --- solutions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_calls_give_their_results_and_use_known_numbers(split: str) -> None:
    for index, row in enumerate(word_problems(split)):
        parts = row["messages"][1]["content"]
        calls = [part["text"] for part in parts if part["type"] == "python"]
        results = [part["text"] for part in parts if part["type"] == "python_output"]
        assert [calculate(call) for call in calls] == results
        assert len(calls) == LEVELS[index % len(LEVELS)]
        known_numbers = re.findall(r"\d+", question_of(row))
        for call, result in zip(calls, results, strict=True):
            assert set(re.findall(r"\d+", call)) <= set(known_numbers), row
            known_numbers.append(result)
        assert reference_text(row).endswith(f"#### {results[-1]}")
        # Each result is used by the next call or by the last one: the question asks for a running total.
        for position, result in enumerate(results[:-1], 1):
            assert any(result in re.findall(r"\d+", call) for call in (calls[position], calls[-1])), row


@pytest.mark.parametrize("shape", SHAPES)
def test_hard_problems_contain_no_solution(shape: str) -> None:
    for split in SPLITS:
        for row in islice(hard_problems(shape, split), 200):
            answer = row["messages"][1]["content"]
            assert isinstance(answer, str)
            assert re.fullmatch(r"#### \d+", answer)
            assert set(row) == {"messages"}


# --- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_train_and_test_share_no_numbers() -> None:
    """In the texts: the numbers of a training problem, in any order, are those of no test problem."""
    pairs: list[tuple[Task, Task]] = [(word_problems("train"), word_problems("test"))]
    pairs += [(hard_problems(shape, "train"), hard_problems(shape, "test")) for shape in SHAPES]
    for train, test in pairs:
        train_numbers = {tuple(sorted(numbers_in(question_of(row)))) for row in train}
        test_numbers = {tuple(sorted(numbers_in(question_of(row)))) for row in test}
        assert not train_numbers & test_numbers, train.name
        assert len(train_numbers) > 100
        assert len(test_numbers) > 30


@pytest.mark.parametrize("task", [WordProblems(), *(HardProblems(shape=s) for s in SHAPES)], ids=lambda t: t.name)
def test_a_test_has_a_thousand_distinct_problems(task: Task) -> None:
    questions = [question_of(row) for row in task]
    assert len(questions) >= 1_000
    assert len(set(questions)) >= 0.99 * len(questions)


# --- scores -----------------------------------------------------------------------------------------------------------


@given(st.integers(0, NUM_PROBLEMS - 1), st.integers(-200, 200), st.sampled_from(["", " ", ".", " apples.", "\n"]))
def test_only_the_correct_number_scores(index: int, change: int, suffix: str) -> None:
    for task in (word_problems("test"), hard_problems("compare")):
        row = task[index % len(task)]
        answer = answer_of(task, index % len(task))
        assert task.evaluate(row, reference_text(row))
        assert task.evaluate(row, f"#### {answer + change}{suffix}") == (change == 0)
        assert task.reward(row, f"I see. #### {answer + change}{suffix}") == float(change == 0)
        assert not task.evaluate(row, f"It is {answer}.")
        assert not task.evaluate(row, f"#### {answer}.5")
        assert not task.evaluate(row, f"#### {answer}{abs(change)}")
        assert not task.evaluate(row, f"{reference_text(row)}\n#### {answer + 1}")


def test_impossible_options_are_named() -> None:
    with pytest.raises(UserError, match="level is 4: must be 1, 2 or 3"):
        WordProblems(level=4)
    with pytest.raises(UserError, match="shape is 'six_steps': must be one of new_words"):
        HardProblems(shape="six_steps")
