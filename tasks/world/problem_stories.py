"""Little stories with numbers in the embedded world, and how what they ask for is worked out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

from nanochat.data.storyworld.world import CHARACTERS
from tasks.world import problem_sentences as tables
from tasks.world.common import pick, stable_hash

LARGEST = 20  # number in a story
LARGEST_RESULT = 99
_PRONOUNS = {"m": ("he", "him"), "f": ("she", "her")}


@dataclass(frozen=True)
class Step:
    """One step of a solution: `left` (+, -, *, /) `right` = `result`."""

    left: int
    sign: str
    right: int
    result: int

    @property
    def expression(self) -> str:
        """As the calculator is asked for it."""
        return f"{self.left}{self.sign}{self.right}"


@dataclass(frozen=True)
class Story:
    """A story that ends in a question; its numbers, in no particular order; the steps to the answer."""

    text: str
    numbers: tuple[int, ...]
    steps: tuple[Step, ...]
    things: tuple[str, str]  # one, many

    @property
    def answer(self) -> int:
        """What the last step gives."""
        return self.steps[-1].result


class InvalidDraw(Exception):
    """These draws do not fit together: draw again."""


@dataclass(frozen=True)
class Chain:
    """What one person has, step by step. `kinds` are keys of SENTENCES; a chain begins with "start" or "of"."""

    kinds: tuple[str, ...]
    numbers: tuple[int, ...]
    steps: tuple[Step, ...]

    @property
    def result(self) -> int:
        """How many there are at the end."""
        return self.steps[-1].result if self.steps else self.numbers[0]


def draw_chain(rng: Random, length: int, signs: str = "+-*/", groups_share: float = 0.2) -> Chain:
    """A chain of `length` steps with results of 1 to 99; some begin with groups of things. Raises NoFit."""
    groups = length > 0 and rng.random() < groups_share
    kinds = ["of" if groups else "start", *(pick(rng, signs) for _ in range(length - groups))]
    if groups:
        many, each = _number(rng, 2, 9), _number(rng, 2, LARGEST)
        total = _checked(many * each)
        numbers, steps = [many, each], [Step(many, "*", each, total)]
    else:
        total = _number(rng, 1, LARGEST)
        numbers, steps = [total], []
    for sign in kinds[1:]:
        number = _operand(rng, sign, total)
        result = {"+": total + number, "-": total - number, "*": total * number, "/": total // number}[sign]
        steps.append(Step(total, sign, number, _checked(result)))
        numbers.append(number)
        total = result
    return Chain(tuple(kinds), tuple(numbers), tuple(steps))


def _number(rng: Random, least: int, most: int) -> int:
    if most < least:
        raise InvalidDraw
    return least + int(rng.random() * (most - least + 1))


def _checked(result: int) -> int:
    if not 1 <= result <= LARGEST_RESULT:
        raise InvalidDraw
    return result


def _operand(rng: Random, sign: str, total: int) -> int:
    if sign == "+":
        return _number(rng, 1, LARGEST)
    if sign == "-":
        return _number(rng, 1, min(LARGEST, total - 1))
    if sign == "*":
        return _number(rng, 2, 5)
    fitting = [number for number in range(2, 10) if total % number == 0]
    if not fitting:
        raise InvalidDraw
    return pick(rng, fitting)


def is_in_split(numbers: Sequence[int], split: str) -> bool:
    """Whether stories with these numbers, in any order, belong to a split; one in five is for the test."""
    return (stable_hash(*sorted(numbers)) % 5 == 0) == (split == "test")


def _kept(numbers: tuple[int, ...], split: str) -> tuple[int, ...]:
    if not is_in_split(numbers, split):
        raise InvalidDraw
    return numbers


def draw_until_valid(rng: Random, split: str, draw: Callable[[Random, str], Story]) -> Story:
    """The first story of a split for which the draws fit together."""
    while True:
        try:
            return draw(rng, split)
        except InvalidDraw:
            continue


class StoryTeller:
    """Words sentences about people and things; says "she" for who was spoken of, where it can mean no one else."""

    def __init__(self, rng: Random, people: int = 1) -> None:
        self.rng = rng
        self.others = list(tables.PEOPLE)
        self.people = [self.others.pop(int(rng.random() * len(self.others))) for _ in range(people)]
        self.things = pick(rng, tables.THINGS)
        self.spoken_of = ""  # who a pronoun would mean

    def count(self, number: int) -> str:
        """A number of the things."""
        return f"{number} {self.things[number != 1]}"

    def say(self, table: Sequence[str], who: str, numbers: Sequence[int] = (), other: str = "") -> str:
        """A sentence of a table about `who`, with the numbers in its places for them."""
        wording = pick(self.rng, table)
        sex = CHARACTERS[who].sex
        friend = other or pick(self.rng, self.others)
        clash = "{F}" in wording and CHARACTERS[friend].sex == sex
        he, him = (who, who) if clash else _PRONOUNS[sex]
        short = self.spoken_of == who and wording.startswith("{A}") and not clash and self.rng.random() < 0.6
        if self.spoken_of != who:
            he, him = who, who
        last, first = numbers[-1] if numbers else 0, numbers[0] if numbers else 0
        sentence = wording.format(
            A=he.capitalize() if short else who,
            a=he,
            him=him,
            F=friend,
            B=other,
            n=self.count(last),
            k=first,
            g=f"{first} {pick(self.rng, tables.HOLDERS)}",
            x=self.things[1],
            s="s" if first == 1 else "",
            **{"is": "is" if last == 1 else "are", "are": "is" if first == 1 else "are"},
        )
        self.spoken_of = "" if clash else who
        return sentence

    def chain(self, who: str, chain: Chain, wordings: Mapping[str, Sequence[str]] = tables.SENTENCES) -> Iterator[str]:
        """What happens to what `who` has."""
        self.spoken_of = ""
        numbers = list(chain.numbers)
        for kind in chain.kinds:
            taken, numbers = numbers[: 1 + (kind == "of")], numbers[1 + (kind == "of") :]
            yield self.say(wordings[kind], who, taken)

    def ask(self, table: Sequence[str], who: str, other: str = "") -> str:
        """A question about `who`, always by name."""
        self.spoken_of = ""
        return self.say(table, who, other=other)


def steps_story(rng: Random, split: str, length: int) -> Story:
    """One person, `length` steps."""
    chain = draw_chain(rng, length)
    numbers, teller = _kept(chain.numbers, split), StoryTeller(rng)
    who = teller.people[0]
    sentences = [*teller.chain(who, chain), teller.ask(tables.ASKED, who)]
    return Story(" ".join(sentences), numbers, chain.steps, teller.things)


def pair_story(rng: Random, split: str, lengths: tuple[int, int], sign: str = "") -> Story:
    """Two people, so many steps each: how many have they together ("+"), or how many more has one of them ("-")?"""
    sign = sign or pick(rng, "+-")
    first, second = draw_chain(rng, lengths[0]), draw_chain(rng, lengths[1])
    numbers, teller = _kept(first.numbers + second.numbers, split), StoryTeller(rng, 2)
    one, two = teller.people
    sentences = [*teller.chain(one, first), *teller.chain(two, second)]
    a, b = first.result, second.result
    if sign == "-" and a < b:
        one, two, a, b = two, one, b, a
    result = _checked(a + b if sign == "+" else a - b)
    sentences.append(teller.ask(tables.TOGETHER if sign == "+" else tables.COMPARED, one, two))
    steps = (*first.steps, *second.steps, Step(a, sign, b, result))
    return Story(" ".join(sentences), numbers, steps, teller.things)


def more_than_story(rng: Random, split: str) -> Story:
    """One has so many more than the other: how many have they together?"""
    chain, more = draw_chain(rng, 0), _number(rng, 2, LARGEST)
    first = chain.result
    second = _checked(first + more)
    numbers, teller = _kept((first, more), split), StoryTeller(rng, 2)
    one, two = teller.people
    steps = (Step(first, "+", more, second), Step(first, "+", second, _checked(first + second)))
    sentences = [*teller.chain(one, chain)]
    teller.spoken_of = ""
    sentences += [teller.say(tables.MORE, one, (more,), two), teller.ask(tables.TOGETHER, one, two)]
    return Story(" ".join(sentences), numbers, steps, teller.things)


def before_story(rng: Random, split: str) -> Story:
    """What happened and what there is now are told: how many were there at first?"""
    step = draw_chain(rng, 1, "+-", 0).steps[0]
    numbers, teller = _kept((step.right, step.result), split), StoryTeller(rng)
    who = teller.people[0]
    sentences = [
        teller.say(tables.SOME, who),
        teller.say(tables.SENTENCES[step.sign], who, (step.right,)),
        teller.say(tables.NOW, who, (step.result,)),
        teller.ask(tables.AT_FIRST, who),
    ]
    steps = (Step(step.result, "-" if step.sign == "+" else "+", step.right, step.left),)
    return Story(" ".join(sentences), numbers, steps, teller.things)


def distractor_story(rng: Random, split: str) -> Story:
    """One person, one to three steps, and a number that does not matter: counting the sentences does not find it."""
    chain, needless = draw_chain(rng, pick(rng, (1, 2, 3)), groups_share=0.0), _number(rng, 2, LARGEST)
    numbers, teller = _kept((*chain.numbers, needless), split), StoryTeller(rng)
    who = teller.people[0]
    place = 1 + int(rng.random() * len(chain.kinds))  # of the sentence with the needless number
    sentences = []
    for sentence in teller.chain(who, chain):
        sentences.append(sentence)
        if len(sentences) == place:
            sentences.append(teller.say(tables.ASIDES, who, (needless,)))
            teller.spoken_of = ""
    sentences.append(teller.ask(tables.ASKED, who))
    return Story(" ".join(sentences), numbers, chain.steps, teller.things)


def new_words_story(rng: Random, split: str, length: int, signs: str = "+-*/") -> Story:
    """One person, `length` steps, in words that no worked solution has."""
    chain = draw_chain(rng, length, signs, 0)
    numbers, teller = _kept(chain.numbers, split), StoryTeller(rng)
    who = teller.people[0]
    sentences = [*teller.chain(who, chain, tables.NEW_SENTENCES), teller.ask(tables.ASKED, who)]
    return Story(" ".join(sentences), numbers, chain.steps, teller.things)


# What WordProblems do not have: there it is one person, up to three steps, and other words.
SHAPES: dict[str, Callable[[Random, str], Story]] = {
    "new_words": partial(new_words_story, length=2),
    "new_words_mixed": lambda rng, split: new_words_story(rng, split, pick(rng, (1, 2, 3))),
    "new_words_1": partial(new_words_story, length=1),
    "new_words_3": partial(new_words_story, length=3),
    "new_verbs": partial(new_words_story, length=2, signs="+-"),
    "four_steps": partial(steps_story, length=4),
    "five_steps": partial(steps_story, length=5),
    "compare": partial(pair_story, lengths=(1, 1), sign="-"),
    "together": partial(pair_story, lengths=(1, 1), sign="+"),
    "pair": partial(pair_story, lengths=(1, 1)),
    "pair_2_1": partial(pair_story, lengths=(2, 1)),
    "pair_2_2": partial(pair_story, lengths=(2, 2)),
    "more_than": more_than_story,
    "before": before_story,
    "distractor": distractor_story,
}
