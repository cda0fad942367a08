"""Conversations that another model writes about passages of the training documents, checked against the passage.

Each reply is kept in a cache file, so that a run that was stopped asks only for the rest. Numbers, names and most words
of an answer must stand in the passage (judging.py); pairs that fail are dropped and counted. Sentences that are held
out for validation and test are not sent.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nanochat.common import print0, write_text_atomic
from nanochat.conversations.chat_client import ChatServer
from nanochat.conversations.dialogues import Talk, assistant, user
from nanochat.conversations.facts import usable_title
from nanochat.conversations.judging import is_supported
from nanochat.conversations.sentences import content_words, normalize, split_sentences, words
from nanochat.documents.document import Document
from nanochat.system.errors import UserError
from nanochat.system.files import read_regular_file
from nanochat.system.json_text import parse_json

PROMPT = """Below is a passage of a document. Write {count} questions that it answers, each with its answer.
An answer is one or two whole sentences in words of the passage. A question names what it is about: no "this passage",
no "it" or "he" without a name. Vary the form of the questions.
Answer with the JSON list only: [{{"question": "...", "answer": "..."}}, ...]

{title}
{passage}"""
PAIRS_PER_PASSAGE = 3
MAX_PASSAGE = 1200  # characters
MIN_PASSAGE = 120
SAVE_INTERVAL = 20  # replies
MAX_CACHE_BYTES = 1 << 28
_POINTING = ("passage", "the text", "the document", "the author")


@dataclass(frozen=True)
class SourcePassage:
    """A passage that is sent: sentences under the same headings."""

    document: str
    title: str
    headings: tuple[str, ...]
    text: str

    @property
    def prompt(self) -> str:
        """The prompt for it."""
        title = " / ".join(dict.fromkeys(filter(None, (self.title, *self.headings))))
        return PROMPT.format(count=PAIRS_PER_PASSAGE, title=title, passage=self.text)


def source_passages(documents: Iterable[Document], held_out: set[str]) -> Iterator[SourcePassage]:
    """Yield passages of documents without the sentences whose `normalize` is in `held_out`."""
    for document in documents:
        sentences: list[str] = []
        headings: tuple[str, ...] = ()
        for block in (*document.blocks, None):
            is_same = block is not None and block.headings == headings and sum(map(len, sentences)) < MAX_PASSAGE
            if not is_same:
                text = " ".join(sentences)[:MAX_PASSAGE]
                if len(text) >= MIN_PASSAGE:
                    yield SourcePassage(document.name, usable_title(document.title), headings, text)
                sentences, headings = [], block.headings if block is not None else ()
            if block is not None and block.kind in ("paragraph", "list", "definition", "quote"):
                sentences += [s for s in split_sentences(block.text) if normalize(s) not in held_out]


class WrittenTalks:
    """Asks a server for conversations, and keeps its replies in the file `cache`."""

    def __init__(self, server: ChatServer, cache: Path, workers: int) -> None:
        self._server = server
        self._cache = cache
        self._workers = workers
        self.rejected: Counter[str] = Counter()  # reason -> pairs

    def write(self, passages: Iterable[SourcePassage], count: int) -> list[Talk]:
        """Return about `count` conversations: those of the first passages that give as many.

        Raises UserError if the server gives none at all.
        """
        replies = self._read_cache()
        chosen = list(passages)[: max(1, -(-count // PAIRS_PER_PASSAGE))]
        missing = [passage for passage in chosen if self._key(passage) not in replies]
        errors: list[str] = []
        with ThreadPoolExecutor(self._workers) as pool:
            asked = pool.map(lambda passage: self._ask_or_none(passage, errors), missing)
            bar = tqdm(zip(missing, asked, strict=True), desc="written", total=len(missing), disable=None)
            for number, (passage, pairs) in enumerate(bar, 1):
                if pairs is not None:
                    replies[self._key(passage)] = pairs
                if number % SAVE_INTERVAL == 0:
                    self._save(replies)
        if missing:
            self._save(replies)
        talks = [talk for passage in chosen for talk in self._talks(passage, replies.get(self._key(passage), []))]
        self._report(talks, errors)
        return talks[:count]

    def _report(self, talks: list[Talk], errors: list[str]) -> None:
        if errors:
            print0(f"{len(errors):,} passages gave no reply, the last because: {errors[-1]}")
        dropped = ", ".join(f"{number:,} {reason}" for reason, number in sorted(self.rejected.items()))
        print0(f"written by {self._server.model}: {len(talks):,} kept{f'; dropped: {dropped}' if dropped else ''}")
        if not talks:
            reason = (
                errors[-1] if errors else f"none was supported by its passage ({dropped})" if dropped else "no passages"
            )
            raise UserError(f"{self._server.endpoint} gave no conversation: {reason}")

    def _ask_or_none(self, passage: SourcePassage, errors: list[str]) -> list[list[str]] | None:
        try:
            return self._server.ask(passage.prompt, parse_pairs)
        except UserError as error:
            errors.append(str(error))
            return None

    def _talks(self, passage: SourcePassage, pairs: list[list[str]]) -> Iterator[Talk]:
        for question, answer in pairs:
            if reason := fault(question, answer, passage.text):
                self.rejected[reason.partition(":")[0]] += 1
                continue
            messages = (user(question), assistant(answer))
            yield Talk(messages, "written", question, passage.document, passage.headings, (answer,))

    def _key(self, passage: SourcePassage) -> str:
        text = f"{self._server.model}\0{passage.prompt}"
        return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()

    def _read_cache(self) -> dict[str, list[list[str]]]:
        """Return the replies of earlier runs; lines that are damaged are left out, and asked for again."""
        if not self._cache.exists():
            return {}
        replies = {}
        for line in read_regular_file(self._cache, MAX_CACHE_BYTES).splitlines():
            try:
                content = parse_json(line)
                replies[str(content["key"])] = _check_pairs(content["pairs"])
            except (UserError, LookupError, TypeError):
                continue
        return replies

    def _save(self, replies: dict[str, list[list[str]]]) -> None:
        lines = (json.dumps({"key": key, "pairs": pairs}, ensure_ascii=False) for key, pairs in replies.items())
        write_text_atomic(self._cache, "".join(f"{line}\n" for line in lines))


def parse_pairs(reply: str) -> list[list[str]]:
    """Return the (question, answer) pairs in a reply. Raises UserError if it has none."""
    start, end = reply.find("["), reply.rfind("]")
    if start < 0 or end < start:
        raise UserError("the reply has no JSON list")
    content: Any = parse_json(reply[start : end + 1])
    if not isinstance(content, list) or not content:
        raise UserError("the reply has no list of questions")
    pairs = [[item.get("question"), item.get("answer")] if isinstance(item, dict) else item for item in content]
    return _check_pairs(pairs)


def _check_pairs(content: Any) -> list[list[str]]:
    for pair in content:
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise UserError("the reply has an item without a question and an answer")
    return [[" ".join(text.split()) for text in pair] for pair in content]


def fault(question: str, answer: str, passage: str) -> str:
    """Return an empty text for a pair that the passage supports, else the reason to drop it."""
    if not 2 <= len(words(question)) <= 40 or not 2 <= len(words(answer)) <= 80:
        return "too short or too long"
    if any(word in question.lower() for word in _POINTING):
        return "a question about the passage as such"
    if not content_words(question) & content_words(passage):
        return "a question without a word of the passage"
    return is_supported(answer, passage)
