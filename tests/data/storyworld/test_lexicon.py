"""Inflection of verbs."""

from __future__ import annotations

import pytest

from nanochat.data.storyworld.lexicon import inflect


@pytest.mark.parametrize(
    ("lemma", "forms"),
    [
        ("stop", "stopped stopped stopping stops"),
        ("carry", "carried carried carrying carries"),
        ("go", "went gone going goes"),
        ("lie", "lay lain lying lies"),
        ("watch", "watched watched watching watches"),
        ("play", "played played playing plays"),
        ("sit", "sat sat sitting sits"),
    ],
)
def test_verbs_inflect(lemma: str, forms: str) -> None:
    assert " ".join(inflect(lemma, form) for form in ("past", "part", "ger", "s")) == forms
