"""Generators of word problems: short stories with numbers in the embedded world, with the steps of their solution.

    Mia has 3 nuts. Tom gives her 4 more. How many nuts does Mia have now?  ->  steps ((3, "+", 4, 7),)

A generator draws numbers and sentences from `rng` and raises `InvalidDraw` if a result is out of range or the numbers
belong to the other split; `draw_valid` draws again until a story is valid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from nanochat.data.storyworld.world import CHARACTERS
from tasks.world import problem_sentences as sentences
from tasks.world.common import pick, stable_hash

MAX_NUMBER = 20  # in a story
MAX_RESULT = 99  # of a step
TEST_ONE_IN = 5  # one set of numbers in five belongs to the test split
SIGNS = "+-*/"
_PRONOUNS = {"m": ("he", "him"), "f": ("she", "her")}


@dataclass(frozen=True)
class Step:
    """One step of a solution: `left` `sign` `right` = `result`, with a sign of SIGNS."""

    left: int
    sign: str
    right: int
    result: int

    @property
    def expression(self) -> str:
        """The step as an expression for the calculator."""
        return f"{self.left}{self.sign}{self.right}"


@dataclass(frozen=True)
class Story:
    """A story that ends in a question, the numbers in it (in any order), and the steps of the solution."""

    text: str
    numbers: tuple[int, ...]
    steps: tuple[Step, ...]
    things: tuple[str, str]  # (singular, plural)

    @property
    def answer(self) -> int:
        return self.steps[-1].result


class InvalidDraw(Exception):
    """The random draws do not make a valid story; the caller draws again."""


@dataclass(frozen=True)
class Chain:
    """Events that change the quantity one person has. `kinds` are keys of SENTENCES, the first is "start" or "of"."""

    kinds: tuple[str, ...]
    numbers: tuple[int, ...]
    steps: tuple[Step, ...]

    @property
    def result(self) -> int:
        """The quantity at the end."""
        return self.steps[-1].result if self.steps else self.numbers[0]


def draw_chain(rng: Random, num_steps: int, signs: str = SIGNS, groups_prob: float = 0.2) -> Chain:
    """Draw a chain of `num_steps` steps with results of 1 to 99, which begins with groups of things at `groups_prob`.

    Raises InvalidDraw.
    """
    has_groups = num_steps > 0 and rng.random() < groups_prob
    kinds = ["of" if has_groups else "start", *(pick(rng, signs) for _ in range(num_steps - has_groups))]
    if has_groups:
        num_groups = _draw_number(rng, 2, 9)
        group_size = _draw_number(rng, 2, MAX_NUMBER)
        total = _check_result(num_groups * group_size)
        numbers = [num_groups, group_size]
        steps = [Step(num_groups, "*", group_size, total)]
    else:
        total = _draw_number(rng, 1, MAX_NUMBER)
        numbers = [total]
        steps = []
    for sign in kinds[1:]:
        number = _draw_operand(rng, sign, total)
        result = {"+": total + number, "-": total - number, "*": total * number, "/": total // number}[sign]
        steps.append(Step(total, sign, number, _check_result(result)))
        numbers.append(number)
        total = result
    return Chain(tuple(kinds), tuple(numbers), tuple(steps))


def _draw_number(rng: Random, low: int, high: int) -> int:
    """Draw a number of low..high, both included."""
    if high < low:
        raise InvalidDraw
    return low + int(rng.random() * (high - low + 1))


def _check_result(result: int) -> int:
    if not 1 <= result <= MAX_RESULT:
        raise InvalidDraw
    return result


def _draw_operand(rng: Random, sign: str, total: int) -> int:
    if sign == "+":
        return _draw_number(rng, 1, MAX_NUMBER)
    if sign == "-":
        return _draw_number(rng, 1, min(MAX_NUMBER, total - 1))
    if sign == "*":
        return _draw_number(rng, 2, 5)
    divisors = [number for number in range(2, 10) if total % number == 0]
    if not divisors:
        raise InvalidDraw
    return pick(rng, divisors)


def is_in_split(numbers: Sequence[int], split: str) -> bool:
    """Return True if stories with these numbers, in any order, belong to the split."""
    return (stable_hash(*sorted(numbers)) % TEST_ONE_IN == 0) == (split == "test")


def _check_split(numbers: tuple[int, ...], split: str) -> tuple[int, ...]:
    if not is_in_split(numbers, split):
        raise InvalidDraw
    return numbers


def draw_valid(rng: Random, split: str, draw: Callable[[Random, str], Story]) -> Story:
    """Draw stories of a split until one is valid, and return it."""
    while True:
        try:
            return draw(rng, split)
        except InvalidDraw:
            continue


class StoryWriter:
    """Writes sentences about people and things, with a pronoun where it can refer to one person only."""

    def __init__(self, rng: Random, num_people: int = 1) -> None:
        self.rng = rng
        self.others = list(sentences.PEOPLE)
        self.people = [self.others.pop(int(rng.random() * len(self.others))) for _ in range(num_people)]
        self.things = pick(rng, sentences.THINGS)
        self.antecedent = ""  # the person a pronoun would refer to

    def quantity(self, number: int) -> str:
        """Return a number of the things: "3 apples"."""
        return f"{number} {self.things[number != 1]}"

    def write(self, templates: Sequence[str], person: str, numbers: Sequence[int] = (), other: str = "") -> str:
        """Return a sentence about `person` from a random template, with `numbers` in it. `other` fills {F} and {B}."""
        template = pick(self.rng, templates)
        sex = CHARACTERS[person].sex
        friend = other or pick(self.rng, self.others)
        is_ambiguous = "{F}" in template and CHARACTERS[friend].sex == sex
        he, him = (person, person) if is_ambiguous else _PRONOUNS[sex]
        may_begin_with_pronoun = self.antecedent == person and template.startswith("{A}") and not is_ambiguous
        begins_with_pronoun = may_begin_with_pronoun and self.rng.random() < 0.6
        if self.antecedent != person:
            he, him = person, person
        first = numbers[0] if numbers else 0
        last = numbers[-1] if numbers else 0
        sentence = template.format(
            A=he.capitalize() if begins_with_pronoun else person,
            a=he,
            him=him,
            F=friend,
            B=other,
            n=self.quantity(last),
            k=first,
            g=f"{first} {pick(self.rng, sentences.HOLDERS)}",
            x=self.things[1],
            s="s" if first == 1 else "",
            **{"is": "is" if last == 1 else "are", "are": "is" if first == 1 else "are"},
        )
        self.antecedent = "" if is_ambiguous else person
        return sentence

    def write_chain(
        self, person: str, chain: Chain, templates: Mapping[str, Sequence[str]] = sentences.SENTENCES
    ) -> Iterator[str]:
        """Yield the sentences of a chain: the quantity that `person` has, and the events that change it."""
        self.antecedent = ""
        numbers = list(chain.numbers)
        for kind in chain.kinds:
            count = 2 if kind == "of" else 1
            sentence_numbers, numbers = numbers[:count], numbers[count:]
            yield self.write(templates[kind], person, sentence_numbers)

    def ask(self, templates: Sequence[str], person: str, other: str = "") -> str:
        """Return a question about `person`, who is always named."""
        self.antecedent = ""
        return self.write(templates, person, other=other)


def draw_steps_story(rng: Random, split: str, num_steps: int) -> Story:
    """Draw a story of one person and `num_steps` steps."""
    chain = draw_chain(rng, num_steps)
    numbers = _check_split(chain.numbers, split)
    writer = StoryWriter(rng)
    person = writer.people[0]
    texts = [*writer.write_chain(person, chain), writer.ask(sentences.QUESTIONS, person)]
    return Story(" ".join(texts), numbers, chain.steps, writer.things)


def draw_pair_story(rng: Random, split: str, num_steps: tuple[int, int], sign: str = "") -> Story:
    """Draw a story of two people with `num_steps` steps each, which asks for their sum ("+") or difference ("-")."""
    sign = sign or pick(rng, "+-")
    first_chain = draw_chain(rng, num_steps[0])
    second_chain = draw_chain(rng, num_steps[1])
    numbers = _check_split(first_chain.numbers + second_chain.numbers, split)
    writer = StoryWriter(rng, 2)
    person, other = writer.people
    texts = [*writer.write_chain(person, first_chain), *writer.write_chain(other, second_chain)]
    left, right = first_chain.result, second_chain.result
    if sign == "-" and left < right:  # the question is about the one who has more
        person, other = other, person
        left, right = right, left
    result = _check_result(left + right if sign == "+" else left - right)
    questions = sentences.SUM_QUESTIONS if sign == "+" else sentences.DIFFERENCE_QUESTIONS
    texts.append(writer.ask(questions, person, other))
    steps = (*first_chain.steps, *second_chain.steps, Step(left, sign, right, result))
    return Story(" ".join(texts), numbers, steps, writer.things)


def draw_more_than_story(rng: Random, split: str) -> Story:
    """Draw a story in which one person has some more than another, which asks for their sum."""
    chain = draw_chain(rng, 0)
    difference = _draw_number(rng, 2, MAX_NUMBER)
    first = chain.result
    second = _check_result(first + difference)
    numbers = _check_split((first, difference), split)
    writer = StoryWriter(rng, 2)
    person, other = writer.people
    steps = (Step(first, "+", difference, second), Step(first, "+", second, _check_result(first + second)))
    texts = [*writer.write_chain(person, chain)]
    writer.antecedent = ""
    texts.append(writer.write(sentences.DIFFERENCES, person, (difference,), other))
    texts.append(writer.ask(sentences.SUM_QUESTIONS, person, other))
    return Story(" ".join(texts), numbers, steps, writer.things)


def draw_before_story(rng: Random, split: str) -> Story:
    """Draw a story that states an event and the final quantity, and asks for the initial quantity."""
    event = draw_chain(rng, 1, "+-", 0).steps[0]
    numbers = _check_split((event.right, event.result), split)
    writer = StoryWriter(rng)
    person = writer.people[0]
    texts = [
        writer.write(sentences.UNKNOWN_STARTS, person),
        writer.write(sentences.SENTENCES[event.sign], person, (event.right,)),
        writer.write(sentences.FINAL_COUNTS, person, (event.result,)),
        writer.ask(sentences.START_QUESTIONS, person),
    ]
    inverse = "-" if event.sign == "+" else "+"
    steps = (Step(event.result, inverse, event.right, event.left),)
    return Story(" ".join(texts), numbers, steps, writer.things)


def draw_distractor_story(rng: Random, split: str) -> Story:
    """Draw a story of one person and one to three steps, with an irrelevant number.

    The number of sentences does not reveal the number of steps.
    """
    chain = draw_chain(rng, pick(rng, (1, 2, 3)), groups_prob=0.0)
    irrelevant = _draw_number(rng, 2, MAX_NUMBER)
    numbers = _check_split((*chain.numbers, irrelevant), split)
    writer = StoryWriter(rng)
    person = writer.people[0]
    position = 1 + int(rng.random() * len(chain.kinds))  # sentences before the irrelevant one
    texts = []
    for text in writer.write_chain(person, chain):
        texts.append(text)
        if len(texts) == position:
            texts.append(writer.write(sentences.DISTRACTORS, person, (irrelevant,)))
            writer.antecedent = ""
    texts.append(writer.ask(sentences.QUESTIONS, person))
    return Story(" ".join(texts), numbers, chain.steps, writer.things)


def draw_new_words_story(rng: Random, split: str, num_steps: int, signs: str = SIGNS) -> Story:
    """Draw a story of one person and `num_steps` steps, in words that do not occur in WordProblems."""
    chain = draw_chain(rng, num_steps, signs, 0)
    numbers = _check_split(chain.numbers, split)
    writer = StoryWriter(rng)
    person = writer.people[0]
    texts = [
        *writer.write_chain(person, chain, sentences.NEW_SENTENCES),
        writer.ask(sentences.QUESTIONS, person),
    ]
    return Story(" ".join(texts), numbers, chain.steps, writer.things)


# Shapes that WordProblems lacks: it has one person, up to three steps, and other words.
SHAPES: dict[str, Callable[[Random, str], Story]] = {
    "new_words": partial(draw_new_words_story, num_steps=2),
    "new_words_mixed": lambda rng, split: draw_new_words_story(rng, split, pick(rng, (1, 2, 3))),
    "new_words_1": partial(draw_new_words_story, num_steps=1),
    "new_words_3": partial(draw_new_words_story, num_steps=3),
    "new_verbs": partial(draw_new_words_story, num_steps=2, signs="+-"),
    "four_steps": partial(draw_steps_story, num_steps=4),
    "five_steps": partial(draw_steps_story, num_steps=5),
    "compare": partial(draw_pair_story, num_steps=(1, 1), sign="-"),
    "together": partial(draw_pair_story, num_steps=(1, 1), sign="+"),
    "pair": partial(draw_pair_story, num_steps=(1, 1)),
    "pair_2_1": partial(draw_pair_story, num_steps=(2, 1)),
    "pair_2_2": partial(draw_pair_story, num_steps=(2, 2)),
    "more_than": draw_more_than_story,
    "before": draw_before_story,
    "distractor": draw_distractor_story,
}
