"""Candidates of passages: sentences, lists and their items, cells, meanings of terms."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nanochat.conversations.sentences import normalize
from nanochat.passages.passage import Passage
from nanochat.quoting.candidates import KINDS, MAX_CANDIDATES, Candidate, candidates, is_list


def of(text: str) -> list[Candidate]:
    return candidates([Passage("a.md", ("A",), text)])


def texts(text: str, kind: str) -> list[str]:
    return [candidate.text for candidate in of(text) if candidate.kind == kind]


def test_sentences_and_their_places() -> None:
    first, second, third = of("It rained. Mia ran home.\n\nShe slept.\n\n- Text: A. Writer\n- Picture: B. Painter")[:3]
    assert [each.text for each in (first, second, third)] == ["It rained.", "Mia ran home.", "She slept."]
    assert (first.previous, second.previous, third.previous) == ("", "It rained.", "")
    assert [each.is_first for each in (first, second, third)] == [True, False, False]
    assert [each.is_last for each in (first, second, third)] == [False, False, True], "a list of authors ends no text"


def test_lists() -> None:
    block = "- green tea\n- black tea. It is strong.\n  - mint"
    assert texts(block, "list") == ["- green tea\n- black tea. It is strong.\n- mint"]
    assert texts(block, "item") == ["green tea", "black tea. It is strong.", "mint"]
    assert texts(block, "item sentence") == ["black tea.", "It is strong."]
    assert texts("- one", "list") == []
    assert is_list(block)
    assert not is_list("- one\ntwo")


def test_cells() -> None:
    found = [each for each in of("name | age | city\nMia | 9 | Bern\nTom |  | Basel") if each.kind == "cell"]
    assert [(each.label, each.text) for each in found] == [
        ("Mia age", "9"),
        ("Mia city", "Bern"),
        ("Tom city", "Basel"),
    ]


def test_meanings() -> None:
    [meaning] = [each for each in of("seed: the number that\nrandom choices begin with") if each.kind == "meaning"]
    assert (meaning.label, meaning.text) == ("seed", "the number that random choices begin with")


def test_their_number_is_limited() -> None:
    passage = Passage("a.md", (), " ".join(f"This is sentence {number}." for number in range(3 * MAX_CANDIDATES)))
    assert len(candidates([passage, passage])) == MAX_CANDIDATES
    assert of("x" * 10_000) == []


@given(st.text(alphabet='Aa .!?\n-|:"\u201c\u201d\u3002', max_size=200))
def test_every_candidate_stands_in_its_passage(text: str) -> None:
    for candidate in of(text):
        assert candidate.kind in KINDS
        assert candidate.text.strip()
        assert normalize(candidate.text).replace(" ", "") in normalize(text).replace(" ", "")
        assert "\n" not in candidate.text or candidate.kind == "list"
