"""nanochat/conversations/making.py: the conversations of all splits."""

from __future__ import annotations

import pytest

from nanochat.conversations import making
from nanochat.conversations.dialogues import Talk
from nanochat.conversations.facts import KINDS
from nanochat.conversations.making import TalkOptions, count_kinds, held_out_sentences, make_talks, read_corpus
from nanochat.conversations.refusals import is_refusal
from nanochat.conversations.sentences import normalize
from nanochat.passages.passage import Passage
from tests.support.tale_documents import documents

CORPUS = read_corpus(documents(48), 0)
OPTIONS = TalkOptions(identity=20)


@pytest.fixture(scope="module")
def talks() -> dict[str, list[Talk]]:
    return make_talks(CORPUS, OPTIONS)


def test_nothing_held_out_is_trained_on(talks: dict[str, list[Talk]]) -> None:
    held = held_out_sentences(CORPUS, OPTIONS)
    assert len(held) > 50
    kinds = {"table"}  # a cell may be the same number in two tables
    answers = {
        split: {normalize(s) for talk in made if talk.kind not in kinds for s in talk.expected}
        for split, made in talks.items()
    }
    assert not answers["train"] & (answers["val"] | answers["test"])
    assert not answers["val"] & answers["test"]
    every_answer = {
        normalize(str(m["content"])) for talk in talks["train"] for m in talk.messages if m["role"] == "assistant"
    }
    assert not every_answer & answers["test"], "of earlier turns as well"
    questions = {split: {talk.question for talk in made} for split, made in talks.items()}
    assert not questions["train"] & questions["test"]
    val = {document.name for document in documents(48) if document.split == "val"}
    assert not {talk.document for talk in talks["train"]} & val
    assert {talk.document for talk in talks["test"]} & val


def test_shares(talks: dict[str, list[Talk]]) -> None:
    for split, made in talks.items():
        about = [talk for talk in made if talk.kind != "identity"]
        refused = sum(talk.kind in ("foreign", "swapped") for talk in about) / len(about)
        assert 0.12 < refused < 0.25, split
        assert all(is_refusal(str(talk.messages[-1]["content"])) == (not talk.expected) for talk in about)
    kinds = count_kinds(talks)
    assert kinds["train"]["identity"] == 20
    assert kinds["val"]["identity"] == 1
    assert kinds["test"]["identity"] == 0
    assert kinds["train"]["several"] > 0
    assert sum(kinds["train"][kind] > 0 for kind in KINDS) >= 10
    none = make_talks(CORPUS, TalkOptions(unanswerable=0.0, several=0.0, identity=0))
    assert all(talk.expected for made in none.values() for talk in made)


def test_eight_forms_for_each_fact(talks: dict[str, list[Talk]]) -> None:
    asked: dict[tuple[str, ...], set[str]] = {}
    for talk in talks["train"]:
        if talk.kind in KINDS:
            asked.setdefault((talk.kind, talk.document, *talk.expected), set()).add(talk.question)
    assert min(map(len, asked.values())) >= 8


def test_limits_hold_and_seeds_count() -> None:
    few = make_talks(CORPUS, TalkOptions(train=50, val=10, test=20, identity=0))
    assert [len(few[split]) for split in ("train", "val", "test")] == pytest.approx([50, 10, 20], abs=4)
    assert make_talks(CORPUS, TalkOptions(train=50)) == make_talks(CORPUS, TalkOptions(train=50))
    assert make_talks(CORPUS, TalkOptions(train=50)) != make_talks(CORPUS, TalkOptions(train=50, seed=1))


def test_a_large_collection_is_thinned_whatever_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making, "MAX_FACTS", 30)
    facts = read_corpus(documents(48), 0).facts
    assert 30 <= len(facts) <= 80
    assert len({fact.document for fact in facts}) > 10


def test_with_passages(talks: dict[str, list[Talk]]) -> None:
    texts = {document.name: document.text for document in documents(48)}

    def search(query: str, count: int, _context: str) -> list[Passage]:
        names = sorted(texts, key=lambda name: -sum(word in texts[name] for word in query.split()))
        return [Passage(name, (), texts[name][:700]) for name in names[:count]]

    small = TalkOptions(train=60, val=10, test=30, identity=2)
    grounded = make_talks(CORPUS, small, search)
    assert all(talk.rank is not None for made in grounded.values() for talk in made)
    val = {document.name for document in documents(48) if document.split == "val"}
    for talk in grounded["train"]:
        assert not any(f"> {name}\n" in str(talk.messages[-2]["content"]) for name in val)
    assert any(talk.rank for talk in grounded["test"])
    assert "rank" not in talks["test"][0].to_json()


def test_no_documents() -> None:
    assert make_talks(read_corpus([], 0), TalkOptions(identity=0)) == {"train": [], "val": [], "test": []}
