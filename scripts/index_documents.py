"""Index the passages of a user's documents, so that chat shows the sources of its answers.

    python -m scripts.index_documents              # after scripts.read_documents
    python -m scripts.index_documents --query "Who was Dembe?"       # and show the passages nearest to a question

The index is SQLite's full-text search: documents/passages.sqlite in the base folder, with passages.json beside it. An
index that belongs to the documents as they are is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.common import UserError, print0
from nanochat.configurator import Settings, cli, setting
from nanochat.passages.build import build_index, current_facts
from nanochat.passages.index import PassageIndex, default_index_path
from nanochat.passages.passage import Passage


@dataclass(frozen=True)
class Config(Settings):
    query: str | None = setting(None, "show the passages nearest to this question", short="q")
    num_passages: int = setting(3, "number of passages to show", short="n", at_least=1, at_most=100)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.query is not None and not self.query.strip():
            raise UserError(f"query is {self.query!r}: must contain words to search for (omit it to index only)")


def main(config: Config) -> None:
    """Index the documents, unless that is done, and answer the query."""
    path = default_index_path()
    if facts := current_facts():
        print0(f"{path} is up to date: {facts.num_passages:,} passages")
    else:
        facts = build_index()
        print0(f"Indexed {facts.num_passages:,} passages in {path} ({path.stat().st_size / 1e6:,.1f} MB)")
    if config.query is not None:
        with PassageIndex.open(path) as index:
            passages = index.search(config.query, config.num_passages)
        for passage in passages:
            show(passage)
        if not passages:
            print0("No passage has a word of it.")


def show(passage: Passage) -> None:
    """Print a passage below its place."""
    print0(f"\n{passage.document}: {passage.label} (score {passage.score})\n{passage.text}")


if __name__ == "__main__":
    cli(Config, main, __doc__)
