"""Conversations from facts: single questions, several in one conversation, refusals, and passages before the question.

The answer to a question is the sentences of the fact. With a `Retriever` the last question of a conversation has
passages before it, as a chat with `--grounded` has. In training they are sometimes in another order, or without the
answer; then the right answer is a refusal. Validation and test have them as they were found.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from nanochat.conversations.facts import Fact
from nanochat.conversations.forms import END_FOLLOW_UPS, FOLLOW_UPS, cores, draw_questions, fill, framed
from nanochat.conversations.judging import is_supported
from nanochat.conversations.refusals import REFUSALS
from nanochat.conversations.sentences import normalize
from nanochat.passages.grounding import NUM_PASSAGES, grounded_question
from nanochat.passages.passage import Passage
from nanochat.passages.terms import refers_back

NUM_SEARCHED = 8  # of which those of held-out documents are left out in training
SHUFFLE_SHARE = 0.3  # of the training questions, whose passages are in a random order
REMOVE_SHARE = 0.06  # of the training questions, whose passages with the answer are removed
KEEP_MISSED_SHARE = 0.3  # of the training questions whose answer was not found, and which are then refused
REFUSED_TURN_SHARE = 0.15  # of the later turns of a conversation

# (question, number of passages, the question before it if it refers back to that) -> the best passages, best first
Retriever = Callable[[str, int, str], Sequence[Passage]]


@dataclass(frozen=True)
class Talk:
    """A conversation with its provenance. `expected`: the sentences of the last answer, none if it is a refusal."""

    messages: tuple[dict[str, Any], ...]
    kind: str
    question: str  # the last one, without passages
    document: str = ""
    headings: tuple[str, ...] = ()
    expected: tuple[str, ...] = ()
    rank: int | None = None  # of the first passage with the answer, from 1; 0: none of those before the question

    def to_json(self) -> dict[str, Any]:
        """Return the object of a line of the file. Besides `messages`, its keys are ignored by training."""
        content: dict[str, Any] = {"messages": list(self.messages), "kind": self.kind, "question": self.question}
        content |= {"document": self.document, "headings": list(self.headings), "expected": list(self.expected)}
        return content if self.rank is None else content | {"rank": self.rank}


class Turn(NamedTuple):
    """A question and its answer; `fact` is None for a refusal."""

    question: str
    answer: str
    fact: Fact | None


def user(text: str) -> dict[str, Any]:
    """Return a user's message."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    """Return an assistant's message."""
    return {"role": "assistant", "content": text}


def to_talk(turns: Sequence[Turn], kind: str) -> Talk:
    """Return the conversation of some turns, without passages."""
    messages = [message for turn in turns for message in (user(turn.question), assistant(turn.answer))]
    question, _, fact = turns[-1]
    if fact is None:
        return Talk(tuple(messages), kind, question)
    return Talk(tuple(messages), kind, question, fact.document, fact.headings, fact.sentences)


def single_talks(facts: Sequence[Fact], forms: int, limit: int, rng: random.Random, is_test: bool) -> Iterator[Talk]:
    """Yield conversations of one question: at most `forms` for each fact, and at most `limit` in all.

    Under the limit every fact has its first form before any has a second one.
    """
    drawn = [(fact, draw_questions(fact, forms, rng, is_test)) for fact in facts]
    pairs = [(fact, questions[form]) for form in range(forms) for fact, questions in drawn if form < len(questions)]
    for fact, question in pairs[:limit]:
        yield to_talk([Turn(question, fact.answer, fact)], fact.kind)


def balanced(facts: Sequence[Fact], limit: int, rng: random.Random) -> list[Fact]:
    """Return at most `limit` facts, drawn from the kinds in turn, so that the rare kinds are kept; in their order."""
    if len(facts) <= limit:
        return list(facts)
    by_kind: dict[str, list[int]] = defaultdict(list)
    for index in rng.sample(range(len(facts)), len(facts)):
        by_kind[facts[index].kind].append(index)
    chosen: list[int] = []
    while len(chosen) < limit:
        for kind in sorted(by_kind):
            if by_kind[kind] and len(chosen) < limit:
                chosen.append(by_kind[kind].pop())
    return [facts[index] for index in sorted(chosen)]


# --- several turns ----------------------------------------------------------------------------------------------------


def long_talks(facts: Sequence[Fact], refused: Sequence[str], count: int, rng: random.Random) -> Iterator[Talk]:
    """Yield `count` conversations of two to four questions, each about one document.

    Sections under one heading follow each other ("And X?"); other facts are asked for in the order of the document.
    `refused`: questions without an answer, of which some turns take one.
    """
    by_document: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_document[fact.document].append(fact)
    groups = [group for group in by_document.values() if len(group) > 1]
    for _ in range(count if groups else 0):
        group = rng.choice(groups)
        chain = _nested(group, rng) or sorted(
            rng.sample(group, min(len(group), rng.choice((2, 2, 3, 4)))), key=group.index
        )
        turns = _turns(chain, rng)
        if refused and rng.random() < REFUSED_TURN_SHARE * len(turns):
            turns.insert(rng.randrange(1, len(turns) + 1), Turn(rng.choice(refused), rng.choice(REFUSALS), None))
        yield to_talk(turns, "several")


def _nested(group: Sequence[Fact], rng: random.Random) -> list[Fact]:
    """Return sections of a document that stand under the same heading, or a story's beginning and end, or nothing."""
    sections = [fact for fact in group if fact.kind == "section"]
    if len(sections) > 1 and rng.random() < 0.7:
        parent = rng.choice(sections).headings[:-1]
        same = [fact for fact in sections if fact.headings[: len(parent)] == parent]
        start = rng.randrange(max(1, len(same) - 2))
        return same[start : start + rng.choice((2, 3, 4))]
    ends = [fact for fact in group if fact.kind in ("summary", "ending")]
    return ends if len(ends) == 2 and rng.random() < 0.3 else []


