"""Terms of texts and questions: any script, any input, and the same on both sides of a search."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.passages.terms import (
    MAX_TERM_CHARACTERS,
    STOP_WORDS,
    all_terms,
    query_phrases,
    query_terms,
    refers_back,
)


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The QUICK brown_fox's 2nd jump!", ["the", "quick", "brown", "fox", "s", "2nd", "jump"]),
        ("Crème brûlée, naïve Straße", ["creme", "brulee", "naive", "strasse"]),
        ("creme brule\u0301e", ["creme", "brulee"]),  # the accent as a character of its own
        ("Привет, МИР", ["привет", "мир"]),
        ("हिन्दी भाषा।", ["हिन्दी", "भाषा"]),  # vowel signs belong to their word, the danda does not
        ("مَرْحَبًا שָׁלוֹם", ["مرحبا", "שלום"]),  # without points
        ("ｆｕｌｌ ｗｉｄｔｈ", ["full", "width"]),
        ("x" * 50, ["x" * MAX_TERM_CHARACTERS]),
        ("", []),
        ('"; -- \0 \ud800 *', []),
    ],
)
def test_words_of_many_scripts(text: str, terms: list[str]) -> None:
    assert all_terms(text) == terms


def test_scripts_without_spaces() -> None:
    assert all_terms("Tokyo東京都の") == ["tokyo", "東", "京", "都", "の", "東京", "京都", "都の"]
    assert query_terms("東京") == ["東京"]
    assert query_terms("東") == ["東"]
    assert query_terms("도쿄는") == ["도쿄", "쿄는"]
    assert "กข" in query_terms("กขค")


def test_stop_words_are_left_out_unless_there_are_no_others() -> None:
    assert query_terms("What is the capital of France?") == ["capital", "france"]
    assert query_terms("Who are you?") == ["who", "are", "you"]
    assert query_terms("the king and THE king") == ["king"]
    assert all(term == term.casefold() and all_terms(term) == [term] for term in STOP_WORDS)


def test_phrases_are_quotations_and_neighbouring_terms() -> None:
    assert query_phrases("Who won the red kite race?") == ["red kite", "kite race"]
    assert query_phrases('"It was I", he said. „So it is“, «and  on»?') == ["it was i", "so it is", "and on"]
    assert query_phrases("東京都") == ["東京 京都"]
    assert query_phrases('"Tea" or tea?') == []


@pytest.mark.parametrize(
    ("question", "is_back"),
    [("And the king?", True), ("Where did she go?", True), ("Why?", True), ("Where did Mia go?", False), ("", True)],
)
def test_questions_that_refer_back(question: str, is_back: bool) -> None:
    assert refers_back(question) == is_back


@given(st.text())
def test_a_term_is_no_syntax(text: str) -> None:
    for term in (*all_terms(text), *" ".join(query_phrases(text)).split()):
        assert term
        assert not set(term) & set("\"'*()^:+-{}, \0\n"), term


@given(st.text())
def test_a_text_is_found_by_itself(text: str) -> None:
    assert set(query_terms(text)) <= set(all_terms(text))


@given(st.text(alphabet=st.characters(max_codepoint=127)))
def test_the_path_for_ascii_agrees_with_the_other(text: str) -> None:
    assert all_terms(text) == all_terms(f"{text} é")[:-1]
