"""Facts of the embedded world: asked for in words (Facts), or as multiple choice (FactChoice).

The test asks only for facts that no training conversation asks for. The base text states them all: what is measured is
whether what was read can be told.
"""

import re
from functools import cache

from nanochat.data.storyworld import Fact
from nanochat.data.storyworld.relations import RELATIONS
from nanochat.data.storyworld.world import CHARACTERS, THINGS
from nanochat.tokenization.chat_format import Conversation
from tasks.common import make_conversation, make_multiple_choice
from tasks.world.common import WorldTask, answer_sentence, facts_in_split, frame_question, pick, shuffled, stable_hash


class Facts(WorldTask):
    """Questions that are answered with a sentence.

    The first 1,000 test questions ask for each held-out fact two or three times, in different words.
    """

    name = "Facts"

    def num_examples(self) -> int:
        """As many as were asked for; of the test, no more than there are."""
        return self.num if self.split == "train" else min(self.num, len(_test_questions()))

    def get_example(self, index: int) -> Conversation:
        """A question, and a sentence that answers it; `property` and `subject` say what it is about."""
        rng = self.random(index)
        if self.split == "train":
            known = facts_in_split("train")
            fact = known[index % len(known)]
            question = pick(rng, frame_question(pick(rng, fact.questions)))
        else:
            fact, question = _test_questions()[index]
        return make_conversation(question, answer_sentence(fact), property=fact.property, subject=fact.subject)

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Whether the completion states the value that was asked for and no other value of that property."""
        return states_value(conversation["property"], conversation["subject"], completion)


class FactChoice(WorldTask):
    """Questions with four answers to choose from. The wrong ones are true of others; with `far`, of other properties.

    For "Where does Mia live?" there are three other homes; far, there may be a food, a color and a fear.
    """

    name = "FactChoice"
    eval_type = "categorical"

    def __init__(
        self, split: str = "test", size: int | None = None, seed: int = 0, far: bool = False, **rows: int | None
    ) -> None:
        super().__init__(split, size, seed, **rows)
        self.far = far

    def get_example(self, index: int) -> Conversation:
        """A question with its choices; the answer is a letter, and every letter is as frequent as the others."""
        known = facts_in_split(self.split)
        turn, place = divmod(index, len(known))
        fact = known[place]
        rng = self.random(index)
        # The right letter moves on from turn to turn: in four turns each fact has each letter once.
        right = (place + turn + turn // 4) % 4
        wrong = shuffled(rng, [value for value in _choices(fact.property, self.far) if value != fact.value], 3)
        choices = [*wrong[:right], fact.value, *wrong[right:]]
        asked = make_multiple_choice(pick(rng, fact.questions), choices, right)
        return {**asked, "property": fact.property, "subject": fact.subject}


@cache
def _choices(relation: str, far: bool) -> list[str]:
    """The values of a relation; far: those of all others."""
    near = set(RELATIONS[relation].values.values())
    every = {value for other in RELATIONS.values() for value in other.values.values()}
    return sorted(every - near if far else near)


@cache
def _test_questions() -> list[tuple[Fact, str]]:
    """Every held-out fact in every wording and frame; first come those that ask for a fact for the first time."""
    items = []
    for fact in facts_in_split("test"):
        asked = [question for wording in fact.questions for question in frame_question(wording)]
        asked.sort(key=stable_hash)
        items += [(turn, stable_hash(question), fact, question) for turn, question in enumerate(asked)]
    items.sort(key=lambda item: item[:2])
    return [(fact, question) for _, _, fact, question in items]


_NEGATIONS = frozenset("not no never nobody nothing neither nor".split())


def states_value(relation: str, subject: str, text: str) -> bool:
    """Whether a text states the value of a fact, and names no other value that the relation has.

    >>> states_value("home", "Rusty", "Rusty lives in the old barn.")
    True
    >>> states_value("home", "Rusty", "In the mill or the old barn.")
    False
    """
    words = _words(text)
    told = [_words(sentence) for sentence in _sentences(relation, subject)]
    exact = any(_find(words, sentence) >= 0 for sentence in told)
    if not exact and _NEGATIONS & set(words):
        return False
    return _named(relation, subject, words) == {_value(RELATIONS[relation].values[subject])}


@cache
def _sentences(relation: str, subject: str) -> tuple[str, ...]:
    return next(
        fact.sentences
        for fact in (*facts_in_split("train"), *facts_in_split("test"))
        if (fact.property, fact.subject) == (relation, subject)
    )


def _words(text: str) -> list[str]:
    """The words in small letters, without articles."""
    words: list[str] = re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())
    return [word for word in words if word not in ("a", "an", "the")]


@cache
def _value(value: str) -> tuple[str, ...]:
    return tuple(_words(value))


def _find(words: list[str], part: list[str] | tuple[str, ...]) -> int:
    """Where `part` begins in `words`, or -1."""
    size = len(part)
    return next((i for i in range(len(words) - size + 1) if words[i : i + size] == list(part)), -1)


@cache
def _names(subject: str) -> frozenset[tuple[str, ...]]:
    """What the one that is spoken of may be called."""
    owner = THINGS[subject].owner if subject in THINGS else subject
    kind = [f"{owner} the {CHARACTERS[owner].kind}"] if owner in CHARACTERS else []
    return frozenset(_value(name) for name in (subject, owner, f"{owner}'s", *kind))


@cache
def _values(relation: str) -> frozenset[tuple[str, ...]]:
    return frozenset(_value(value) for value in RELATIONS[relation].values.values())


def _named(relation: str, subject: str, words: list[str]) -> set[tuple[str, ...]]:
    """The values that are named: of "dark red" and "red" only the longer, and not the green of "Mrs Green"."""
    names, values = _names(subject), _values(relation)
    longest = max(map(len, names | values))
    found, place = set(), 0
    while place < len(words):
        parts = (tuple(words[place : place + size]) for size in range(longest, 0, -1))
        part = next((part for part in parts if part in names or part in values), ())
        if part and part not in names:
            found.add(part)
        place += len(part) or 1
    return found
