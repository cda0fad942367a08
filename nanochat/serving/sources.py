"""Sources of replies: the passages of a user's documents that are nearest to a question and its answer.

With an index of passages (scripts/index_documents.py), chat shows them next to each answer. A grounded chat replies
with a quotation of them, or that the documents do not answer (nanochat/quoting/). Where it does not quote, the best
passages stand before the question, in the format that the model was trained with (passages/grounding.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nanochat.common import UserError, print0
from nanochat.layers.sampling_params import SamplingParams
from nanochat.passages.grounding import MAX_CHARACTERS, NUM_PASSAGES, fit_passages, grounded_question
from nanochat.passages.index import REBUILD, PassageIndex, default_index_path, fts5_fault
from nanochat.passages.passage import Passage
from nanochat.passages.terms import refers_back
from nanochat.quoting.choice import Choice, choose
from nanochat.quoting.weights import WEIGHTS_FILE, QuotingWeights, load_weights
from nanochat.serving.chat_session import ChatPrompt, Content, Message, PromptModel, fit_prompt
from nanochat.system.console import visible_line

SOURCES_CHOICES = ("auto", "on", "off")
GROUNDING_LIMITS = (MAX_CHARACTERS, MAX_CHARACTERS // 2, MAX_CHARACTERS // 4)  # tried until the prompt fits


@dataclass(frozen=True)
class Source:
    """A passage that is shown next to an answer.

    `is_given`: the model has read it before the question. `is_quoted`: the answer is a quotation of it.
    """

    passage: Passage
    is_given: bool = False
    is_quoted: bool = False

    @property
    def title(self) -> str:
        """File and headings, in one line, with control characters as escapes."""
        passage = self.passage
        return visible_line(f"{passage.document}: {passage.label}" if passage.headings else passage.document)

    def as_json(self) -> dict[str, Any]:
        """Return the fields of an event of the web server."""
        passage = self.passage
        return {
            "document": passage.document,
            "headings": list(passage.headings),
            "text": passage.text,
            "score": passage.score,
            "given": self.is_given,
            "quoted": self.is_quoted,
        }


class SourcesFault(UserError):
    """An index that turns out to be damaged while it is used."""


class GroundedPrompt(NamedTuple):
    """The prompt for a reply, and the sources of its question; the reply itself if it is a quotation or a refusal."""

    prompt: ChatPrompt
    sources: list[Source]  # the nearest first
    reply: str | None = None


class DocumentSources:
    """An index of passages, and the way that a chat uses it. Several threads may."""

    def __init__(self, index: PassageIndex, is_grounded: bool, weights: QuotingWeights | None = None) -> None:
        """`weights`: of the choice of quotations, in a grounded chat that quotes."""
        self.index = index
        self.is_grounded = is_grounded
        self.weights = weights

    @property
    def examples(self) -> list[str]:
        """Questions about the documents, for an empty conversation."""
        return list(self.index.facts.examples)

    def prepare(
        self, model: PromptModel, messages: Sequence[Message], params: SamplingParams, can_quote: bool = True
    ) -> GroundedPrompt:
        """Fit a conversation into the context, in a grounded chat with the best passages before its last question.

        `can_quote`: the reply may be a quotation, as it is not the continuation of another one. Passages that do not
        fit are shortened, or left out. Raises `UserError` as `fit_prompt` does, and `SourcesFault`.
        """
        question = _last_question(messages)
        context = _last_question(messages[:-1]) if refers_back(question) else ""
        found = self._search(question, context)
        if self.is_grounded and self.weights is not None and can_quote and question:
            chosen = self._choose(question, context, self.weights)
            if chosen.text is not None:
                sources = _with_quoted(found, chosen.passage) if chosen.passage else _merged(found, [])
                return GroundedPrompt(fit_prompt(model, messages, params), sources, chosen.text)
        for limit in GROUNDING_LIMITS if self.is_grounded and found else ():
            grounded = {"role": "user", "content": grounded_question(found, question, limit)}
            try:
                prompt = fit_prompt(model, [*messages[:-1], grounded], params)
            except UserError:  # too long
                continue
            return GroundedPrompt(prompt, _merged(found, found[: len(fit_passages(found, limit))]))
        return GroundedPrompt(fit_prompt(model, messages, params), _merged(found, []))

    def find(self, messages: Sequence[Message], answer: Content, known: Sequence[Source]) -> list[Source]:
        """Return the sources of an answer to the last question of a conversation.

        `known`: the sources of the question. Those that the model has read are among the result, the one that is quoted
        is the first. Raises `SourcesFault`.
        """
        found = self._search(f"{_last_question(messages)}\n{_text(answer)}")
        if quoted := [source.passage for source in known if source.is_quoted]:
            return _with_quoted(found, quoted[0])
        return _merged(found, [source.passage for source in known if source.is_given])

    def _search(self, text: str, context: str = "") -> list[Passage]:
        try:
            return self.index.search(text, NUM_PASSAGES, context)
        except UserError as error:
            raise SourcesFault(str(error)) from error

    def _choose(self, question: str, context: str, weights: QuotingWeights) -> Choice:
        try:
            return choose(self.index, weights, question, context)
        except UserError as error:
            raise SourcesFault(str(error)) from error

    def close(self) -> None:
        """Close the index."""
        self.index.close()


def open_sources(
    choice: str, grounded: bool | None, meta: Mapping[str, Any], quote: bool = False
) -> DocumentSources | None:
    """Open the index of the base folder as a chat's settings say, or return None if there are no sources.

    Args:
        choice: "on", "off", or "auto" = if there is an index.
        grounded: put passages before the questions; None = if the model was trained so.
        meta: meta.json of the model's checkpoint.
        quote: reply with quotations, if passages are put before the questions.

    Raises `UserError` if an index is needed and missing, and for one that is damaged or belongs to other documents.
    """
    if choice == "off":
        return None
    trained_grounded = meta.get("grounded") is True
    path = default_index_path()
    fault = None if path.exists() else f"{path} is missing: {REBUILD}"
    if fault is None and (fault := fts5_fault()) is None:
        is_grounded = trained_grounded if grounded is None else grounded
        weights = load_weights(path.with_name(WEIGHTS_FILE)) if is_grounded and quote else None
        try:
            index = PassageIndex.open(path)
        except UserError as error:
            raise UserError(f"{error}, or chat without sources: --sources=off") from error
        return DocumentSources(index, is_grounded, weights)
    if choice == "on" or grounded:
        raise UserError(f"sources of answers cannot be shown: {fault}")
    if path.exists():
        print0(f"NOTICE: no sources of answers are shown: {fault}")
    elif trained_grounded:
        print0(f"NOTICE: this model was trained with passages before the questions, and gets none: {fault}")
    return None


def check_sources(choice: str, grounded: bool | None) -> None:
    """Raise `UserError` for settings that contradict each other."""
    if choice == "off" and grounded:
        raise UserError("grounded needs the passages of the documents, but sources is off: omit one of the two")


def _last_question(messages: Sequence[Message]) -> str:
    """The text of the last message of the user, empty without one."""
    return next((_text(message["content"]) for message in reversed(messages) if message["role"] == "user"), "")


def _text(content: Content) -> str:
    """The text of a message, without calls of tools and their results."""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part["type"] == "text")


def _merged(found: Sequence[Passage], given: Sequence[Passage]) -> list[Source]:
    """The passages that were found, and after them those others that the model has read."""
    places = [(passage.document, passage.text) for passage in given]
    sources = [Source(passage, (passage.document, passage.text) in places) for passage in found]
    shown = [(passage.document, passage.text) for passage in found]
    return sources + [Source(each, True) for each, place in zip(given, places, strict=True) if place not in shown]


def _with_quoted(found: Sequence[Passage], quoted: Passage) -> list[Source]:
    """The passage that is quoted, and after it the others that were found."""
    place = (quoted.document, quoted.text)
    others = [passage for passage in found if (passage.document, passage.text) != place]
    return [Source(quoted, is_quoted=True), *(Source(passage) for passage in others[: NUM_PASSAGES - 1])]
