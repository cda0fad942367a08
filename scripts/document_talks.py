"""Make conversations from the documents: questions with answers of whole sentences, and questions without an answer.

    python -m scripts.document_talks                                  # after scripts.read_documents
    python -m scripts.document_talks --grounded                       # with passages before the questions
    python -m scripts.document_talks --forms=12 --unanswerable=0.15 --seed=3
    OPENAI_API_KEY=... python -m scripts.document_talks --endpoint=https://HOST/v1 --model=NAME

Reads `documents/documents.jsonl` of the base folder and writes `documents/conversations/train.jsonl`, `val.jsonl` and
`test.jsonl`, for `chat_sft --conversations` or a mixture. The facts of validation documents, and a share of the others,
are in val and test alone; the test has forms of question that training does not have. `--grounded` needs the index of
`scripts.index_documents`; it also fits the weights that choose quotations to the training questions, and writes them to
`documents/quoting.json`. With `--endpoint`, a server of OpenAI's protocol writes more training conversations; those
that the documents do not support are dropped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from nanochat.common import UserError, check_file_writable, print0, written_atomically
from nanochat.configurator import Settings, cli, setting
from nanochat.conversations.chat_client import ChatServer, optional_server
from nanochat.conversations.dialogues import Talk
from nanochat.conversations.facts import KINDS
from nanochat.conversations.making import Corpus, TalkOptions, count_kinds, held_out_sentences, make_talks, read_corpus
from nanochat.conversations.split import SPLITS, unit_hash
from nanochat.conversations.written import WrittenTalks, source_passages
from nanochat.documents.document import default_documents_path, documents_dir, load_documents
from nanochat.passages.index import PassageIndex, default_index_path
from nanochat.quoting.fitting import fit_on_talks
from nanochat.quoting.weights import default_weights_path, save_weights
from nanochat.system.files import flush_to_disk

MAX_BYTES = 100_000_000  # of the documents that are read; of larger collections, a choice by hash


@dataclass(frozen=True)
class Config(Settings):
    seed: int = setting(0, "seed of all choices")
    forms: int = setting(8, "questions for each fact in training, each in another form", at_least=1, at_most=10)
    held_out: float = setting(
        0.15, "share of the training documents' facts that are for validation and test", at_least=0, at_most=0.9
    )
    unanswerable: float = setting(0.2, "share of questions that the documents do not answer", at_least=0, at_most=0.5)
    several: float = setting(0.15, "share of training conversations with several questions", at_least=0, at_most=0.4)
    identity: int = setting(200, "training conversations about the model itself", at_least=0, at_most=100_000)
    max_train: int = setting(30_000, "maximum of training conversations about the documents", at_least=1)
    max_val: int = setting(400, "maximum of validation conversations about the documents", at_least=1)
    max_test: int = setting(500, "maximum of test conversations", at_least=1)
    grounded: bool = setting(False, "put the best passages before each question, as a chat with --grounded does")
    allow_none: bool = setting(False, "go on if the documents give no question, with the other conversations")
    endpoint: str | None = setting(None, "address of a server of OpenAI's protocol that writes more, up to /v1")
    model: str | None = setting(None, "model of that server")
    key_env: str = setting("OPENAI_API_KEY", "environment variable that holds the key; it may be unset")
    num_written: int = setting(1000, "conversations asked of the server", at_least=1)
    workers: int = setting(8, "concurrent requests", at_least=1)
    attempts: int = setting(4, "requests for a conversation before it is dropped", at_least=1)
    timeout: float = setting(60.0, "seconds to wait for a reply", above=0)
    examples: int = setting(8, "conversations that are printed", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.unanswerable + self.several > 0.8:
            raise UserError(
                f"unanswerable is {self.unanswerable} and several is {self.several}: together at most 0.8, so that "
                "questions with an answer remain"
            )
        self.server()

    def server(self) -> ChatServer | None:
        """Return the server that writes more conversations, if there is one. Raises UserError for an unsafe address."""
        options = {"key_env": self.key_env, "timeout": self.timeout, "attempts": self.attempts}
        return optional_server(self.endpoint, self.model, **options)

    def options(self) -> TalkOptions:
        """The numbers of conversations."""
        limits = (self.max_train, self.max_val, self.max_test)
        return TalkOptions(
            self.seed, self.forms, self.held_out, self.unanswerable, self.several, self.identity, *limits
        )


def conversations_path(split: str) -> Path:
    """Return the path of the conversations of a split."""
    return documents_dir() / "conversations" / f"{split}.jsonl"


def main(config: Config) -> dict[str, list[Talk]]:
    """Write the three files and print the table of kinds; return the conversations."""
    for split in SPLITS:
        check_file_writable(conversations_path(split))
    with open_index(config.grounded) as index:
        corpus = read_documents(config.seed)
        written = ask_server(config, corpus)
        talks = make_talks(corpus, config.options(), index.search if index else None, written)
        weights = fit_on_talks(index, talks["train"], config.seed) if index else None
    if not any(talk.expected for talk in talks["train"]):
        reason = (
            f"{corpus.num_documents:,} documents gave no question with an answer: they need headings with text under "
            "them, definitions, lists, tables or stories in whole sentences"
        )
        if not (config.allow_none and talks["train"]):
            raise UserError(reason)
        print0(f"NOTICE: {reason}. The conversations are not about the documents")
    if weights is not None:
        save_weights(default_weights_path(), weights)
    for split in ("test", "val", "train"):  # the file that the training waits for is the last one
        write_talks(conversations_path(split), talks[split])
    print_table(corpus, talks)
    print_examples(talks["train"], config.examples)
    return talks


def ask_server(config: Config, corpus: Corpus) -> list[Talk]:
    """Return the conversations that the server writes, if there is one."""
    server = config.server()
    if server is None:
        return []
    training = (document for document in load_documents() if document.split != "val")
    passages = source_passages(training, held_out_sentences(corpus, config.options()))
    cache = conversations_path("train").with_name("written.jsonl")
    return WrittenTalks(server, cache, config.workers).write(passages, config.num_written)


@contextmanager
def open_index(is_needed: bool) -> Iterator[PassageIndex | None]:
    """Context of the index of passages, or of None. Raises UserError if it is needed and missing."""
    if not is_needed:
        yield None
        return
    with PassageIndex.open(default_index_path()) as index:
        yield index


def read_documents(seed: int) -> Corpus:
    """Read the documents; of a collection of more than MAX_BYTES a share, chosen by hash."""
    path = default_documents_path()
    size = path.stat().st_size if path.is_file() else 0
    share = min(1.0, MAX_BYTES / max(1, size))
    if share < 1:
        print0(f"NOTICE: {path} has {size:,} bytes: conversations are made from {share:.0%} of its documents")
    chosen = (document for document in load_documents() if unit_hash(seed, document.name) < share)
    with tqdm(desc="documents", unit="", disable=None) as bar:
        return read_corpus(chosen, seed, lambda: bar.update() and None)


def write_talks(path: Path, talks: list[Talk]) -> None:
    """Write conversations to a file, one a line, completely or not at all."""
    with written_atomically(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace") as file:
        for talk in talks:
            file.write(json.dumps(talk.to_json(), ensure_ascii=False) + "\n")
        file.flush()
        flush_to_disk(file.fileno())


def print_table(corpus: Corpus, talks: dict[str, list[Talk]]) -> None:
    """Print the number of conversations of each kind, and the files."""
    counts = count_kinds(talks)
    others = {
        "foreign": "not answered: of other worlds",
        "swapped": "not answered: with the name of another document",
        "missed": "not answered: the passages lack the answer",
        "several": "several questions in one conversation",
        "identity": "about the model itself",
        "written": "written by the server, and supported by the documents",
    }
    print0(f"{'kind':12} {'train':>8} {'val':>8} {'test':>8}")
    for kind, description in {**KINDS, **others}.items():
        if any(counts[split][kind] for split in SPLITS):
            print0(f"{kind:12} " + " ".join(f"{counts[split][kind]:8,}" for split in SPLITS) + f"   {description}")
    print0(f"{'all':12} " + " ".join(f"{len(talks[split]):8,}" for split in SPLITS))
    print0(f"{corpus.num_documents:,} documents, {len(corpus.facts):,} facts: {conversations_path('train').parent}")


def print_examples(talks: list[Talk], count: int) -> None:
    """Print the first conversations, which are in a random order."""
    for talk in talks[:count]:
        print0(f"\n[{talk.kind}]{f' {talk.document}' if talk.document else ''}")
        for message in talk.messages:
            lines = str(message["content"]).splitlines() or [""]
            for number, line in enumerate(lines):
                print0(f"{message['role'] + ':' if not number else '':10} {line}")


if __name__ == "__main__":
    cli(Config, main, __doc__)
