"""Memorisation: how much of a text stands, token for token, in the training text.

A model that has read little text too often recites it. Two measures show this on samples of the model: the longest run
of tokens that is copied, and the share of windows of `WINDOW` tokens that stand in the training text. The same two
measures of held-out text, which nobody copied, are what to compare with: phrases that are common in the documents stand
in both.

Windows are compared by a hash of their tokens, all of them at once: with x_j the token at position j and B odd,

    S_i = sum over j < i of x_j B^j (mod 2^64),    hash of the window of L tokens at i = (S_{i+L} - S_i) B^-i (mod 2^64)

does not depend on i. A window that is found is compared token by token, so the results are exact.

Letters in shape comments: N tokens of training text, M tokens of the text, W windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WINDOW = 8  # tokens
SEPARATOR = np.array([-1])  # no token
MULTIPLIER = 0x9E3779B97F4A7C15  # B: odd, so it has an inverse modulo 2^64
INVERSE = pow(MULTIPLIER, -1, 1 << 64)
FILTER_BITS = 20
RECITED_SHARE = 0.5  # of windows: from here on most of what a model writes is copied
# Bits per byte of held-out text over those of training text: from these ratios on, a model knows its text much better
# than other text, or by heart.
LEARNED_RATIO = 1.25
BY_HEART_RATIO = 2.5
REPEATED_SHARE = 0.3  # of windows of held-out text, from which on it is no text that is new to the model
GROUNDED_HELPS = "--grounded answers with sentences that are found in the documents, instead of from memory."


@dataclass(frozen=True)
class Copying:
    """The part of some texts that stands in the training text."""

    num_windows: int
    num_copied: int  # of these windows
    longest: tuple[int, ...]  # the tokens of the longest copied run

    @property
    def share(self) -> float:
        """Share of the windows that are copied; 0 without any."""
        return self.num_copied / self.num_windows if self.num_windows else 0.0


class TrainingText:
    """The tokens of the training text, N int64, to look up windows in. Tokens after a `<|bos|>` are a document's."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = tokens.astype(np.int64)
        self._sums = prefix_sums(self.tokens)
        self._inverse_powers = _powers(INVERSE, len(tokens) + 1)

    def find(self, text: np.ndarray, length: int) -> np.ndarray:
        """Return for each window of `length` tokens of a text (M,) a position of it in the training text, or -1.

        Takes O(N log M): the hashes of the training text are looked up in the sorted ones of the text.
        """
        windows = window_hashes(prefix_sums(text), length)  # (W,)
        hashes = window_hashes(self._sums, length, self._inverse_powers)  # (N - length + 1,)
        if not len(windows) or not len(hashes):
            return np.full(len(windows), -1, dtype=np.int64)
        unique, inverse = np.unique(windows, return_inverse=True)
        may_occur = np.zeros(1 << FILTER_BITS, dtype=bool)  # by the first bits of a hash: rules out nearly all of them
        may_occur[unique >> np.uint64(64 - FILTER_BITS)] = True
        candidates = np.flatnonzero(may_occur[hashes >> np.uint64(64 - FILTER_BITS)])
        slot = np.minimum(np.searchsorted(unique, hashes[candidates]), len(unique) - 1)
        is_hit = unique[slot] == hashes[candidates]
        found = np.full(len(unique), -1, dtype=np.int64)
        found[slot[is_hit][::-1]] = candidates[is_hit][::-1]  # the first of several places
        positions = found[inverse.reshape(-1)]
        for index in np.flatnonzero(positions >= 0):  # two windows may have one hash
            start = positions[index]
            if not np.array_equal(self.tokens[start : start + length], text[index : index + length]):
                positions[index] = -1
        return positions

    def longest_run(self, text: np.ndarray, limit: int | None = None) -> np.ndarray:
        """Return the tokens of the longest run of a text that stands in the training text, the first of equal ones.

        If a run of L tokens stands there, so do runs of fewer: the length is found by bisection. `limit`: tokens that
        no run exceeds.
        """
        low, high = (
            0,
            min(len(text), len(self.tokens), limit or len(text)),
        )  # a run of `low` tokens stands there, one of high + 1 does not
        best = 0
        while low < high:
            middle = (low + high + 1) // 2
            found = np.flatnonzero(self.find(text, middle) >= 0)
            if len(found):
                low, best = middle, int(found[0])
            else:
                high = middle - 1
        return text[best : best + low]


