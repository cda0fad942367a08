"""nanochat/conversations/dialogues.py: conversations of one and several questions, with passages or without."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import pytest

from nanochat.conversations.dialogues import (
    Retriever,
    Talk,
    Turn,
    balanced,
    ground,
    long_talks,
    single_talks,
    to_talk,
)
from nanochat.conversations.facts import Fact, document_facts
from nanochat.conversations.refusals import REFUSALS, is_refusal
from nanochat.passages.grounding import NUM_PASSAGES
from nanochat.passages.passage import Passage
from tasks.customjson import parse_conversation
from tests.support.tale_documents import documents

FACTS = [fact for document in documents(12) for fact in document_facts(document).facts]
FACT = Fact("has", {"do": "does", "subject": "a hut"}, ("A hut has one door.",), "huts.md", "Huts")
RIGHT = Passage("huts.md", ("Huts",), "A hut is small.\nA hut has one\ndoor. It is cool.")
WRONG = [Passage(f"{letter}.md", (letter,), f"Nothing about it in {letter}.") for letter in "abcde"]


def searching(*passages: Passage, by_answer: Sequence[Passage] = ()) -> Retriever:
    return lambda query, count, _context: list(by_answer if query == FACT.answer else passages)[:count]


def talk() -> Talk:
    return to_talk([Turn("What does a hut have?", FACT.answer, FACT)], "has")


def test_a_line_is_a_conversation_for_training() -> None:
    for made in (*single_talks(FACTS, 2, 50, random.Random(0), False), *long_talks(FACTS, (), 20, random.Random(0))):
        line = json.dumps(made.to_json(), ensure_ascii=False).encode()
        assert parse_conversation(line)["messages"] == list(made.messages)
        assert (
            made.messages[-1]["content"].replace("- ", "").split() == " ".join(made.expected).replace("- ", "").split()
        )


def test_every_fact_has_a_first_form_before_any_has_a_second() -> None:
    made = list(single_talks(FACTS, 8, len(FACTS) + 5, random.Random(0), False))
    assert {made.expected for made in made[: len(FACTS)]} == {fact.sentences for fact in FACTS}
    assert len(made) == len(FACTS) + 5
    assert len(list(single_talks(FACTS, 8, 10**6, random.Random(0), False))) == 8 * len(FACTS)


def test_balanced_keeps_the_rare_kinds_and_the_order() -> None:
    many = [FACT] * 100 + [Fact("year", {"year": "1803"}, ("In 1803, it rained.",))]
    chosen = balanced(many, 10, random.Random(0))
    assert len(chosen) == 10
    assert [fact.kind for fact in chosen] == ["has"] * 9 + ["year"]
    assert balanced(many, 1000, random.Random(0)) == many


def test_long_talks_are_about_one_document() -> None:
    made = list(long_talks(FACTS, ["Who is Velmora?"], 200, random.Random(0)))
    assert len(made) == 200
    texts = {document.name: " ".join(document.text.split()) for document in documents(12)}
    follow_ups = refused = 0
    for conversation in made:
        questions = [message["content"] for message in conversation.messages[::2]]
        assert 2 <= len(questions) <= 5
        follow_ups += any(
            question.startswith(("And ", "Now ", "Next", "What about", "Go on")) for question in questions
        )
        answers = [str(message["content"]) for message in conversation.messages[1::2]]
        refused += any(map(is_refusal, answers))
        first = answers[0].split("\n")[0].removeprefix("- ").split(". ")[0]
        [name] = [name for name, text in texts.items() if first in text or first in ALL_CELLS.get(name, "")][:1] or [""]
        assert name, first
    assert follow_ups > 20
    assert refused > 10
    assert not list(long_talks([FACT], (), 10, random.Random(0))), "one fact is no conversation"


ALL_CELLS = {
    document.name: " ".join(" ".join(map(" ".join, b.rows)) + " ".join(b.items) for b in document.blocks)
    for document in documents(12)
}


def test_passages_as_found_for_validation_and_test() -> None:
    grounded = ground(talk(), searching(WRONG[0], RIGHT, *WRONG[1:]), random.Random(0), None)
    assert grounded.rank == 2
    message = grounded.messages[0]["content"]
    assert message.index("Nothing about it in a.") < message.index("A hut has one") < message.index("What does a hut")
    assert grounded.messages[1] == talk().messages[1]
    assert message.count(">\n") == NUM_PASSAGES - 1
    missed = ground(talk(), searching(*WRONG), random.Random(0), None)
    assert (missed.rank, missed.expected) == (0, FACT.sentences), "counted as wrong, not as a refusal"
    assert missed.messages[1] == talk().messages[1]


def test_a_system_message_is_no_earlier_question() -> None:
    messages = [("system", "Be brief."), ("user", "What are you?"), ("assistant", "I am nanochat.")]
    own = Talk(tuple({"role": role, "content": text} for role, text in messages), "identity", "What are you?")
    assert ground(own, searching(*WRONG), random.Random(0), None).messages[0] == own.messages[0]


def test_training_refuses_where_the_passages_lack_the_answer() -> None:
    train = frozenset({"huts.md", "a.md", "b.md", "c.md"})
    counts = {"right": 0, "refused": 0, "not first": 0}
    for seed in range(300):
        grounded = ground(talk(), searching(WRONG[0], RIGHT, *WRONG[1:]), random.Random(seed), train)
        message = grounded.messages[0]["content"]
        assert "Nothing about it in d." not in message, "a passage of a held-out document"
        has_answer = "A hut has one" in message
        assert is_refusal(grounded.messages[1]["content"]) is not has_answer
        assert (grounded.kind == "missed") is not has_answer
        counts["right" if has_answer else "refused"] += 1
        counts["not first"] += has_answer and grounded.rank != 1
    assert counts["right"] > 250
    assert counts["refused"] > 5
    assert counts["not first"] > 100


def test_training_finds_most_passages_that_the_question_does_not() -> None:
    search = searching(*WRONG, by_answer=[RIGHT])
    train = frozenset({"huts.md", "a.md"})
    kinds = [ground(talk(), search, random.Random(seed), train).kind for seed in range(200)]
    assert 90 < kinds.count("has") < 170
    assert kinds.count("has") + kinds.count("missed") == 200


def test_an_answer_that_would_be_cut_off_comes_first() -> None:
    long = [Passage(f"{letter}.md", (letter,), f"Nothing {letter}. " * 40) for letter in "ab"]
    train = frozenset({"huts.md", "a.md", "b.md"})
    kept = [ground(talk(), searching(*long, RIGHT), random.Random(seed), train) for seed in range(50)]
    assert sum(made.rank == 1 for made in kept) > 40


def test_a_refusal_never_has_the_answer_and_earlier_answers_are_not_trained_on() -> None:
    unanswered = to_talk([Turn("Q?", FACT.answer, FACT), Turn("Who is Velmora?", REFUSALS[0], None)], "several")
    grounded = ground(unanswered, searching(*WRONG), random.Random(0), frozenset({"a.md"}))
    assert grounded.messages[1] == {"role": "assistant", "content": FACT.answer, "weight": 0}
    assert grounded.messages[0]["content"] == "Q?"
    assert grounded.messages[2]["content"].startswith("> a\n")
    assert grounded.messages[3]["content"] == REFUSALS[0]
    parse_conversation(json.dumps(grounded.to_json()).encode())


def test_a_question_that_refers_back_is_searched_with_the_one_before_it() -> None:
    asked = []

    def search(question: str, count: int, context: str) -> list[Passage]:
        asked.append((question, count, context))
        return [RIGHT]

    turns = [Turn("What is in the yard?", "A hut.", FACT), Turn("And what does it have?", FACT.answer, FACT)]
    assert ground(to_talk(turns, "several"), search, random.Random(0), None).rank == 1
    ground(
        to_talk([turns[0], Turn("What does a hut have?", FACT.answer, FACT)], "several"), search, random.Random(0), None
    )
    assert asked == [
        ("And what does it have?", NUM_PASSAGES, "What is in the yard?"),
        ("What does a hut have?", NUM_PASSAGES, ""),
    ]


@pytest.mark.parametrize("train", [None, frozenset({"a"})])
def test_without_passages_the_question_remains(train: frozenset[str] | None) -> None:
    grounded = ground(talk(), lambda _query, _count, _context: [], random.Random(0), train)
    assert grounded.messages[0]["content"] == "What does a hut have?"
    assert grounded.rank == 0
