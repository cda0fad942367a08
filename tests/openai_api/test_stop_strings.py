"""Stop strings in a text that arrives in pieces, compared with a search in the whole text."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nanochat.openai_api.stop_strings import StopMatcher


def cut_whole_text(text: str, stops: list[str]) -> tuple[str, str | None]:
    """The slow twin: the text before the stop string that is completed first (of several, the longest)."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            longest = max(found, key=len)
            return text[: end - len(longest)], longest
    return text, None


letters = st.text("ab€", max_size=30)


@given(
    pieces=st.lists(st.text("ab€", max_size=5), max_size=12),
    stops=st.lists(st.text("ab€", min_size=1, max_size=6), max_size=4),
)
def test_the_pieces_give_what_the_whole_text_gives(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    expected, found = cut_whole_text(text, stops)
    matcher = StopMatcher(stops)
    shown = ""
    for piece in pieces:
        shown += matcher.push(piece)
        assert expected.startswith(shown), "a part of a stop string was shown"
    shown += matcher.flush()
    assert (shown, matcher.found) == (expected, found)


@given(text=letters, stops=st.lists(st.text("ab€", min_size=1, max_size=6), min_size=1, max_size=4))
def test_no_more_is_held_back_than_needed(text: str, stops: list[str]) -> None:
    """The text held back is the beginning of a stop string, the longest that the text ends with."""
    matcher = StopMatcher(stops)
    shown = matcher.push(text)
    if matcher.found is None:
        lengths = [size for stop in stops for size in range(len(stop)) if text.endswith(stop[:size])]
        assert len(text) - len(shown) == max(lengths)


def test_a_text_without_stop_strings_is_shown_at_once() -> None:
    matcher = StopMatcher([])
    assert [matcher.push(piece) for piece in ("a", "", "bc")] == ["a", "", "bc"]
    assert matcher.flush() == ""
