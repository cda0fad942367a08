"""Answers to the held-out questions about a user's documents: prompts, with passages or without, and their scores.

A question with an answer is solved by the sentences of the document (`answer_matches`), one without by a refusal.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from nanochat.common import UserError
from nanochat.conversations.judging import answer_matches
from nanochat.conversations.refusals import is_refusal
from nanochat.conversations.sentences import normalize
from nanochat.engine import Engine
from nanochat.eval.task_eval import completion_text
from nanochat.layers.sampling_params import SamplingParams
from nanochat.passages.grounding import MAX_CHARACTERS, NUM_PASSAGES, grounded_question
from nanochat.passages.index import PassageIndex
from nanochat.passages.passage import Passage
from nanochat.quoting.choice import choose
from nanochat.quoting.weights import WEIGHTS_FILE, load_weights
from nanochat.reporting.schema import Answers, Metric, proportion
from nanochat.system.files import read_regular_file
from nanochat.system.json_files import check_type
from nanochat.system.json_text import parse_json
from nanochat.tokenizer import Tokenizer

MAX_TEST_BYTES = 1 << 28
REMEDY = "run python -m scripts.document_talks"
# Characters of the passages before a question, until the prompt fits into the context.
PASSAGE_LIMITS = (MAX_CHARACTERS, MAX_CHARACTERS // 2, MAX_CHARACTERS // 4, 0)

Search = Callable[[str, int], Sequence[Passage]]


class Question(TypedDict):
    """Part of a line of the test conversations. `expected`: the sentences of the answer; none if there is none."""

    question: str
    kind: str
    expected: list[str]


@dataclass(frozen=True)
class Prompt:
    """The prompt of a question, and the place of the passage with its answer.

    `rank`: of the first such passage among those found, from 1; 0 if none has it. `is_given`: the answer stands in the
    part of the passages that the prompt has.
    """

    tokens: list[int]
    rank: int = 0
    is_given: bool = False


@dataclass(frozen=True)
class Reply:
    """A question, its prompt and the model's reply."""

    question: Question
    prompt: Prompt
    text: str

    @property
    def is_refused(self) -> bool:
        """True if the reply says that the documents do not answer."""
        return is_refusal(self.text)

    @property
    def is_right(self) -> bool:
        """True for the sentences of the document, or a refusal where there is no answer."""
        expected = self.question["expected"]
        return answer_matches(self.text, expected) if expected else self.is_refused

    def to_json(self) -> dict[str, Any]:
        """Return what is needed to mark the reply by hand."""
        facts = {"reply": self.text, "right": self.is_right, "rank": self.prompt.rank, "given": self.prompt.is_given}
        return {**self.question, **facts}


def read_questions(path: Path) -> list[Question]:
    """Return the questions of a file of test conversations. Raises UserError for a file that is missing or damaged."""
    if not path.exists():
        raise UserError(f"no questions in {path}: {REMEDY}")
    questions: list[Question] = []
    for number, line in enumerate(read_regular_file(path, MAX_TEST_BYTES).splitlines(), 1):
        try:
            content = parse_json(line)
            check_type(content, Question, "")
        except UserError as error:
            raise UserError(f"{path}, line {number}: {error}; {REMEDY} again") from error
        questions.append({"question": content["question"], "kind": content["kind"], "expected": content["expected"]})
    if not questions:
        raise UserError(f"{path} has no questions: the documents are too short to hold facts out of training")
    return questions


def make_prompt(
    question: Question, tokenizer: Tokenizer, max_tokens: int, search: Search | None, is_given: bool
) -> Prompt:
    """Return the prompt of a question in at most `max_tokens`, as a chat makes it.

    `search`: finds passages, if there is an index. `is_given`: they are put before the question, shortened until they
    fit. A question that is too long by itself loses its beginning.
    """
    found = list(search(question["question"], NUM_PASSAGES)) if search is not None else []
    rank = next((place for place, passage in enumerate(found, 1) if _has(passage.text, question)), 0)
    tokens: list[int] = []
    message = ""
    for limit in PASSAGE_LIMITS if is_given else (0,):
        message = grounded_question(found, question["question"], limit)
        conversation = {"messages": [{"role": "user", "content": message}]}
        tokens = tokenizer.render_for_completion(conversation)
        if len(tokens) <= max_tokens:
            break
    if len(tokens) > max_tokens:
        tokens = [tokens[0], *tokens[1 - max_tokens :]]
    return Prompt(tokens, rank, is_given and _has(message, question))


def _has(text: str, question: Question) -> bool:
    plain = f" {normalize(text)} "
    expected = question["expected"]
    return bool(expected) and all(f" {normalize(sentence)} " in plain for sentence in expected)


def quote_answers(index: PassageIndex, questions: Sequence[Question]) -> list[str | None]:
    """Return the quotation or the refusal for each question, as a grounded chat replies; None for own words."""
    weights = load_weights(index.path.with_name(WEIGHTS_FILE))
    return [choose(index, weights, question["question"]).text for question in questions]


def answer_questions(
    engine: Engine,
    questions: Sequence[Question],
    prompts: Sequence[Prompt],
    params: SamplingParams,
    batch_size: int,
    quotations: Sequence[str | None] | None = None,
) -> list[Reply]:
    """Return the replies, in the order of the questions: the quotations, and for the others what the model writes."""
    texts: list[str | None] = list(quotations) if quotations is not None else [None for _ in questions]
    places = [place for place, text in enumerate(texts) if text is None]
    completions = engine.generate_many([prompts[place].tokens for place in places], params, batch_size=batch_size)
    for place, samples in zip(places, completions, strict=True):
        texts[place] = completion_text(samples[0], engine.tokenizer).strip()
    return [
        Reply(question, prompt, text or "") for question, prompt, text in zip(questions, prompts, texts, strict=True)
    ]


def document_metrics(replies: Iterable[Reply], has_index: bool, is_grounded: bool) -> dict[str, Metric]:
    """Return the shares, each with Wilson's 95% interval."""
    replies = list(replies)
    answerable = [reply for reply in replies if reply.question["expected"]]
    others = [reply for reply in replies if not reply.question["expected"]]
    shares = {
        "answered right": [reply.is_right for reply in answerable],
        "refused, with an answer in the documents": [reply.is_refused for reply in answerable],
        "refused, without an answer in the documents": [reply.is_refused for reply in others],
    }
    if has_index:
        name = f"right passage among the first {NUM_PASSAGES}"
        shares[name] = [reply.prompt.rank > 0 for reply in answerable]
    if is_grounded:
        shares["right passage given to the model"] = [reply.prompt.is_given for reply in answerable]
        shares["answered right, with the right passage"] = [
            reply.is_right for reply in answerable if reply.prompt.is_given
        ]
    return {name: proportion(sum(values), len(values)) for name, values in shares.items() if values}


def solved(replies: Sequence[Reply]) -> Answers:
    """Return which questions were solved, as the report stores it to compare models question by question."""
    content = json.dumps([reply.question for reply in replies], sort_keys=True)
    digest = hashlib.sha256(content.encode("utf-8", errors="surrogatepass")).hexdigest()[:16]
    return {"problems": digest, "correct": "".join(str(int(reply.is_right)) for reply in replies)}
