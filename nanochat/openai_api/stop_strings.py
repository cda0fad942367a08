"""Stop strings: where a text that arrives in pieces ends, and how much of it may be shown already."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Finds the first stop string in a text that arrives in pieces, whatever the borders of the pieces are.

    The text ends with the first character that completes a stop string, and the stop string is cut off; if it
    completes several at once, the longest is. Until then, the end of the text that could be the beginning of a stop
    string is held back, so that no part of one is ever shown.

    A stop string is searched with the automaton of Knuth, Morris and Pratt (1977): a state is the number of its
    characters that the text ends with, so each character of the text costs a constant time.

    >>> matcher = StopMatcher(["END"])
    >>> matcher.push("a E"), matcher.push("N"), matcher.push("Q EN"), matcher.push("D more")
    ('a ', '', 'ENQ ', '')
    >>> matcher.found
    'END'
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.found: str | None = None  # the stop string that ended the text
        self._stops = [stop for stop in stops if stop]
        self._failures = [_failure_function(stop) for stop in self._stops]
        self._states = [0] * len(self._stops)
        self._held = ""

    def push(self, text: str) -> str:
        """Return what may be shown after a further piece: nothing once a stop string was found."""
        if self.found is not None:
            return ""
        if not self._stops:
            return text
        for position, character in enumerate(text):
            self._advance(character)
            complete = [stop for stop, state in zip(self._stops, self._states, strict=True) if state == len(stop)]
            if complete:
                self.found = max(complete, key=len)
                shown = self._held + text[: position + 1]
                self._held = ""
                return shown[: len(shown) - len(self.found)]
        self._held += text
        num_shown = len(self._held) - max(self._states)
        shown, self._held = self._held[:num_shown], self._held[num_shown:]
        return shown

    def flush(self) -> str:
        """Return what was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _advance(self, character: str) -> None:
        for index, (stop, failure) in enumerate(zip(self._stops, self._failures, strict=True)):
            state = self._states[index]
            while state and stop[state] != character:
                state = failure[state - 1]
            self._states[index] = state + (stop[state] == character)


def _failure_function(stop: str) -> list[int]:
    """Return for each prefix of a string the length of its longest proper suffix that is a prefix, too."""
    lengths = [0] * len(stop)
    for end in range(1, len(stop)):
        length = lengths[end - 1]
        while length and stop[length] != stop[end]:
            length = lengths[length - 1]
        lengths[end] = length + (stop[length] == stop[end])
    return lengths
