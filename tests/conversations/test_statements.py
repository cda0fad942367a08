"""nanochat/conversations/statements.py: facts of sentences, and sentences that are left alone."""

from __future__ import annotations

import pytest

from nanochat.conversations.statements import Statements, parse_statement
from nanochat.documents.document import Block, Document


def facts(text: str, title: str = "T") -> list[tuple[str, dict[str, str]]]:
    document = Document("a.md", title, (Block("paragraph", text, ()),))
    return [(kind, slots) for kind, slots, _, _, _ in Statements(document).facts()]


STORY = (
    "Once there was a hen. She was hungry. She saw Jackal and she ran. Her friend Jackal was tired. They met the hen. "
    "She said that he was late. "
)


@pytest.mark.parametrize(
    ("sentence", "kind", "slots"),
    [
        ("A vector is a quantity that has magnitude.", "definition", {"term": "a vector", "is": "is"}),
        ("Profit refers to a difference. Its profit is small.", "definition", {"term": "profit", "is": "is"}),
        ("A hut has one door and two windows.", "has", {"do": "does", "subject": "a hut"}),
        ("The model can call a calculator for sums.", "can", {"can": "can", "subject": "the model"}),
        (
            "When the bees were out, the boy pushed his hands into the nest.",
            "cause",
            {"happens": "happened", "condition": "when the bees were out"},
        ),
        (
            "If a write fails, the run ends with an error.",
            "cause",
            {"happens": "happens", "condition": "if a write fails"},
        ),
        ("Huts are good in dry seasons because they are cool.", "reason", {"claim": "huts are good in dry seasons"}),
        ("In 1803, Jefferson appointed a captain.", "year", {"year": "1803"}),
        ("A huge man filled the old dark cave.", "agent", {"who": "Who", "predicate": "filled the old dark cave"}),
        ("A bag contains four green marbles.", "agent", {"who": "What", "predicate": "contains four green marbles"}),
        ('"I think I should be king," said Peacock, fanning his tail.', "said", {"speaker": "Peacock"}),
        (
            'The old woman asked, "Why do you run so fast?"',
            "speech",
            {"said": "asked", "quote": "Why do you run so fast?"},
        ),
        ('"Come on Sunday and see," the snail said slowly.', "said", {"speaker": "the snail"}),
    ],
)  # fmt: skip
def test_facts(sentence: str, kind: str, slots: dict[str, str]) -> None:
    assert (kind, slots) in facts(sentence)


# Each was once a question; the comment is what was asked.
@pytest.mark.parametrize(
    ("sentence", "kind"),
    [
        ("All territories placed in trust subsequently attained independence.", "agent"),  # What placed in trust ...?
        ("Someone may wish for blue hair in a bright colour.", "agent"),  # What may wish for blue hair?
        ("The market is, after all, a full-contact sport.", "agent"),
        (
            "Rhianna took a six month hiatus; Adele also went without for some time.",
            "agent",
        ),  # What took a hiatus; ...?
        ("The 2020 experiment had been a success in the end.", "has"),  # What did the experiment have?
        ("Tortoise had impatiently entered into the fight.", "has"),  # What did Tortoise have?
        ("When he came home, the door was open.", "cause"),  # who?
        ("When dogs, cats and birds meet, they fight.", "cause"),  # the comma of a list
        ('Another man stood up and said, "The men will dig a well."', "said"),  # What did another man stood say?
        ('Shaking their heads they said, "There are no crocodiles here."', "said"),  # What did Shaking say?
        ('"Young man, you are lazy," said Jackal\'s father.', "said"),  # What did Jackal's say?
        ("The company has shown a lack of care.", "has"),
        ("Advertising has changed, as people have. All advertising is new.", "has"),
        ("After a few minutes, the child returned to the house.", "cause"),  # What happened after a few minutes?
        ("The battery used in cars and other vehicles is a common type.", "agent"),  # What used in cars ...?
        ("A balance sheet (sometimes called an account) is a tool of accounting.", "agent"),
        ("Incentives offered by the cities include many tax abatements. Incentives work.", "agent"),
        ("Many philosophers remain unconvinced by the argument.", "about"),
        ("When writing a long letter, keep the reader in mind.", "cause"),
        ("A long study comparing mentored and non-mentored individuals.", "agent"),
        ("The system is a part of it.", "about"),
        ("The main causes of war are many and old.", "agent"),
        ("Imagine being the reader of the letter.", "about"),  # What do you know about Imagine?
    ],
)
def test_sentences_that_give_no_such_fact(sentence: str, kind: str) -> None:
    assert kind not in {found for found, _ in facts(sentence)}


def test_a_rating_is_no_rat() -> None:
    [slots] = [
        slots for kind, slots in facts("A bond rating may change in bad times for the company.") if kind == "agent"
    ]
    assert slots["who"] == "What"


def test_family_is_no_adverb() -> None:
    found = facts(STORY + "The hen saw Akai there. Akai's family sang to welcome her home.")
    assert not [slots for kind, slots in found if slots.get("predicate", "").startswith("family")]


@pytest.mark.parametrize(
    ("sentence", "happens"),
    [
        ("When food fills the stomach, cells release a hormone called gastrin.", "happens"),
        ("If the man was unsure, the questions shifted to other things.", "happened"),
        ("When Kodak tried a new camera, Polaroid sued the company.", "happened"),
        ("When Akai got up, the bird flapped its wings.", "happened"),
        ("When a neighbour appears, the cat is ready to scratch.", "happens"),
    ],
)
def test_the_tense_of_what_happens(sentence: str, happens: str) -> None:
    assert [slots["happens"] for kind, slots in facts(sentence) if kind == "cause"] == [happens]


def test_a_name_at_the_beginning_of_a_story_keeps_its_capital() -> None:
    found = facts(STORY + "Dinah took the red basket to the old market.")
    assert ("agent", {"who": "Who", "predicate": "took the red basket to the old market"}) in found
    found = facts(STORY + "Granny has a new red basket.")
    assert ("has", {"do": "does", "subject": "Granny"}) in found


@pytest.mark.parametrize(
    "sentence", ["", "Word.", "The", "a b c d e f g h i", "The old the new the king of of.", "!!!"]
)
def test_fragments_are_no_statements(sentence: str) -> None:
    assert parse_statement(sentence, frozenset()) is None
