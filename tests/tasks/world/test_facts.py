"""Facts, FactChoice and WorldChat: what is held out is never asked for, is in the base text, and is judged fairly."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.data.storyworld import Fact, generate_stories, list_facts
from nanochat.data.storyworld.narrator import Narrator
from nanochat.data.storyworld.relations import RELATIONS
from nanochat.data.storyworld.world import CHARACTERS, THINGS
from nanochat.tokenization.chat_format import Conversation
from nanochat.tokenizer import Tokenizer, trainable_tokenizer_class
from tasks.common import Task, row_rng
from tasks.world.chat import MAX_STORY_CHARS, WorldChat
from tasks.world.common import answer_sentence, facts_in_split, held_out_pairs, shuffled
from tasks.world.facts import FactChoice, Facts, states_value
from tasks.world.problems import HardProblems, WordProblems

ALL = list_facts()
HELD = [fact for fact in ALL if (fact.property, fact.subject) in held_out_pairs()]
TRAINING = [kind("train", size=1_500) for kind in (Facts, FactChoice, WorldChat)]
TESTS: list[Task] = [Facts(), FactChoice()]
PRONOUNS = {"m": "He", "f": "She"}


@cache
def chats() -> list[Conversation]:
    """The conversations of WorldChat."""
    return list(TRAINING[2])


def said(conversation: Conversation, role: str) -> list[str]:
    return [message["content"] for message in conversation["messages"] if message["role"] == role]


# --- what is held out


def test_at_least_300_facts_are_held_out_and_every_property_and_every_subject_is_asked_for_in_training() -> None:
    assert len(HELD) >= 300
    asked = facts_in_split("train")
    assert len(asked) + len(HELD) == len(ALL)
    assert {fact.property for fact in asked} == set(RELATIONS)
    assert len({fact.property for fact in HELD}) >= 20
    properties, held = (Counter(fact.subject for fact in some) for some in (ALL, HELD))
    assert all(held[subject] == count // 2 for subject, count in properties.items())


def test_two_facts_that_answer_each_other_are_on_the_same_side() -> None:
    values = {(fact.property, fact.subject): fact.value for fact in ALL}
    mutual = [pair for pair in values if values.get((pair[0], values[pair])) == pair[1]]
    assert len(mutual) > 90
    for pair in mutual:
        assert (pair in held_out_pairs()) == ((pair[0], values[pair]) in held_out_pairs()), pair


def asked_for(question: str, fact: Fact) -> bool:
    """Whether a text asks for a fact, in any wording and frame."""
    return any(wording[1:] in question for wording in fact.questions)


@cache
def wordings() -> dict[str, list[Fact]]:
    """The sentences that tell held-out facts, by name and with a pronoun."""
    told: dict[str, list[Fact]] = {}
    for fact in HELD:
        name = THINGS[fact.subject].owner if fact.subject in THINGS else fact.subject
        he = PRONOUNS[CHARACTERS[name].sex] if name in CHARACTERS else name
        for sentence in {*fact.sentences, *(sentence.replace(name, he, 1) for sentence in fact.sentences)}:
            told.setdefault(sentence, []).append(fact)
    return told


def told(conversation: Conversation) -> list[Fact]:
    """The held-out facts that the answers tell, by name or, if the subject was named before, with a pronoun."""
    before, found = "", []
    for message in conversation["messages"]:
        before += message["content"]
        if message["role"] == "assistant":
            for sentence in re.split(r"(?<=[.!?])\s+", message["content"]):
                found += [fact for fact in wordings().get(sentence, []) if fact.subject in before]
    return found


@pytest.mark.parametrize("task", TRAINING, ids=lambda task: task.name)
def test_no_held_out_fact_is_asked_for_or_told_in_training(task: Task) -> None:
    conversations = chats() if task is TRAINING[2] else list(task)
    questions = {question for conversation in conversations for question in said(conversation, "user")}
    asked = "\n".join(question.split("\n- ")[0] for question in questions)  # without choices
    assert not [fact for fact in HELD if asked_for(asked, fact)]
    assert any(asked_for(asked, fact) for fact in facts_in_split("train"))
    assert not [fact for conversation in conversations for fact in told(conversation)]


def test_the_search_for_held_out_facts_finds_what_is_there() -> None:
    fact = HELD[0]
    for question in Facts(), FactChoice():
        found = {message for row in question for message in said(row, "user") if asked_for(message, fact)}
        assert found
    answer = fact.sentences[0].replace(fact.subject, PRONOUNS[CHARACTERS[fact.subject].sex])
    messages = [("user", f"Who is {fact.subject}?"), ("assistant", f"Well. {answer}")]
    chat = {"messages": [{"role": role, "content": content} for role, content in messages]}
    assert told(chat) == [fact]


@cache
def in_the_past(fact: Fact) -> set[str]:
    """The sentences that state a fact in a story."""
    sentences = set()
    for pattern in RELATIONS[fact.property].statements["past"]:
        narrator = Narrator(row_rng("past"), {})
        narrator.full_names = True
        narrator.emit_fact(fact.property, fact.subject, pattern)
        sentences.add(narrator.text())
    return sentences


def test_stories_told_in_training_state_no_held_out_fact() -> None:
    told = [answer for row in chats() for answer in said(row, "assistant") if "\n\n" in answer]
    assert len(told) > 200
    assert max(map(len, told)) <= MAX_STORY_CHARS
    text = "\n".join(told)
    assert not [fact for fact in HELD if any(sentence in text for sentence in in_the_past(fact))]
    assert sum(any(sentence in text for sentence in in_the_past(fact)) for fact in facts_in_split("train")) > 10


def test_what_is_held_out_stands_in_the_base_text() -> None:
    """Word for word and by full name, in the present or the past; other wordings ("he", "the fox") come on top."""
    text, size = [], 0
    for story in generate_stories("train"):
        text.append(story)
        size += len(story)
        if size > 3e6:
            break
    read = "\n".join(text).lower()
    sentences = [{s[:-1] for s in fact.sentences} | in_the_past(fact) for fact in HELD]
    counts = sorted(sum(read.count(sentence.lower()) for sentence in of) for of in sentences)
    middle = counts[len(counts) // 2]
    print(f"held-out facts in 3 MB, word for word: {counts[0]} to {counts[-1]} times, median {middle}")
    assert counts[0] >= 5
    assert middle >= 20


# --- what the tests ask


@pytest.mark.parametrize("task", TESTS, ids=lambda task: task.name)
def test_a_test_has_a_thousand_different_questions_about_every_held_out_fact(task: Task) -> None:
    rows = list(task)
    assert len(rows) >= 1_000
    assert len({row["messages"][0]["content"] for row in rows}) == len(rows)
    pairs = Counter((row["property"], row["subject"]) for row in rows)
    assert set(pairs) == held_out_pairs()
    assert max(pairs.values()) <= 4


def test_an_answer_names_the_value_last_and_begins_as_no_answer_about_another_property() -> None:
    """To the word after the subject: "Mia has" would leave open whether her hair or her kite is meant."""
    begins: dict[tuple[str, str], set[str]] = {}
    for fact in ALL:
        words = answer_sentence(fact).lower()
        assert states_value(fact.property, fact.subject, words)
        if fact.property != "season":
            end = words.find(fact.subject.lower()) + len(fact.subject)
            assert words.rfind(fact.value.lower()) >= end
            following = words[end:].split()[0]
            begins.setdefault((fact.subject, f"{words[:end]} {following}"), set()).add(fact.property)
    assert not {start: properties for start, properties in begins.items() if len(properties) > 1}


def test_there_are_no_more_test_questions_than_there_are() -> None:
    every = Facts("test", size=10**9)
    assert 3_000 < len(every) < 10_000
    assert every[len(every) - 1]["property"] in RELATIONS
    with pytest.raises(UserError, match="size is 0"):
        Facts("test", size=0)
    with pytest.raises(UserError, match="'val'"):
        FactChoice("val")


def test_choices_hold_the_right_one_once_and_every_letter_is_as_frequent() -> None:
    task = FactChoice()
    letters: Counter[str] = Counter()
    for row in task:
        choices = dict(re.findall(r"^- (.*)=([A-D])$", row["messages"][0]["content"], re.M))
        letter = row["messages"][1]["content"]
        values = RELATIONS[row["property"]].values
        assert len(choices) == 4
        assert choices[values[row["subject"]]] == letter
        assert set(choices) <= set(values.values())
        assert task.evaluate(row, letter)
        assert not any(task.evaluate(row, other) for other in set("ABCD") - {letter})
        letters[letter] += 1
    assert max(letters.values()) - min(letters.values()) <= 4
    assert task.chance == 0.25


def test_far_choices_are_of_another_kind() -> None:
    kinds = {value: {fact.property for fact in ALL if fact.value == value} for value in {fact.value for fact in ALL}}
    for row in islice(FactChoice(far=True), 200):
        choices = dict(re.findall(r"^- (.*)=([A-D])$", row["messages"][0]["content"], re.M))
        assert len(choices) == 4
        of_kind = [letter for text, letter in choices.items() if row["property"] in kinds[text]]
        assert of_kind == [row["messages"][1]["content"]]


def test_a_fact_has_each_letter_in_four_turns() -> None:
    known = len(facts_in_split("train"))
    task = FactChoice("train", size=8 * known)
    for place in range(0, known, 50):
        letters = [task[place + turn * known]["messages"][1]["content"] for turn in range(8)]
        assert sorted(letters[:4]) == sorted(letters[4:]) == list("ABCD")


# --- what is right


def test_every_true_sentence_and_short_answer_is_right() -> None:
    for fact in ALL:
        for right in (*fact.sentences, f"{fact.value}.", fact.value.upper(), f"I am sure that {fact.sentences[0]}"):
            assert states_value(fact.property, fact.subject, right), (fact, right)


@given(st.sampled_from(ALL), st.randoms(use_true_random=False))
def test_another_value_is_wrong_alone_and_beside_the_right_one(fact: Fact, rng: object) -> None:
    others = shuffled(rng, sorted(set(RELATIONS[fact.property].values.values()) - {fact.value}))  # type: ignore[arg-type]
    assert not states_value(fact.property, fact.subject, f"{others[0]}.")
    if others[0].lower() not in fact.subject.lower():
        for joined in (" or ", ". ", ", "):
            assert not states_value(fact.property, fact.subject, fact.sentences[0] + joined + others[0])
        every = ", ".join([fact.value, *others])
        assert not states_value(fact.property, fact.subject, every)


@given(st.sampled_from(ALL))
def test_a_denial_and_nothing_are_wrong(fact: Fact) -> None:
    for wrong in ("", "I do not know.", f"Not {fact.value}.", fact.questions[0], f"It is not true: {fact.value}."):
        assert not states_value(fact.property, fact.subject, wrong), wrong


@pytest.mark.parametrize(
    ("relation", "subject", "answer", "right"),
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
def test_examples(relation: str, subject: str, answer: str, right: bool) -> None:
    assert states_value(relation, subject, answer) is right


def test_facts_accepts_its_own_answers() -> None:
    task = Facts()
    assert all(task.evaluate(row, row["messages"][1]["content"]) for row in task)
    assert not any(task.evaluate(row, "It is a secret.") for row in islice(task, 50))


# --- conversations


def test_conversations_know_that_they_do_not_know() -> None:
    unknown = [row for row in chats() if "do not know" in json.dumps(row["messages"])]
    assert 0.02 < len(unknown) / len(chats()) < 0.15
    for row in unknown:
        for reply in said(row, "assistant"):
            if found := re.search(r"do not know (?:anyone called )?(\w+ )?(\w+)\.", reply):
                assert found[2] not in CHARACTERS
                assert f"{found[1] or ''}{found[2]}" in " ".join(said(row, "user"))


def test_some_conversations_have_a_system_message_and_many_have_several_turns() -> None:
    system = sum(row["messages"][0]["role"] == "system" for row in chats()) / len(chats())
    turns = Counter(len(said(row, "user")) for row in chats())
    assert 0.1 < system < 0.3
    assert set(turns) >= {1, 2, 3, 4}
    assert max(turns) <= 5
    with pytest.raises(UserError, match="no score"):
        TRAINING[2].evaluate(chats()[0], "")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return trainable_tokenizer_class().train_from_iterator(islice(generate_stories("train"), 1_500), 2_048)


@pytest.mark.parametrize(
    "task",
    [*TRAINING, *TESTS, WordProblems("train", 1_000), HardProblems("test", 500, shape="five_steps")],
    ids=lambda task: f"{task.name}-{task.split}",
)
def test_conversations_fit_a_context_of_256(task: Task, tokenizer: Tokenizer) -> None:
    sizes = [len(tokenizer.render_conversation(task[i], 10_000)[0]) for i in range(0, len(task), 2)]
    print(f"{task.name}: {sum(sizes) / len(sizes):.0f} tokens, at most {max(sizes)}")
    assert max(sizes) < 256
    if isinstance(task, HardProblems):
        assert max(sizes) < 160  # there must be room for five steps of a solution


_DIGEST = """
import hashlib, json
from tests.tasks.world.test_facts import digest
print(digest())
"""


def digest() -> str:
    """A hash of examples of every kind, read backwards."""
    tasks = [*TRAINING, *TESTS, WordProblems("train", 50), *(HardProblems(size=20, shape=s) for s in ("compare",))]
    rows = [task[i] for task in tasks for i in range(19, -1, -1)]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def test_examples_depend_on_nothing_but_their_place() -> None:
    there = subprocess.run([sys.executable, "-c", _DIGEST], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == digest()
    assert Facts("train", seed=1)[0] != Facts("train")[0]
    assert [row["messages"] for row in Facts(start=5, stop=11, step=2)] == [Facts()[i]["messages"] for i in (5, 7, 9)]
