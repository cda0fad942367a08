"""WordProblems and HardProblems: solutions follow from the texts, splits share no numbers, answers are judged."""

from __future__ import annotations

import re
from collections import Counter
from functools import cache
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.data.storyworld.world import CHARACTERS
from nanochat.execution import calculate
from nanochat.tokenization.chat_format import Conversation
from tasks.common import Task, reference_text
from tasks.world import problem_sentences as world_sentences
from tasks.world.problem_stories import SHAPES, is_in_split
from tasks.world.problems import LEVELS, HardProblems, WordProblems

SPLITS = ("train", "test")
Part = dict[str, str]


@cache
def problems(split: str) -> WordProblems:
    return WordProblems(split, 1_200)


@cache
def hard(shape: str, split: str = "test") -> HardProblems:
    return HardProblems(split, 400, shape=shape)


# --- a reader of its own: what a sentence does to the number of things, by the words that tell it

_TIMES = re.compile(
    r"times as many|every one becomes|turns each one|[Ff]or (each|every) one|swaps every one"
    r"|times its size|each is now|dreams|copies"
)
_SHARE = re.compile(r"equal|judge|One part in|fair part|one of every")
_MORE = re.compile(r" more|hands|bird brings|out of a tree|wins|Grandmother|at the door|discovers|With the post")
_EACH = re.compile(r" each\b| in each|[Ii]n each| every day| a day for|[Oo]n each of| days, ")
_FEWER = re.compile(
    r"gives \d+ to|gives away \d|loses|lost|takes \d+ away|drops|sells \d|carries away|asks for|broken|leaves|steals"
    r"|nibbles|roll|lends|hides|throws|crow flies off|burns|sink"
)


_ASIDE = re.compile(
    r"[A-Z][\w ]* (is \d+ years old|has \d+ cousins|tells \d+ stories|sleeps for \d+ hours)\. ?"
    r"|It is a walk [^.]*\. ?|There are \d+ birds [^.]*\. ?"
)


def read(text: str) -> int:
    """How many there are after the sentences of a story about one person."""
    total, groups = -1, 0
    for sentence in re.split(r"(?<=\.) ", text):
        numbers = [int(number) for number in re.findall(r"\d+", sentence)]
        if not numbers:
            continue
        if total < 0 and groups:  # "Each holds 4 apples."
            total = groups * numbers[0]
        elif total < 0 and len(numbers) == 2:
            assert _EACH.search(sentence), sentence
            total = numbers[0] * numbers[1]
        elif total < 0 and re.search(r" (carries|opens) ", sentence):
            groups = numbers[0]
        elif total < 0:
            total = numbers[0]
        elif _TIMES.search(sentence):
            total *= numbers[0]
        elif _SHARE.search(sentence):
            assert total % numbers[0] == 0, text
            total //= numbers[0]
        elif _MORE.search(sentence):
            total += numbers[0]
        else:
            assert _FEWER.search(sentence), sentence
            total -= numbers[0]
    return total


def question_of(row: Conversation) -> str:
    return str(row["messages"][0]["content"])


def two_stories(text: str, names: list[str]) -> list[str]:
    """The sentences about each of two people: the second's begin where that name is met for the first time."""
    cut = max(text.index(name) for name in names)
    cut = text.rfind(". ", 0, cut) + 2
    return [text[:cut], text[cut:]]


def answer_of(task: Task, index: int) -> int:
    return int(reference_text(task[index]).rpartition("#### ")[2])


def solve(text: str) -> int:
    """The answer of a problem about one person, or two."""
    text, _ = _ASIDE.subn("", text)
    story, question = asked(text)
    names = sorted(people(question), key=question.index)
    if len(names) == 1:
        return read(story)
    parts = {name: part for part in two_stories(story, names) for name in names if re.search(rf"\b{name}\b", part)}
    first, second = (read(parts[name]) for name in names)
    together = re.search(r"together|in all", question)
    assert bool(together) != bool(re.search(r"more|ahead", question)), question
    return first + second if together else first - second


def people(text: str) -> list[str]:
    return [name for name in CHARACTERS if re.search(rf"\b{name}\b", text)]


