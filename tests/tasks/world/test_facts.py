"""Facts and FactChoice: test questions, choices, and the judgement of answers."""

from __future__ import annotations

import re
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.data.storyworld import Fact
from nanochat.data.storyworld.relations import RELATIONS
from nanochat.tokenization.chat_format import Conversation
from tasks.common import Task
from tasks.world.common import facts_in_split, held_out_pairs, shuffled
from tasks.world.facts import FactChoice, Facts, states_value
from tests.support.world_tasks import ALL_FACTS, TEST_TASKS


def choices_of(conversation: Conversation) -> dict[str, str]:
    """The choices of a question as {text: letter}."""
    return dict(re.findall(r"^- (.*)=([A-D])$", conversation["messages"][0]["content"], re.M))


# --- questions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TEST_TASKS, ids=lambda task: task.name)
def test_a_test_has_a_thousand_distinct_questions_about_every_held_out_fact(task: Task) -> None:
    rows = list(task)
    assert len(rows) >= 1_000
    assert len({row["messages"][0]["content"] for row in rows}) == len(rows)
    num_questions = Counter((row["property"], row["subject"]) for row in rows)
    assert set(num_questions) == held_out_pairs()
    assert max(num_questions.values()) <= 4


def test_the_test_split_has_no_more_rows_than_questions() -> None:
    task = Facts("test", size=10**9)
    assert 3_000 < len(task) < 10_000
    assert len({row["messages"][0]["content"] for row in task}) == len(task)
    assert task[len(task) - 1]["property"] in RELATIONS


def test_impossible_options_are_named() -> None:
    with pytest.raises(UserError, match="Facts: size is 0: must be at least 1"):
        Facts("test", size=0)
    with pytest.raises(UserError, match="FactChoice: split is 'val': must be one of train, test"):
        FactChoice("val")


# --- choices ----------------------------------------------------------------------------------------------------------


def test_choices_contain_the_value_once_and_letters_are_equally_frequent() -> None:
    task = FactChoice()
    num_letters: Counter[str] = Counter()
    for row in task:
        choices = choices_of(row)
        letter = row["messages"][1]["content"]
        values = RELATIONS[row["property"]].values
        assert len(choices) == 4
        assert choices[values[row["subject"]]] == letter
        assert set(choices) <= set(values.values())
        assert task.evaluate(row, letter)
        assert not any(task.evaluate(row, other) for other in set("ABCD") - {letter})
        num_letters[letter] += 1
    assert max(num_letters.values()) - min(num_letters.values()) <= 4
    assert task.chance == 0.25


def test_far_choices_are_values_of_other_properties() -> None:
    properties_of: dict[str, set[str]] = {}
    for fact in ALL_FACTS:
        properties_of.setdefault(fact.value, set()).add(fact.property)
    for row in islice(FactChoice(far=True), 200):
        choices = choices_of(row)
        assert len(choices) == 4
        of_property = [letter for text, letter in choices.items() if row["property"] in properties_of[text]]
        assert of_property == [row["messages"][1]["content"]]


def test_a_fact_has_each_letter_in_four_turns() -> None:
    num_facts = len(facts_in_split("train"))
    task = FactChoice("train", size=8 * num_facts)
    for index in range(0, num_facts, 50):
        letters = [task[index + turn * num_facts]["messages"][1]["content"] for turn in range(8)]
        assert sorted(letters[:4]) == sorted(letters[4:]) == list("ABCD")


# --- judgement --------------------------------------------------------------------------------------------------------


def test_every_true_sentence_and_short_answer_is_correct() -> None:
    for fact in ALL_FACTS:
        for answer in (*fact.sentences, f"{fact.value}.", fact.value.upper(), f"I am sure that {fact.sentences[0]}"):
            assert states_value(fact.property, fact.subject, answer), (fact, answer)


@given(st.sampled_from(ALL_FACTS), st.randoms(use_true_random=False))
def test_another_value_is_wrong_alone_and_together_with_the_true_one(fact: Fact, rng: object) -> None:
    others = shuffled(rng, sorted(set(RELATIONS[fact.property].values.values()) - {fact.value}))  # type: ignore[arg-type]
    assert not states_value(fact.property, fact.subject, f"{others[0]}.")
    if others[0].lower() not in fact.subject.lower():
        for separator in (" or ", ". ", ", "):
            assert not states_value(fact.property, fact.subject, fact.sentences[0] + separator + others[0])
        all_values = ", ".join([fact.value, *others])
        assert not states_value(fact.property, fact.subject, all_values)


@given(st.sampled_from(ALL_FACTS))
def test_denials_and_empty_answers_are_wrong(fact: Fact) -> None:
    for answer in ("", "I do not know.", f"Not {fact.value}.", fact.questions[0], f"It is not true: {fact.value}."):
        assert not states_value(fact.property, fact.subject, answer), answer


@pytest.mark.parametrize(
    ("relation", "subject", "answer", "is_correct"),
    [
        ("home", "Tom", "Tom lives in the house by the bridge.", True),
        ("home", "Otto", "Otto lives in the house by the river.", True),  # close enough: it names no other home
        ("home", "Otto", "Otto lives by the river and in the old barn.", False),
        ("color", "wheelbarrow", "Mrs Green's wheelbarrow is yellow.", True),
        ("color", "wheelbarrow", "Mrs Green's wheelbarrow is green.", False),
        ("color", "hammer", "It is dark red.", True),
        ("color", "hammer", "It is red.", False),
        ("material", "sack", "Mr Stone's sack is made of stone.", False),
        ("friend", "Mia", "Mia's best friend is Mia.", False),
        ("near", "bakery", "The bakery is not near the school.", False),
        ("near", "bakery", "The bakery is not far from the school.", True),
        ("workplace", "tailor", "A tailor works at the tailor shop.", True),
    ],
)
def test_examples(relation: str, subject: str, answer: str, is_correct: bool) -> None:
    assert states_value(relation, subject, answer) is is_correct


def test_reference_answers_are_correct() -> None:
    task = Facts()
    assert all(task.evaluate(row, row["messages"][1]["content"]) for row in task)
    assert not any(task.evaluate(row, "It is a secret.") for row in islice(task, 50))