def _turns(chain: Sequence[Fact], rng: random.Random) -> list[Turn]:
    turns: list[Turn] = []
    for fact in chain:
        if not turns:
            question = framed(replace(fact, needs_title=True), fill(fact, rng.choice(cores(fact, False))), rng)
        elif fact.kind == "section" and chain[0].kind == "section":
            question = fill(fact, rng.choice(FOLLOW_UPS))
        elif fact.kind == "ending":
            question = rng.choice(END_FOLLOW_UPS)
        else:
            question = fill(fact, rng.choice(cores(fact, False)))
        turns.append(Turn(question, fact.answer, fact))
    return turns


# --- passages before the question -------------------------------------------------------------------------------------


def ground(talk: Talk, retriever: Retriever, rng: random.Random, train_documents: frozenset[str] | None) -> Talk:
    """Return a conversation with passages before its last question. The answers before it are not trained on.

    `train_documents`: names of the documents that training may show; None for validation and test, which show the
    passages as they were found. In training, a question whose passages lack the answer is refused.
    """
    *before, _, answer = talk.messages
    context = str(before[-2]["content"]) if len(before) > 1 and refers_back(talk.question) else ""
    passages = list(retriever(talk.question, NUM_SEARCHED if train_documents is not None else NUM_PASSAGES, context))
    if train_documents is not None:
        passages = _training_passages(talk, passages, retriever, rng, train_documents)
    passages = passages[:NUM_PASSAGES]
    message = grounded_question(passages, talk.question)
    is_cut = train_documents is not None and not _has_answer(message, talk)
    if is_cut and (right := [passage for passage in passages if _has_answer(passage.text, talk)]):
        passages = [right[0], *(passage for passage in passages if passage is not right[0])]  # there was no room for it
        message = grounded_question(passages, talk.question)
    rank = next((place for place, passage in enumerate(passages, 1) if _has_answer(passage.text, talk)), 0)
    earlier = [{**message, "weight": 0} if message["role"] == "assistant" else message for message in before]
    if train_documents is not None and talk.expected and not _has_answer(message, talk):
        return replace(
            talk,
            messages=(*earlier, user(message), assistant(rng.choice(REFUSALS))),
            kind="missed",
            expected=(),
            rank=0,
        )
    return replace(talk, messages=(*earlier, user(message), answer), rank=rank)


def _has_answer(text: str, talk: Talk) -> bool:
    """Return True if the answer of a conversation stands in a text; one that a model wrote must be supported by it."""
    if talk.kind == "written":
        return not is_supported(" ".join(talk.expected), text)
    plain = f" {normalize(text)} "
    return bool(talk.expected) and all(f" {normalize(sentence)} " in plain for sentence in talk.expected)


def _training_passages(
    talk: Talk, passages: list[Passage], retriever: Retriever, rng: random.Random, train_documents: frozenset[str]
) -> list[Passage]:
    passages = [passage for passage in passages if passage.document in train_documents]
    if not talk.expected or rng.random() < REMOVE_SHARE:
        passages = [passage for passage in passages if not _has_answer(passage.text, talk)]
    elif not any(_has_answer(passage.text, talk) for passage in passages[:NUM_PASSAGES]):
        is_kept = rng.random() < KEEP_MISSED_SHARE
        found = [] if is_kept else retriever(" ".join(talk.expected), NUM_SEARCHED, "")  # by the answer itself
        right = [p for p in found if p.document in train_documents and _has_answer(p.text, talk)]
        passages = [*passages[: NUM_PASSAGES - 1], *right[:1]]
        rng.shuffle(passages)
    passages = passages[:NUM_PASSAGES]
    if rng.random() < SHUFFLE_SHARE:
        rng.shuffle(passages)
    return passages
