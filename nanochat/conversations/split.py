"""Facts of the training, validation and test conversations, so that no answer of one stands in another.

The facts of validation documents are never trained on. Of the training documents a share is held out as well: there the
model has read the sentence and was never asked for it. Each answer is placed by a hash of its first sentence, so equal
answers of different kinds and documents stay together; a training fact with a held-out sentence in it is left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from nanochat.conversations.facts import Fact
from nanochat.conversations.sentences import normalize

SPLITS = ("train", "val", "test")


def unit_hash(seed: int, text: str) -> float:
    """Return a number in [0, 1) that is determined by a seed and a text."""
    digest = hashlib.sha256(f"{seed}\0{text}".encode("utf-8", errors="surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)


def split_facts(facts: Iterable[Fact], held_out: float, seed: int) -> dict[str, list[Fact]]:
    """Return the facts of each split, in the order given.

    `held_out`: share of the training documents' facts that are not trained on, one half for validation and one for the
    test. The facts of validation documents are divided between the two likewise. If there are facts and none falls into
    a split, as in a very short document, that split is empty.
    """
    split: dict[str, list[Fact]] = {name: [] for name in SPLITS}
    for fact in facts:
        split[_place(fact, held_out, seed)].append(fact)
    test = _held(split["test"])
    split["val"] = [fact for fact in split["val"] if not test.intersection(_parts(fact))]
    held = test | _held(split["val"])
    split["train"] = [fact for fact in split["train"] if not held.intersection(_parts(fact))]
    return split


def _place(fact: Fact, held_out: float, seed: int) -> str:
    place = unit_hash(seed, _parts(fact)[0])
    share = 1.0 if fact.is_val_document else held_out
    if place < share / 2:
        return "test"
    return "val" if place < share else "train"


def _parts(fact: Fact) -> Sequence[str]:
    """Return what must not be in two splits: the sentences, or the place of a table's cell, which may be a number."""
    if fact.kind == "table":
        return [f"{fact.document} {fact.key}"]
    return [normalize(sentence) for sentence in fact.sentences]


def _held(facts: Iterable[Fact]) -> set[str]:
    return {part for fact in facts for part in _parts(fact)}