def prefix_sums(tokens: np.ndarray) -> np.ndarray:
    """Return S_0, ..., S_M of tokens (M,) as uint64, (M + 1,)."""
    sums = np.zeros(len(tokens) + 1, dtype=np.uint64)
    powers = _powers(MULTIPLIER, len(tokens))
    # Consecutive ids would have related hashes; 0 would add nothing.
    np.cumsum((tokens.astype(np.uint64) + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93) * powers, out=sums[1:])
    return sums


def window_hashes(sums: np.ndarray, length: int, inverse_powers: np.ndarray | None = None) -> np.ndarray:
    """Return the hashes (M - length + 1,) of all windows of `length` tokens; none if the text is shorter.

    `inverse_powers`: B^0, B^-1, ... modulo 2^64, if they are known.
    """
    count = max(0, len(sums) - length)
    powers = _powers(INVERSE, count) if inverse_powers is None else inverse_powers[:count]
    hashes: np.ndarray = (sums[length : length + count] - sums[:count]) * powers
    return hashes


def _powers(base: int, count: int) -> np.ndarray:
    """Return base^0, base^1, ... modulo 2^64, (count,) uint64."""
    factors = np.full(count, base, dtype=np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)


def measure_copying(training_text: TrainingText, texts: Sequence[np.ndarray]) -> Copying:
    """Return what of some texts (token ids, without special tokens) stands in the training text.

    The texts are looked up together, with a token between them that no text has.
    """
    joined = np.concatenate([part for text in texts for part in (text.astype(np.int64), SEPARATOR)])
    num_windows = sum(max(0, len(text) - WINDOW + 1) for text in texts)
    num_copied = int((training_text.find(joined, WINDOW) >= 0).sum())
    longest = training_text.longest_run(joined, limit=max(map(len, texts), default=0))
    return Copying(num_windows, num_copied, tuple(longest.tolist()))


def describe_memory(train_bpb: float, val_bpb: float, samples: Copying, held_out: Copying) -> list[str]:
    """Return sentences that say what to expect of a model, and what would help most.

    `train_bpb`, `val_bpb`: bits per byte of training and of held-out text. `samples`, `held_out`: what of the model's
    samples, and of held-out text, stands in the training text.
    """
    notes = _describe_model(train_bpb, val_bpb, samples, held_out)
    if held_out.share >= REPEATED_SHARE:
        notes.append(
            f"The documents repeat each other: {held_out.share:.0%} of the windows of held-out text stand in the "
            "training text, so that its bits per byte are lower than those of new text."
        )
    return notes


def _describe_model(train_bpb: float, val_bpb: float, samples: Copying, held_out: Copying) -> list[str]:
    ratio = val_bpb / train_bpb if train_bpb > 0 else float("inf")
    excess = samples.share - held_out.share
    gap = f"{val_bpb:.2f} bits per byte of held-out text, {train_bpb:.2f} of its training text"
    copied = (
        f"of its samples {samples.share:.0%} of the windows of {WINDOW} tokens stand in the training text, of held-out "
        f"text {held_out.share:.0%}"
    )
    if ratio >= BY_HEART_RATIO or excess >= RECITED_SHARE:
        return [
            f"The model has learned its text by heart ({gap}; {copied}).",
            "Expect it to recite: what it says is from the documents, often word for word, and wrong where a question "
            "needs anything else.",
            "More text would help most, or fewer steps where base_train --patience did not keep the best ones.",
            GROUNDED_HELPS,
        ]
    if ratio >= LEARNED_RATIO or excess >= RECITED_SHARE / 2:
        return [
            f"The model knows its own text better than other text of this kind ({gap}; {copied}).",
            "Expect the language and the topics of the documents, with passages that are copied and facts that are "
            "mixed up.",
            "More text would help most; more steps would not.",
            GROUNDED_HELPS,
        ]
    return [
        f"The model reads held-out text nearly as well as its own ({gap}; {copied}).",
        "Expect sentences of its own in the language of the documents. It has not learned their facts by heart.",
        "More minutes, and with them a larger model and more steps, would help most.",
        GROUNDED_HELPS,
    ]
