"""The message with passages before the question: one meaning, whatever the texts contain, and a bounded length."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nanochat.passages.grounding import MAX_CHARACTERS, MAX_LABEL_CHARACTERS, grounded_question, shorten
from nanochat.passages.passage import Passage
from nanochat.tokenizer import SPECIAL_TOKENS
from tests.support.scripted_engine import SPECIAL, TOKENIZER, user

LINES = st.lists(
    st.one_of(st.text(max_size=30), st.sampled_from(["> quoted", ">", "", "\r", "a\u2028b", "<|user_end|>", "a\x0cb"])),
    max_size=6,
)
TEXTS = LINES.map("\n".join)
PASSAGES = st.builds(Passage, st.text(min_size=1, max_size=9), st.lists(TEXTS, max_size=3).map(tuple), TEXTS)


def read_back(message: str) -> tuple[list[list[str]], str]:
    """Read a message as its format says: the lines of each passage, and the question."""
    if not message.startswith(">"):
        return [], message
    quotation, _, question = message.partition("\n\n")
    passages: list[list[str]] = [[]]
    for line in quotation.split("\n"):
        if line == ">":
            passages.append([])
        else:
            assert line.startswith("> ")
            passages[-1].append(line[2:])
    return passages, question


def test_several_passages() -> None:
    passages = [
        Passage("tea.md", ("Tea", "How to brew"), "Boil water.\n\n- leaves\n- a pot"),
        Passage("notes/coffee.txt", (), "Grind the beans."),
    ]
    message = grounded_question(passages, "Tea?\n\n> Not a passage")
    assert message == (
        "> Tea / How to brew\n> Boil water.\n> - leaves\n> - a pot\n>\n> notes/coffee.txt\n> Grind the beans.\n\n"
        "Tea?\n\n> Not a passage"
    )
    assert read_back(message)[1] == "Tea?\n\n> Not a passage"


def test_without_passages_the_message_is_the_question() -> None:
    assert grounded_question([], " Who? ") == "Who?"
    assert grounded_question([Passage("a", (), "\n \n")], "Who?") == "Who?"
    assert grounded_question([Passage("a", (), "text")], "Who?", max_characters=0) == "Who?"


@given(st.lists(PASSAGES, max_size=3), st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_a_message_has_one_meaning(passages: list[Passage], question: str) -> None:
    message = grounded_question(passages, question)
    with_text = [passage for passage in passages if passage.text.strip()]
    if not with_text:
        assert message == question.strip()
        return
    quoted, read_question = read_back(message)
    assert len(quoted) == len(with_text)
    assert read_question == question.strip()
    for lines, passage in zip(quoted, with_text, strict=True):
        assert "".join("".join(lines[1:]).split()) == "".join(passage.text.split())


@given(st.lists(st.builds(Passage, st.just("a"), st.lists(st.text()).map(tuple), st.text(max_size=2000)), max_size=3))
def test_the_length_is_bounded(passages: list[Passage]) -> None:
    quoted, _ = read_back(grounded_question(passages, "Who?"))
    assert sum(len("\n".join(lines[1:])) for lines in quoted) <= MAX_CHARACTERS
    assert all(len(lines[0]) <= MAX_LABEL_CHARACTERS for lines in quoted)


@given(TEXTS, st.integers(-1, 60))
def test_a_shortened_text_is_the_beginning(text: str, limit: int) -> None:
    short = shorten(text, limit)
    assert text.startswith(short)
    assert len(short) <= max(limit, 0)


def test_a_long_passage_ends_with_a_sentence() -> None:
    text = " ".join(f"This is sentence number {number}." for number in range(100))
    [lines], _ = read_back(grounded_question([Passage("a", ("h",), text)], "Who?"))
    assert MAX_CHARACTERS - 40 < len(lines[1]) <= MAX_CHARACTERS
    assert lines[1].endswith(".")


def test_names_of_special_tokens_are_text() -> None:
    passage = Passage("a.md", ("<|bos|>",), " ".join(SPECIAL_TOKENS))
    ids = TOKENIZER.render_for_completion({"messages": [user(grounded_question([passage], "<|user_end|>"))]})
    special = [token for token in ids if token in set(SPECIAL.values())]
    assert special == [SPECIAL[f"<|{name}|>"] for name in ("bos", "user_start", "user_end", "assistant_start")]
