"""nanochat/conversations/split.py: no answer of one split stands in another."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.conversations.facts import Fact, document_facts, resolve_between_documents
from nanochat.conversations.sentences import normalize
from nanochat.conversations.split import SPLITS, split_facts, unit_hash
from tests.support.tale_documents import documents

SENTENCES = [f"Sentence number {number} is here." for number in range(12)]
sentences = st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=3, unique=True)


def parts(facts: list[Fact]) -> set[str]:
    return {normalize(sentence) for fact in facts for sentence in fact.sentences}


@given(st.lists(st.tuples(sentences, st.booleans()), max_size=30), st.integers(0, 99))
@settings(max_examples=60)
def test_no_sentence_is_in_two_splits(drawn: list[tuple[list[str], bool]], seed: int) -> None:
    facts = [Fact("section", {}, tuple(answer), is_val_document=is_val) for answer, is_val in drawn]
    split = split_facts(facts, 0.3, seed)
    assert not parts(split["train"]) & (parts(split["val"]) | parts(split["test"]))
    assert not parts(split["val"]) & parts(split["test"])
    assert not any(fact.is_val_document for fact in split["train"])


def test_shares() -> None:
    facts = [Fact("section", {}, (f"Sentence {number}.",)) for number in range(4000)]
    split = split_facts(facts, 0.2, 0)
    assert 350 < len(split["val"]) < 450
    assert 350 < len(split["test"]) < 450
    assert sum(map(len, split.values())) == 4000
    assert split_facts(facts, 0.2, 0) == split
    assert split_facts(facts, 0.2, 1) != split
    assert not split_facts(facts, 0.0, 0)["test"]
    held = split_facts([replace(fact, is_val_document=True) for fact in facts], 0.2, 0)
    assert not held["train"]
    assert 1800 < len(held["test"]) < 2200


def test_equal_cells_of_tables_do_not_hold_each_other_out() -> None:
    cells = [Fact("table", {}, ("80",), document="a", key=f"table {row}") for row in range(100)]
    assert len(split_facts(cells, 0.2, 0)["train"]) > 60


def test_documents_are_split() -> None:
    facts = resolve_between_documents(fact for document in documents() for fact in document_facts(document).facts)
    split = split_facts(facts, 0.15, 0)
    assert all(len(split[name]) > 5 for name in SPLITS)
    val = {document.name for document in documents() if document.split == "val"}
    assert not {fact.document for fact in split["train"]} & val
    assert {fact.document for fact in split["test"]} & val
    assert {fact.document for fact in split["test"]} - val


@pytest.mark.parametrize("text", ["", "a", "é", "\ud800"])
def test_unit_hash(text: str) -> None:
    assert 0 <= unit_hash(0, text) < 1
    assert unit_hash(0, text) != unit_hash(1, text)