def asked(text: str) -> tuple[str, str]:
    """The story, and the question with what belongs to it."""
    sentences = re.split(r"(?<=[.?]) ", text)
    last = 2 if text.endswith("are there?") else 1
    return " ".join(sentences[:-last]), " ".join(sentences[-last:])


@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_of_a_word_problem_follows_from_its_text(split: str) -> None:
    task = problems(split)
    for index, row in enumerate(task):
        assert solve(question_of(row)) == answer_of(task, index), question_of(row)


def test_the_answers_are_not_those_of_another_reading() -> None:
    """The reader can fail: other texts have other answers."""
    rows = [question_of(row) for row in islice(problems("test"), 100)]
    assert sum(solve(text) == answer_of(problems("test"), index + 1) for index, text in enumerate(rows)) < 20
    for text in ("Mia has 3 nuts. The wind sings 4 songs. How many nuts does Mia have?", "Mia has 3 nuts. Then 2."):
        with pytest.raises(AssertionError):
            read(text)


@pytest.mark.parametrize("shape", sorted(set(SHAPES) - {"more_than", "before"}))
def test_the_answer_of_a_hard_problem_follows_from_its_text(shape: str) -> None:
    task = hard(shape)
    for index, row in enumerate(task):
        assert len(_ASIDE.findall(question_of(row))) == (shape == "distractor"), question_of(row)
        assert solve(question_of(row)) == answer_of(task, index), question_of(row)


def test_the_answers_of_more_than_follow_from_the_text() -> None:
    task = hard("more_than")
    for index, row in enumerate(task):
        first, more = map(int, re.findall(r"\d+", question_of(row)))
        assert re.search(r"\d+ (\w+ )?more than|\d+ fewer than", question_of(row))
        assert first + first + more == answer_of(task, index)


def test_the_answers_of_before_follow_from_the_text() -> None:
    task = hard("before")
    for index, row in enumerate(task):
        changed, now = map(int, re.findall(r"\d+", question_of(row)))
        assert answer_of(task, index) == (now - changed if " more" in question_of(row) else now + changed)


# --- worked solutions


@pytest.mark.parametrize("split", SPLITS)
def test_each_call_of_the_calculator_gives_what_stands_there_and_uses_known_numbers(split: str) -> None:
    for index, row in enumerate(problems(split)):
        parts = row["messages"][1]["content"]
        calls = [part["text"] for part in parts if part["type"] == "python"]
        results = [part["text"] for part in parts if part["type"] == "python_output"]
        assert [calculate(call) for call in calls] == results
        assert len(calls) == LEVELS[index % len(LEVELS)]
        known = re.findall(r"\d+", question_of(row))
        for call, result in zip(calls, results, strict=True):
            assert set(re.findall(r"\d+", call)) <= set(known), row
            known.append(result)
        assert reference_text(row).endswith(f"#### {results[-1]}")
        # Each result is used by the next call, or by the last: the question asks for a running total.
        for place, result in enumerate(results[:-1], 1):
            assert any(result in re.findall(r"\d+", call) for call in (calls[place], calls[-1])), row


def test_numbers_stay_small() -> None:
    stories = [problems(split).story(index) for split in SPLITS for index in range(1_200)]
    stories += [hard(shape).story(index) for shape in SHAPES for index in range(100)]
    for story in stories:
        assert all(1 <= number <= 20 for number in story.numbers) or "some " in story.text
        assert all(1 <= step.result <= 99 and step.left <= 99 and step.right <= 99 for step in story.steps)


@pytest.mark.parametrize("shape", SHAPES)
def test_hard_problems_give_no_solution_away(shape: str) -> None:
    for split in SPLITS:
        for row in islice(hard(shape, split), 200):
            answer = row["messages"][1]["content"]
            assert isinstance(answer, str)
            assert re.fullmatch(r"#### \d+", answer)
            assert set(row) == {"messages"}


# --- splits


def numbers_in(text: str) -> tuple[int, ...]:
    return tuple(sorted(map(int, re.findall(r"\d+", text))))


def test_train_and_test_share_no_numbers() -> None:
    """Read from the texts: the numbers of a training problem, in any order, are those of no test problem."""
    tasks: list[tuple[Task, Task]] = [(problems("train"), problems("test"))]
    tasks += [(hard(shape, "train"), hard(shape, "test")) for shape in SHAPES]
    for train, test in tasks:
        trained = {numbers_in(question_of(row)) for row in train}
        tested = {numbers_in(question_of(row)) for row in test}
        assert not trained & tested, train.name
        assert len(trained) > 100
        assert len(tested) > 30


