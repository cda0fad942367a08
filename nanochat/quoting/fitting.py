"""Weights from the training questions: a listwise softmax over the options for each, by gradient descent.

The right options of a question are the candidates that answer it, a refusal if the documents do not answer, own words
if it is about the model itself. The training questions have few forms and often the very words of their answers, which
people's questions have not. So beside them stand half as many questions of a few words of an answer, in any order: a
sentence with all of them is right. In some, one word is of another answer; these are refused.

The weights are drawn to the default ones, the more the fewer questions there are.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from nanochat.conversations.dialogues import Talk
from nanochat.conversations.judging import answer_matches
from nanochat.passages.terms import all_terms
from nanochat.quoting.choice import QuotableIndex, options
from nanochat.quoting.features import stems
from nanochat.quoting.question import ASKING_WORDS, stem
from nanochat.quoting.weights import MAX_WEIGHT, QuotingWeights, default_weights, small_talk_words, with_options

MAX_QUESTIONS = 600  # about the documents; a tenth of it about the model itself
LEFT_OUT = ("several", "missed", "written")  # kinds of conversations whose last question alone may have another answer
STEPS = 300
STEP_SIZE = 0.1
ASKED = (
    "who",
    "what",
    "where",
    "when",
    "why",
    "how",
    "which",
    "what is",
    "who was",
    "where did",
    "why did",
    "did",
    "is",
)
FOREIGN_SHARE = 0.4  # of the questions of a few words, those with a word of another answer
NEIGHBOUR_SHARE = 0.3  # those with a word more, of the sentences around the answer
DECAY = 0.3  # toward the default weights, as of so many questions


class Example(NamedTuple):
    """The options for a question (n + 2, len(NAMES)), and which of them are right (n + 2,)."""

    table: np.ndarray
    is_right: np.ndarray


def fit_on_talks(index: QuotableIndex, talks: Sequence[Talk], seed: int) -> QuotingWeights:
    """Return weights fitted on conversations of one question. Raises UserError if the index cannot be read."""
    identity = [talk for talk in talks if talk.kind == "identity"]
    others = [talk for talk in talks if talk.kind != "identity" and talk.kind not in LEFT_OUT]
    start = default_weights()
    if not others:
        return start
    questions = [question for talk in identity for question in _questions(talk)]
    small_talk = start.small_talk | small_talk_words(questions)
    rng = random.Random(seed)
    chosen = rng.sample(others, min(MAX_QUESTIONS, len(others)))
    chosen += rng.sample(identity, min(MAX_QUESTIONS // 10, len(identity)))
    examples = [_example(index, talk, small_talk) for talk in chosen]
    answers = [talk.expected[0] for talk in chosen if talk.expected]
    examples += [_keyword_example(index, answers, number, small_talk, rng) for number in range(0, len(answers), 2)]
    return QuotingWeights(fit(examples, start.values), small_talk)


def fit(examples: Iterable[Example], start: Sequence[float]) -> tuple[float, ...]:
    """Return the weights that make the right options likely; examples without one are left out.

    `start`: where the descent begins, and what weights are drawn to.
    """
    examples = [example for example in examples if example.is_right.any()]
    origin = np.array(start)
    if not examples:
        return tuple(origin.tolist())
    most = max(len(example.table) for example in examples)
    table = np.zeros((len(examples), most, len(origin)))
    closed = np.full((len(examples), most), -np.inf)
    right = np.zeros((len(examples), most))
    for row, example in enumerate(examples):
        table[row, : len(example.table)] = example.table
        closed[row, : len(example.table)] = 0
        right[row, : len(example.table)] = example.is_right
    weights, mean, square = origin.copy(), np.zeros_like(origin), np.zeros_like(origin)
    for step in range(1, STEPS + 1):  # Adam, of all questions at once
        scores = table @ weights + closed
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        wanted = np.maximum(shares, 1e-30) * right
        wanted /= wanted.sum(axis=1, keepdims=True)
        gradient = np.einsum("qo,qof->f", shares - wanted, table) / len(examples)
        gradient += DECAY / len(examples) * (weights - origin)
        mean = 0.9 * mean + 0.1 * gradient
        square = 0.99 * square + 0.01 * gradient**2
        size = STEP_SIZE * (1 - 0.9 * step / STEPS)
        weights -= size * mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.99**step)) + 1e-8)
    rounded = np.clip(weights, -MAX_WEIGHT, MAX_WEIGHT).round(3)
    return tuple(float(value) for value in rounded + 0.0)


def _questions(talk: Talk) -> list[str]:
    """The questions of a conversation, the last one without the passages before it."""
    earlier = [str(message["content"]) for message in talk.messages[:-2] if message["role"] == "user"]
    return [*earlier, talk.question]


def _example(index: QuotableIndex, talk: Talk, small_talk: frozenset[str]) -> Example:
    found = options(index, talk.question, small_talk)
    is_right = [bool(talk.expected) and answer_matches(each.text, talk.expected) for each in found.candidates]
    is_identity = talk.kind == "identity"
    is_right += [not talk.expected and not is_identity, is_identity]
    return Example(with_options(found.features, found.foreign_share), np.array(is_right))


def _keyword_example(
    index: QuotableIndex, answers: Sequence[str], number: int, small_talk: frozenset[str], rng: random.Random
) -> Example:
    """Return an example of a question of a few words of an answer, some with a word of another one or around it."""
    keywords = _keywords(answers[number], rng)
    if rng.random() < FOREIGN_SHARE:
        keywords[-1:] = _keywords(rng.choice(answers), rng)[:1]
    needed = set(map(stem, keywords))
    if len(keywords) > 1 and rng.random() < NEIGHBOUR_SHARE and (around := index.search(answers[number], 1)):
        keywords += _keywords(around[0].text, rng)[:1]
    rng.shuffle(keywords)
    found = options(index, " ".join([rng.choice(ASKED), *keywords]) + "?", small_talk)
    is_right = [bool(needed) and needed <= stems(each.text) for each in found.candidates]
    is_right += [bool(needed) and not any(is_right), False]
    return Example(with_options(found.features, found.foreign_share), np.array(is_right))


def _keywords(text: str, rng: random.Random) -> list[str]:
    """Return a few words of a text that may stand for what it is about, in any order."""
    found = sorted({term for term in all_terms(text) if term not in ASKING_WORDS and len(term) > 1})
    return rng.sample(found, min(len(found), rng.choice((2, 2, 3, 4))))
