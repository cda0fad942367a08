"""Facts of the embedded world: open questions (Facts) and multiple choice (FactChoice).

The test asks only for facts that no training conversation asks for. The base text states all facts, so the test
measures recall of the base text.
"""

from __future__ import annotations

import re
from functools import cache

from nanochat.data.storyworld import Fact
from nanochat.data.storyworld.relations import RELATIONS
from nanochat.data.storyworld.world import CHARACTERS, THINGS
from nanochat.tokenization.chat_format import Conversation
from tasks.common import CategoricalTask, make_conversation, make_multiple_choice
from tasks.world.common import WorldTask, answer_sentence, facts_in_split, frame_question, pick, shuffled, stable_hash

NUM_CHOICES = 4
Words = tuple[str, ...]


class Facts(WorldTask):
    """Open questions, answered with a sentence. The test split has no more rows than there are distinct questions.

    The first 1,000 test questions ask for each held-out fact two or three times, in different words.
    """

    name = "Facts"

    def __init__(self, split: str = "test", size: int | None = None, seed: int = 0, **kwargs: int | None) -> None:
        super().__init__(split, size, seed, **kwargs)
        if split == "test":
            self.size = min(self.size, len(_test_questions()))

    def get_example(self, index: int) -> Conversation:
        """Return a question and its answer; the keys `property` and `subject` name the fact."""
        rng = self.example_rng(index)
        if self.split == "train":
            facts = facts_in_split("train")
            fact = facts[index % len(facts)]
            question = pick(rng, frame_question(pick(rng, fact.questions)))
        else:
            fact, question = _test_questions()[index]
        return make_conversation(question, answer_sentence(fact), property=fact.property, subject=fact.subject)

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Return True if the completion states the requested value and no other value of that property."""
        return states_value(conversation["property"], conversation["subject"], completion)


class FactChoice(WorldTask, CategoricalTask):
    """Questions with four choices. Wrong choices are values of the same property; with `far`, of other properties.

    "Where does Mia live?" comes with three other homes; with `far`, it may come with a food, a color and a fear.
    """

    name = "FactChoice"
    num_choices = NUM_CHOICES

    def __init__(
        self, split: str = "test", size: int | None = None, seed: int = 0, far: bool = False, **kwargs: int | None
    ) -> None:
        super().__init__(split, size, seed, **kwargs)
        self.far = far

    def get_example(self, index: int) -> Conversation:
        """Return a question with its choices; all letters are equally frequent as answers."""
        facts = facts_in_split(self.split)
        turn, fact_index = divmod(index, len(facts))
        fact = facts[fact_index]
        rng = self.example_rng(index)
        # The correct letter advances from turn to turn: in four turns each fact has each letter once.
        answer = (fact_index + turn + turn // NUM_CHOICES) % NUM_CHOICES
        wrong_values = [value for value in _choice_values(fact.property, self.far) if value != fact.value]
        wrong = shuffled(rng, wrong_values, NUM_CHOICES - 1)
        choices = [*wrong[:answer], fact.value, *wrong[answer:]]
        conversation = make_multiple_choice(pick(rng, fact.questions), choices, answer)
        return {**conversation, "property": fact.property, "subject": fact.subject}


@cache
def _choice_values(relation: str, far: bool) -> list[str]:
    """Return the values of a relation, sorted; with `far`, those of all other relations that it does not have."""
    own_values = set(RELATIONS[relation].values.values())
    if not far:
        return sorted(own_values)
    all_values = {value for other in RELATIONS.values() for value in other.values.values()}
    return sorted(all_values - own_values)


@cache
def _test_questions() -> list[tuple[Fact, str]]:
    """Return all questions for held-out facts: first one for each fact, then a second one for each, and so on."""
    keyed = []
    for fact in facts_in_split("test"):
        questions = [question for wording in fact.questions for question in frame_question(wording)]
        questions.sort(key=stable_hash)
        keyed += [(turn, stable_hash(question), fact, question) for turn, question in enumerate(questions)]
    keyed.sort(key=lambda item: item[:2])
    return [(fact, question) for _, _, fact, question in keyed]


_NEGATIONS = frozenset("not no never nobody nothing neither nor".split())


def states_value(relation: str, subject: str, text: str) -> bool:
    """Return True if a text states the value of a fact and names no other value of the relation.

    >>> states_value("home", "Rusty", "Rusty lives in the old barn.")
    True
    >>> states_value("home", "Rusty", "In the mill or the old barn.")
    False
    """
    words = _content_words(text)
    has_sentence = any(_contains(words, _content_words(sentence)) for sentence in _fact_sentences(relation, subject))
    if not has_sentence and _NEGATIONS & set(words):
        return False
    return _named_values(relation, subject, words) == {_content_words(RELATIONS[relation].values[subject])}


@cache
def _fact_sentences(relation: str, subject: str) -> tuple[str, ...]:
    return next(
        fact.sentences
        for fact in (*facts_in_split("train"), *facts_in_split("test"))
        if (fact.property, fact.subject) == (relation, subject)
    )


def _content_words(text: str) -> Words:
    """Return the words in lower case, without articles."""
    words: list[str] = re.findall(r"[a-z]+(?:'[a-z]+)?", text.lower())
    return tuple(word for word in words if word not in ("a", "an", "the"))


def _contains(words: Words, phrase: Words) -> bool:
    size = len(phrase)
    return any(words[i : i + size] == phrase for i in range(len(words) - size + 1))


@cache
def _names_of(subject: str) -> frozenset[Words]:
    """Return the names by which a text may refer to a subject or its owner; they are no values."""
    owner = THINGS[subject].owner if subject in THINGS else subject
    with_kind = [f"{owner} the {CHARACTERS[owner].kind}"] if owner in CHARACTERS else []
    return frozenset(_content_words(name) for name in (subject, owner, f"{owner}'s", *with_kind))


@cache
def _values_of(relation: str) -> frozenset[Words]:
    return frozenset(_content_words(value) for value in RELATIONS[relation].values.values())


def _named_values(relation: str, subject: str, words: Words) -> set[Words]:
    """Return the values that a text names. The longest match counts, and names are no values.

    "dark red" names one color, not also "red"; "Mrs Green" names no color.
    """
    names, values = _names_of(subject), _values_of(relation)
    max_len = max(map(len, names | values))
    named: set[Words] = set()
    position = 0
    while position < len(words):
        phrases = (words[position : position + size] for size in range(max_len, 0, -1))
        match = next((phrase for phrase in phrases if phrase in names or phrase in values), ())
        if match and match not in names:
            named.add(match)
        position += len(match) or 1
    return named