def test_the_numbers_decide_the_split() -> None:
    sizes = Counter(is_in_split((a, b), "test") for a in range(1, 21) for b in range(1, 21))
    assert 0.15 < sizes[True] / 400 < 0.25
    assert all(is_in_split((a, 7), "test") != is_in_split((a, 7), "train") for a in range(100))


@pytest.mark.parametrize("task", [WordProblems(), *(HardProblems(shape=s) for s in SHAPES)], ids=lambda t: t.name)
def test_a_test_has_a_thousand_different_problems(task: Task) -> None:
    rows = [question_of(row) for row in task]
    assert len(rows) >= 1_000
    assert len(set(rows)) >= 0.99 * len(rows)


# --- wording


def test_there_are_many_wordings_of_every_kind_and_all_are_used() -> None:
    assert all(len(table) >= 12 for table in world_sentences.SENTENCES.values())
    new = {name: set(table) for name, table in world_sentences.NEW_SENTENCES.items() if name != "start"}
    assert not [table for name, table in new.items() if table & set(world_sentences.SENTENCES[name])]
    text = "\n".join(question_of(row) for row in problems("train"))
    for table in (*world_sentences.SENTENCES.values(), world_sentences.QUESTIONS):
        for wording in table:
            middle = max(re.split(r"\{\w+\}", wording), key=len)
            assert middle in text, wording


@pytest.mark.parametrize("task", [problems("train"), *(hard(shape) for shape in SHAPES)], ids=lambda t: t.name)
def test_grammar(task: Task) -> None:
    """One of a thing is singular, more are plural; sentences begin with capitals; nothing is left to fill in."""
    plurals = {many for _, many in world_sentences.THINGS}
    for row in task:
        text = question_of(row) + " " + reference_text(row).replace("\n", " ")
        for number, word in re.findall(r"\b(\d+) (\w+)", text):
            if word in plurals:
                assert number != "1", text
            if word in {one for one, _ in world_sentences.THINGS}:
                assert number == "1", text
        assert not re.search(r"[{}]|  |\b1 are\b|\b(?!1\b)\d+ is (lost|broken)", text), text
        assert not re.search(r"(^|[.?] )[a-z]", question_of(row)), text
        assert question_of(row)[-1] in ".?"


def test_a_pronoun_means_who_was_spoken_of() -> None:
    """ "He" and "she" begin a sentence only after one in which no one else of that sex was named."""
    for row in problems("train"):
        sentences = re.split(r"(?<=[.?]) ", question_of(row))
        for before, sentence in pairwise(sentences):
            if match := re.match(r"(He|She)\b", sentence):
                sex = {"He": "m", "She": "f"}[match[1]]
                heroes = people(asked(question_of(row))[1])
                named = {name for name in people(before) if CHARACTERS[name].sex == sex}
                assert named <= set(heroes), question_of(row)
                assert len(named) <= 1, question_of(row)
                assert sex in {CHARACTERS[hero].sex for hero in heroes}


# --- right and wrong


@given(st.integers(0, 1_199), st.integers(-200, 200), st.sampled_from(["", " ", ".", " apples.", "\n"]))
def test_only_the_right_number_is_right(index: int, change: int, after: str) -> None:
    for task in (problems("test"), hard("compare")):
        row = task[index % len(task)]
        answer = answer_of(task, index % len(task))
        assert task.evaluate(row, reference_text(row))
        assert task.evaluate(row, f"#### {answer + change}{after}") == (change == 0)
        assert task.reward(row, f"I see. #### {answer + change}{after}") == float(change == 0)
        assert not task.evaluate(row, f"It is {answer}.")
        assert not task.evaluate(row, f"#### {answer}.5")
        assert not task.evaluate(row, f"#### {answer}{abs(change)}")
        assert not task.evaluate(row, f"{reference_text(row)}\n#### {answer + 1}")


def test_bad_options_are_named() -> None:
    with pytest.raises(UserError, match="level is 4"):
        WordProblems(level=4)
    with pytest.raises(UserError, match="'six_steps'"):
        HardProblems(shape="six_steps")
