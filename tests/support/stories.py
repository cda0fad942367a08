"""Samples of the embedded data's documents for tests, and their sentences."""

from __future__ import annotations

import re
from functools import cache
from itertools import islice

from nanochat.data.storyworld import generate_stories, list_facts

SPLITS = ("train", "val", "test")


@cache
def sample_documents(split: str, count: int, seed: int = 0) -> tuple[str, ...]:
    return tuple(islice(generate_stories(split, seed), count))


def split_by_punctuation(text: str) -> list[str]:
    """Split a text into sentences by punctuation alone, without the grammar."""
    parts = [re.split(r'(?<=[.!?])"? (?=["A-Z])', paragraph) for paragraph in text.split("\n\n")]
    return [sentence for part in parts for sentence in part]


@cache
def sample_without_notes(split: str, count: int, seed: int = 0) -> tuple[str, ...]:
    """The sample without its notes, which consist of the same few hundred sentences by design."""
    statements = {sentence for fact in list_facts() for sentence in fact.sentences}
    documents = sample_documents(split, count, seed)
    return tuple(text for text in documents if not statements.issuperset(split_by_punctuation(text)))
