"""Held-out facts: their number, their absence from training conversations, their presence in the base text."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest

from nanochat.data.storyworld import generate_stories
from nanochat.data.storyworld.relations import RELATIONS
from nanochat.data.storyworld.world import CHARACTERS
from nanochat.tokenizer import Tokenizer, trainable_tokenizer_class
from tasks.common import Task
from tasks.world.common import answer_sentence, facts_in_split, held_out_pairs
from tasks.world.facts import FactChoice, Facts, states_value
from tasks.world.problems import HardProblems, WordProblems
from tests.support.world_tasks import (
    ALL_FACTS,
    HELD_OUT_FACTS,
    SUBJECT_PRONOUNS,
    TEST_TASKS,
    TRAINING_TASKS,
    asks_for,
    contents,
    past_sentences,
    stated_held_out_facts,
)

# --- held-out facts ---------------------------------------------------------------------------------------------------


def test_half_of_the_facts_about_a_subject_are_held_out_and_training_asks_for_every_property() -> None:
    assert len(HELD_OUT_FACTS) >= 300
    training_facts = facts_in_split("train")
    assert len(training_facts) + len(HELD_OUT_FACTS) == len(ALL_FACTS)
    assert {fact.property for fact in training_facts} == set(RELATIONS)
    assert len({fact.property for fact in HELD_OUT_FACTS}) >= 20
    num_facts = Counter(fact.subject for fact in ALL_FACTS)
    num_held_out = Counter(fact.subject for fact in HELD_OUT_FACTS)
    assert all(num_held_out[subject] == count // 2 for subject, count in num_facts.items())


def test_two_facts_that_answer_each_other_are_on_the_same_side() -> None:
    values = {(fact.property, fact.subject): fact.value for fact in ALL_FACTS}
    mutual = [pair for pair in values if values.get((pair[0], values[pair])) == pair[1]]
    assert len(mutual) > 90
    for pair in mutual:
        assert (pair in held_out_pairs()) == ((pair[0], values[pair]) in held_out_pairs()), pair


@pytest.mark.parametrize("task", TRAINING_TASKS, ids=lambda task: task.name)
@pytest.mark.slow
def test_training_neither_asks_for_nor_states_a_held_out_fact(task: Task) -> None:
    conversations = list(task)
    questions = {question for conversation in conversations for question in contents(conversation, "user")}
    text = "\n".join(question.split("\n- ")[0] for question in questions)  # without choices
    assert not [fact for fact in HELD_OUT_FACTS if asks_for(text, fact)]
    assert any(asks_for(text, fact) for fact in facts_in_split("train"))
    assert not [fact for conversation in conversations for fact in stated_held_out_facts(conversation)]


def test_the_search_for_held_out_facts_finds_them() -> None:
    fact = HELD_OUT_FACTS[0]
    for task in TEST_TASKS:
        assert any(asks_for(question, fact) for row in task for question in contents(row, "user"))
    answer = fact.sentences[0].replace(fact.subject, SUBJECT_PRONOUNS[CHARACTERS[fact.subject].sex])
    messages = [("user", f"Who is {fact.subject}?"), ("assistant", f"Well. {answer}")]
    conversation = {"messages": [{"role": role, "content": content} for role, content in messages]}
    assert stated_held_out_facts(conversation) == [fact]


@pytest.mark.slow
def test_held_out_facts_are_in_the_base_text() -> None:
    """Word for word and by full name, in present or past; other wordings ("he", "the fox") are not counted."""
    texts = []
    size = 0
    for story in generate_stories("train"):
        texts.append(story)
        size += len(story)
        if size > 3e6:
            break
    text = "\n".join(texts).lower()
    sentences = [{s[:-1] for s in fact.sentences} | past_sentences(fact) for fact in HELD_OUT_FACTS]
    counts = sorted(sum(text.count(sentence.lower()) for sentence in of_fact) for of_fact in sentences)
    median = counts[len(counts) // 2]
    print(f"held-out facts in 3 MB, word for word: {counts[0]} to {counts[-1]} times, median {median}")
    assert counts[0] >= 5
    assert median >= 20


def test_an_answer_names_the_value_last_and_begins_unlike_answers_about_other_properties() -> None:
    """Up to the word after the subject: "Mia has" could be followed by her hair or by her kite."""
    properties_by_start: dict[tuple[str, str], set[str]] = {}
    for fact in ALL_FACTS:
        text = answer_sentence(fact).lower()
        assert states_value(fact.property, fact.subject, text)
        if fact.property != "season":
            end = text.find(fact.subject.lower()) + len(fact.subject)
            assert text.rfind(fact.value.lower()) >= end
            next_word = text[end:].split()[0]
            properties_by_start.setdefault((fact.subject, f"{text[:end]} {next_word}"), set()).add(fact.property)
    assert not {start: properties for start, properties in properties_by_start.items() if len(properties) > 1}


# --- examples ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return trainable_tokenizer_class().train_from_iterator(islice(generate_stories("train"), 1_500), 2_048)


@pytest.mark.parametrize(
    "task",
    [*TRAINING_TASKS, *TEST_TASKS, WordProblems("train", 1_000), HardProblems("test", 500, shape="five_steps")],
    ids=lambda task: f"{task.name}-{task.split}",
)
def test_conversations_fit_a_context_of_256(task: Task, tokenizer: Tokenizer) -> None:
    sizes = [len(tokenizer.render_conversation(task[i], 10_000)[0]) for i in range(0, len(task), 2)]
    print(f"{task.name}: {sum(sizes) / len(sizes):.0f} tokens, at most {max(sizes)}")
    assert max(sizes) < 256
    if isinstance(task, HardProblems):
        assert max(sizes) < 160  # five steps of a solution must fit too


_PRINT_DIGEST = """
from tests.tasks.world.test_common import digest
print(digest())
"""


def digest() -> str:
    """A hash of examples of every kind, generated in reverse order."""
    problems = [WordProblems("train", 50), HardProblems(size=20, shape="compare")]
    rows = [task[i] for task in [*TRAINING_TASKS, *TEST_TASKS, *problems] for i in range(19, -1, -1)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def test_examples_depend_on_split_seed_and_index_only() -> None:
    other_process = subprocess.run([sys.executable, "-c", _PRINT_DIGEST], capture_output=True, text=True, check=True)
    assert other_process.stdout.strip() == digest()
    assert Facts("train", seed=1)[0] != Facts("train")[0]
    assert [row["messages"] for row in Facts(start=5, stop=11, step=2)] == [Facts()[i]["messages"] for i in (5, 7, 9)]
    assert FactChoice("train", size=3)[2] == FactChoice("train", size=5)[2]
