"""nanochat/conversations/sentences.py: the splitter, and sentences that can stand alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.conversations.sentences import (
    _QuoteState,
    content_words,
    is_english,
    is_whole,
    normalize,
    split_sentences,
    squeeze,
    stands_alone,
    words,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("Dr. Hen met Mr. C. Wright at 3 p.m. It rained.", ["Dr. Hen met Mr. C. Wright at 3 p.m. It rained."]),
        ("It costs 3.50 dollars. That is much.", ["It costs 3.50 dollars.", "That is much."]),
        ('"Go!" said the hen. She left.', ['"Go!" said the hen.', "She left."]),
        ('He said, "Come here. Sit down." Then he left.', ['He said, "Come here. Sit down."', "Then he left."]),
        ("“Who? Me?” he asked. “Yes.”", ["“Who? Me?” he asked.", "“Yes.”"]),
        ("We met J. Smith.\nHe waved.", ["We met J. Smith.", "He waved."]),
        ("See e.g. Smith. It works.", ["See e.g. Smith.", "It works."]),
        ("他来了。他走了！真的？", ["他来了。", "他走了！", "真的？"]),
        ("वह आया। वह गया।", ["वह आया।", "वह गया।"]),
        ("Привет. Как дела? Хорошо.", ["Привет.", "Как дела?", "Хорошо."]),
        ("no end", ["no end"]),
        ("", []),
    ],
)
def test_split_sentences(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


def test_a_quotation_that_is_never_closed_does_not_swallow_the_text() -> None:
    text = '"It began. ' + "Then it went on and on. " * 40
    assert len(split_sentences(text)) > 10


@given(st.text(alphabet=st.sampled_from("abA .!?\"“”()。।\n\t1…'’é中"), max_size=200))
def test_no_character_is_lost(text: str) -> None:
    assert "".join(split_sentences(text)).replace(" ", "") == squeeze(text).replace(" ", "")


@given(st.text(max_size=100))
def test_any_text_is_normalized(text: str) -> None:
    assert normalize(normalize(text)) == normalize(text)
    assert all(word == word.lower() for word in words(text))
    content_words(text)
    is_english(text)


# Sentences that were once answers, each with what is wrong with it.
@pytest.mark.parametrize(
    "sentence",
    [
        "This dress is very long.",  # which?
        "However, the rain did not stop.",
        "He went to the river to drink.",
        "Such debates highlight the nature of deviance.",
        "The relationship is shown in the following table.",
        "Consider the cases that are listed below.",
        "In contrast, plants do not move at all.",
        "The unit is physical intensity. shows the relationship of loudness to intensity.",  # a lost "Figure 3"
        "Adolescents take risks because their brains are developing ().",  # a lost reference
        "An energy-level diagram of a possible transition is given in .",
        "The state and its callbacks are **owned** by the story.",  # marks of a format
        "The two children shown in are balanced on a seesaw.",
        "Find the current in a long straight wire.",
        "We will make our home in the",  # cut off
        "And the monkey agreed to the plan.",
        "Why do some animals have sharp teeth?",
        "My father bought me a new shirt.",
        "License: CC-BY Text: Ursula Nafula Illustration: Rob Owen Language: en.",  # a heading's capitals
        "Yes.",
        "The " + "very " * 60 + "long way.",
    ],
)
def test_sentences_that_need_others_do_not_stand_alone(sentence: str) -> None:
    assert not stands_alone(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "A crocodile has sharp teeth.",
        "Resistance depends on the material of an object.",
        '"Go away," said the old hen.',
        "In 1789, the king called the estates together.",
        "The price of 3 kg (about 7 pounds) is 2.50 euros.",
    ],
)
def test_sentences_that_stand_alone(sentence: str) -> None:
    assert stands_alone(sentence)


def test_first_person_is_allowed_where_the_title_says_who_speaks() -> None:
    assert stands_alone("My heart feels a lot of things.", allow_first_person=True)
    assert is_whole("She sang her song again, but nobody came.")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat sat on the mat and it was happy with that.", True),
        ("Der Hund und die Katze sind in dem Haus an der Straße.", False),
        ("```bash playwright-cli cookie-list --path=/api ```", False),
        ("他来了。", False),
        ("", False),
    ],
)
def test_is_english(text: str, expected: bool) -> None:
    assert is_english(text) is expected


@given(st.lists(st.sampled_from(['"', "(", ")", "[", "]", "“", "”", "«", "»", "a", " ", "."]), max_size=40), st.data())
def test_an_open_quotation_is_found_as_by_reading_each_character(characters: list[str], data: st.DataObject) -> None:
    text = "".join(characters)
    places = sorted(data.draw(st.lists(st.integers(0, len(text)), min_size=1, max_size=4)))
    state = _QuoteState(text)
    for end in places:
        opened: list[str] = []
        for character in text[:end]:
            if opened and character == opened[-1]:
                opened.pop()
            elif character in '"“([«「':
                opened.append({"“": "”", "(": ")", "[": "]", "«": "»", "「": "」"}.get(character, '"'))
        assert state.is_open(0, end) == bool(opened)
