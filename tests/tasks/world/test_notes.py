"""WorldNotes: documents that consist of facts, distinct between the splits."""

from __future__ import annotations

from nanochat.data.storyworld import check_text, list_facts
from tasks.world.notes import WorldNotes


def test_documents_consist_of_true_facts() -> None:
    statements = {sentence for fact in list_facts() for sentence in fact.sentences}
    num_literal = num_sentences = 0
    for document in WorldNotes("train", size=20):
        assert set(document) == {"text"}
        verdicts = check_text(document["text"])
        assert len(verdicts) >= 8
        assert all(verdict.ok for verdict in verdicts)
        num_literal += sum(verdict.sentence in statements for verdict in verdicts)
        num_sentences += len(verdicts)
    assert num_literal > 0.9 * num_sentences, 'all but those with another choice of words, such as "very"'


def test_splits_share_no_document() -> None:
    train = {document["text"] for document in WorldNotes("train", size=200)}
    test = {document["text"] for document in WorldNotes("test", size=200)}
    assert len(train) == len(test) == 200
    assert not train & test
