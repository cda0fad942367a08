"""The conversations of all splits, made of the documents: facts, their split, questions, refusals, passages."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from nanochat.conversations.dialogues import Retriever, Talk, Turn, balanced, ground, long_talks, single_talks, to_talk
from nanochat.conversations.facts import Fact, document_facts, resolve_between_documents
from nanochat.conversations.refusals import REFUSALS, Unanswerable
from nanochat.conversations.sentences import normalize
from nanochat.conversations.split import SPLITS, split_facts, unit_hash
from nanochat.documents.document import Document
from tasks.identity import generate_conversations

MAX_FACTS_PER_DOCUMENT = 200  # the kinds in turn; a document that is a whole book should not be all there is
MAX_FACTS = 200_000  # in memory, of all documents: chosen by hash
MAX_VOCABULARY = 2_000_000  # stems; a log of random numbers has more
SWAP_SHARE = 0.25  # of the questions without an answer, those with a name of another document


@dataclass(frozen=True)
class TalkOptions:
    """Numbers of conversations. `train`, `val` and `test` are limits; shares are of all conversations of a split."""

    seed: int = 0
    forms: int = 8  # questions for each fact of the training split
    held_out: float = 0.15  # share of the training documents' facts
    unanswerable: float = 0.2  # share of questions without an answer
    several: float = 0.15  # share of conversations of several questions
    identity: int = 200  # conversations about the model itself
    train: int = 30_000
    val: int = 400
    test: int = 500


class Corpus:
    """The facts of documents, the words that stand in them, and their names."""

    def __init__(self, seed: int) -> None:
        self.facts: list[Fact] = []
        self.vocabulary: set[str] = set()
        self.names: dict[str, Sequence[str]] = {}
        self.train_documents: set[str] = set()
        self.num_documents = 0
        self._seed = seed

    def add(self, document: Document) -> None:
        """Add a document. Beyond MAX_FACTS those with the smallest hashes stay, whatever the order of the documents."""
        self.num_documents += 1
        found = document_facts(document)
        rng = random.Random(f"{self._seed} {document.name}")
        self.facts += balanced(_fewer_sequels(found.facts, rng), MAX_FACTS_PER_DOCUMENT, rng)
        if len(self.facts) > 2 * MAX_FACTS:
            self.facts = sorted(self.facts, key=self._priority)[:MAX_FACTS]
        if len(self.vocabulary) < MAX_VOCABULARY:
            self.vocabulary |= found.vocabulary
        if found.names:
            self.names[document.name] = sorted(found.names)
        if document.split != "val":
            self.train_documents.add(document.name)

    def _priority(self, fact: Fact) -> float:
        return unit_hash(self._seed, f"{fact.document} {fact.key}")


def _fewer_sequels(facts: list[Fact], rng: random.Random) -> list[Fact]:
    """Return facts with as many of the kind "next", which every pair of sentences gives, as there are others."""
    sequels = [index for index, fact in enumerate(facts) if fact.kind == "next"]
    count = max(2, len(facts) - len(sequels))
    left_out = set(rng.sample(sequels, max(0, len(sequels) - count)))
    return [fact for index, fact in enumerate(facts) if index not in left_out]


def read_corpus(documents: Iterable[Document], seed: int, on_document: Callable[[], None] = lambda: None) -> Corpus:
    """Return what is kept of documents. `on_document` is called after each."""
    corpus = Corpus(seed)
    for document in documents:
        corpus.add(document)
        on_document()
    return corpus


def make_talks(
    corpus: Corpus, options: TalkOptions, retriever: Retriever | None = None, written: Sequence[Talk] = ()
) -> dict[str, list[Talk]]:
    """Return the conversations of each split, in the order of the files.

    `written`: further training conversations, of another model.
    """
    facts = split_facts(resolve_between_documents(corpus.facts), options.held_out, options.seed)
    talks = {}
    for split in SPLITS:
        rng = random.Random(f"{options.seed} {split}")
        made = _split_talks(corpus, facts[split], split, options, rng)
        if split == "train":
            made += written
        if split != "test":
            made += _identity(options, split)
        rng.shuffle(made)
        if retriever is not None:
            documents = frozenset(corpus.train_documents) if split == "train" else None
            made = [ground(talk, retriever, rng, documents) for talk in made]
        talks[split] = made
    return talks


def held_out_sentences(corpus: Corpus, options: TalkOptions) -> set[str]:
    """Return the sentences, as `normalize` writes them, that answer questions of validation and test."""
    facts = split_facts(resolve_between_documents(corpus.facts), options.held_out, options.seed)
    return {normalize(sentence) for split in ("val", "test") for fact in facts[split] for sentence in fact.sentences}


def _split_talks(corpus: Corpus, facts: list[Fact], split: str, options: TalkOptions, rng: random.Random) -> list[Talk]:
    """Return a split's conversations about the documents; their number is that of the questions that can be asked."""
    is_test = split == "test"
    limit = {"train": options.train, "val": options.val, "test": options.test}[split]
    num_forms = options.forms if split == "train" else 2 if is_test else 1
    several = options.several if split == "train" else 0.0
    for_facts = max(1, round(limit * (1 - options.unanswerable - several)))
    facts = balanced(facts, for_facts, rng)
    talks = list(single_talks(facts, num_forms, for_facts, rng, is_test))
    total = len(talks) / max(0.05, 1 - options.unanswerable - several)
    source = Unanswerable(facts, corpus.vocabulary, corpus.names, split, options.seed)
    refused = list(source.draw(round(total * options.unanswerable), SWAP_SHARE, rng))
    talks += [to_talk([Turn(question, rng.choice(REFUSALS), None)], kind) for kind, question, _ in refused]
    return talks + list(long_talks(facts, [question for _, question, _ in refused], round(total * several), rng))


def _identity(options: TalkOptions, split: str) -> list[Talk]:
    """Return conversations about the model itself: for validation one for twenty of training."""
    num = options.identity if split == "train" else options.identity // 20
    seed = options.seed if split == "train" else options.seed + 1
    made = generate_conversations(num, "documents", seed) if num else []
    return [
        Talk(tuple(conversation["messages"]), "identity", conversation["messages"][-2]["content"])
        for conversation in made
    ]


def count_kinds(talks: dict[str, list[Talk]]) -> dict[str, Counter[str]]:
    """Return the number of conversations of each kind, for each split."""
    return {split: Counter(talk.kind for talk in made) for split, made in talks.items()}
