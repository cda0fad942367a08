"""Documents that others repeat: the same text, or almost the same by MinHash (Broder, "On the resemblance and
containment of documents", 1997).

A text is the set of its runs of 5 words. Two texts are alike by the Jaccard similarity of their sets A and B, the size
of their intersection by that of their union. A hash function orders all runs; the probability that two sets have the
same first run is their similarity, so the share of 128 hash functions in which they agree estimates it (standard error
at 0.8: 0.035). Candidates are documents that agree in all 8 functions of one of 16 bands: two texts with the similarity
s are found with probability 1 - (1 - s^8)^16, which is 0.95 for s = 0.8 and 0.06 for s = 0.5.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NUM_HASHES = 128
NUM_BANDS = 16
RUN_WORDS = 5
_ROWS_AT_A_TIME = 4096
# A word; in scripts that have no spaces between words, a character.
_WORD = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W_]+")
_RNG = np.random.Generator(np.random.PCG64(20))
_FACTORS = _RNG.integers(1, 2**63, NUM_HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
_OFFSETS = _RNG.integers(0, 2**63, NUM_HASHES, dtype=np.uint64)
_MIXERS = _RNG.integers(1, 2**63, RUN_WORDS, dtype=np.uint64) * np.uint64(2) + np.uint64(1)

Signature = npt.NDArray[np.uint32]


@dataclass(frozen=True)
class Candidate:
    """The facts of a document that the comparison needs."""

    name: str
    length: int  # characters; the longer of two documents that are alike stays
    sha256: str
    signature: Signature  # (NUM_HASHES,), as `minhash` gives it


@dataclass(frozen=True)
class Repeat:
    """A document that is left out: the number of the one that stays, and the similarity, exact if they are equal."""

    kept: int
    similarity: float
    is_equal: bool = False


def minhash(text: str) -> Signature:
    """Return a text's lowest hashes, one for each function: (NUM_HASHES,). Case and punctuation do not count."""
    found = _WORD.findall(text.lower()) or [text]  # a text without words is like none but itself
    words = np.fromiter((zlib.crc32(word.encode("utf-8")) for word in found), dtype=np.uint64)
    num_runs = max(1, len(words) - RUN_WORDS + 1)
    runs = np.zeros(num_runs, dtype=np.uint64)  # a text of fewer words is one run
    for position in range(min(RUN_WORDS, len(words))):
        runs += words[position : position + num_runs] * _MIXERS[position]
    runs = np.unique(runs ^ (runs >> np.uint64(29)))
    lowest = np.full(NUM_HASHES, 2**32 - 1, dtype=np.uint32)
    for start in range(0, len(runs), _ROWS_AT_A_TIME):
        part = runs[start : start + _ROWS_AT_A_TIME, None]  # (R, 1)
        hashes = ((part * _FACTORS + _OFFSETS) >> np.uint64(32)).astype(np.uint32)  # (R, NUM_HASHES)
        lowest = np.minimum(lowest, hashes.min(axis=0))
    return lowest


def find_repeats(candidates: list[Candidate], min_similarity: float) -> dict[int, Repeat]:
    """Return the documents to leave out, by their number, each with the one that stays.

    The longest document of those that are alike stays, of equally long ones the first by name.
    `min_similarity`: 1 leaves out equal texts only.
    """
    order = sorted(
        range(len(candidates)), key=lambda number: (-candidates[number].length, candidates[number].name, number)
    )
    repeats: dict[int, Repeat] = {}
    first_by_text: dict[str, int] = {}
    for number in order:
        first = first_by_text.setdefault(candidates[number].sha256, number)
        if first != number:
            repeats[number] = Repeat(first, 1.0, is_equal=True)
    if min_similarity >= 1:
        return repeats
    left = [number for number in order if number not in repeats]
    groups = _groups_of_bands([candidates[number].signature for number in left])  # (documents, NUM_BANDS)
    kept_of_group: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for number, of_bands in zip(left, groups.tolist(), strict=True):
        keys = [(band, group) for band, group in enumerate(of_bands) if group >= 0]
        others = dict.fromkeys(kept for key in keys for kept in kept_of_group[key])
        signature = candidates[number].signature
        alike = ((kept, float(np.mean(candidates[kept].signature == signature))) for kept in others)
        best = max(alike, key=lambda pair: pair[1], default=(-1, 0.0))
        if best[1] >= min_similarity:
            repeats[number] = Repeat(*best)
        else:
            for key in keys:
                kept_of_group[key].append(number)
    return repeats


def _groups_of_bands(signatures: list[Signature]) -> npt.NDArray[np.int64]:
    """Return the group of each document in each band, of those that agree in it: (documents, NUM_BANDS); -1: alone."""
    result = np.full((len(signatures), NUM_BANDS), -1, dtype=np.int64)
    if len(signatures) < 2:
        return result
    table = np.stack(signatures)  # (documents, NUM_HASHES)
    rows = NUM_HASHES // NUM_BANDS
    for band in range(NUM_BANDS):
        part = np.ascontiguousarray(table[:, band * rows : (band + 1) * rows]).view(f"V{rows * 4}").ravel()
        _, groups, counts = np.unique(part, return_inverse=True, return_counts=True)
        result[:, band] = np.where(counts[groups] > 1, groups, -1)
    return result
