"""Documents that are equal or almost equal."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.documents.document import text_sha256
from nanochat.documents.duplicates import RUN_WORDS, Candidate, find_repeats, minhash

WORDS = "river flows long north south water stone bridge city boat fish bird tree hill field wind rain snow".split()


def words(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    return [rng.choice(WORDS) + str(rng.randrange(30)) for _ in range(count)]


def candidates(texts: list[str]) -> list[Candidate]:
    return [Candidate(f"{n}.md", len(text), text_sha256(text), minhash(text)) for n, text in enumerate(texts)]


def jaccard(first: str, second: str) -> float:
    def runs(text: str) -> set[tuple[str, ...]]:
        found = re.findall(r"\w+", text)
        return {tuple(found[start : start + RUN_WORDS]) for start in range(len(found) - RUN_WORDS + 1)}

    return len(runs(first) & runs(second)) / len(runs(first) | runs(second))


@pytest.mark.parametrize("num_changed", [0, 1, 5, 20, 60])
def test_the_estimate_is_near_the_similarity(num_changed: int) -> None:
    first = words(1, 1000)
    second = list(first)
    for position in range(num_changed):
        second[position * (1000 // max(1, num_changed))] = "changed"
    exact = jaccard(" ".join(first), " ".join(second))
    estimate = float(np.mean(minhash(" ".join(first)) == minhash(" ".join(second))))
    assert abs(estimate - exact) < 4 * (exact * (1 - exact) / 128) ** 0.5 + 1e-9


def test_the_longest_of_documents_that_are_alike_stays() -> None:
    text = " ".join(words(2, 400))
    texts = [text, text + " and an end", " ".join(words(3, 400)), text, text.upper() + "!"]
    repeats = find_repeats(candidates(texts), 0.8)
    assert {number: repeat.kept for number, repeat in repeats.items()} == {0: 1, 3: 0, 4: 1}
    assert [number for number, repeat in repeats.items() if repeat.is_equal] == [3]
    assert 0.8 <= repeats[0].similarity < 1
    assert set(find_repeats(candidates(texts), 1)) == {3}, "equal texts only"


def test_different_documents_stay() -> None:
    texts = [" ".join(words(seed, 60)) for seed in range(300)] + [
        "",
        "one",
        "two words",
        "。",
        "吾輩は猫である。名前はまだ無い",
    ]
    assert not find_repeats(candidates(texts), 0.8)


def test_texts_without_spaces_are_compared_by_characters() -> None:
    text = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。何でも薄暗いじめじめした所で" * 2
    assert set(find_repeats(candidates([text, text + "泣いていた"]), 0.7)) == {0}


@given(st.lists(st.text("ab ", max_size=12), max_size=12), st.randoms(use_true_random=False))
def test_what_stays_does_not_depend_on_the_order(texts: list[str], rng: random.Random) -> None:
    named = {f"{number}.md": text for number, text in enumerate(texts)}

    def kept(names: list[str]) -> set[str]:
        found = [Candidate(name, len(named[name]), text_sha256(named[name]), minhash(named[name])) for name in names]
        repeats = find_repeats(found, 0.8)
        assert all(repeat.kept != number for number, repeat in repeats.items())
        return {name for number, name in enumerate(names) if number not in repeats}

    names = list(named)
    shuffled = rng.sample(names, len(names))
    assert kept(names) == kept(shuffled)
    assert {named[name] for name in kept(names)} <= set(texts)
