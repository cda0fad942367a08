"""Questions that the documents do not answer, and the answer to them: a refusal.

They have the same forms as the questions with an answer, so that the form gives nothing away. They ask for people,
places and things of other worlds, whose names stand nowhere in the documents, or are questions of the documents with a
name of another document in place of the right one.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

from nanochat.conversations.facts import Fact
from nanochat.conversations.forms import cores, fill, framed
from nanochat.conversations.sentences import content_words, normalize, stem
from nanochat.conversations.split import unit_hash

REFUSALS = (
    "I do not know: the documents do not say that.",
    "The documents say nothing about that, so I cannot answer.",
    "I cannot answer that: it is not in the documents.",
    "That is not in the documents.",
    "I found nothing about that in the documents.",
)
_SIGNS = (
    *("not in the document", "documents do not say", "documents say nothing", "document does not say", "do not know"),
    *("don't know", "cannot answer", "can't answer", "nothing about that", "not mentioned", "no information"),
)
MAX_REFUSAL_WORDS = 30

_SYLLABLES = "bra cal dor el fen gri hal ix jor kel lum mor nar ol pra quil ros sta tur ul vel wex yar zin".split()
_ENDINGS = "ba dar fen go ith kan lia mond nor ora pek rix sul tan ume vik wyn xa zor".split()
_THINGS = (
    "the {} Bridge|the {} treaty|a {} engine|the {} tribe|the island of {}|the {} method|Doctor {}|the {} protocol"
    "|the river {}|the castle of {}|Queen {}|the {} museum|the {} disease|the planet {}|a {} battery|the {} festival"
    "|Mister {}|the city of {}|the {} theorem|the {} valley|Professor {}|the {} railway|the {} dynasty|the {} language"
    "|a glacier|the Eiffel Tower|a submarine|a cathedral|penicillin|the Great Wall|a volcano|a hovercraft|a saxophone"
    "|a penguin|a kangaroo|the Amazon|a telescope|Shakespeare|a chess clock|an iceberg|a skyscraper|a lighthouse"
    "|an igloo"
    "|the Titanic|a violin|Napoleon|Cleopatra|a trombone|a walrus|broccoli|a zeppelin|sushi|a snowboard|Beethoven"
    "|origami"
)
_PREDICATES = (
    "invented the {} lamp|built the bridge of {}|was crowned in {}|won the {} prize|sailed to the island of {}"
    "|discovered"
    " the {} cave|painted the ceiling of {}|founded the city of {}|wrote the song of {}|lost the battle of {}|met the"
    " ambassador of {}|climbed the mountain {} in winter|opened a bakery in {}|designed the {} engine"
    "|stole the crown of"
    " {}|repaired the {} clock|taught chess in {}|played the violin for Queen {}|sold a submarine to {}|translated the"
    " book of {}|hid a diamond under the {} tower|crossed the {} desert on skis|baked a cake for Doctor {}"
)
_CONDITIONS = (
    "when the {} volcano erupts|if the {} battery is empty|after the treaty of {} is signed|when Queen {} arrives"
    "|if the"
    " glacier of {} melts|before the {} festival begins|when the submarine reaches {}|if you press the {} button"
    "|after the"
    " {} election|when the telescope of {} is turned|if the bank of {} is closed|when the {} virus spreads"
)
_QUOTES = (
    "Bring the ship to {}|The {} bridge is closed|I have lost my violin in {}|Nobody sails to {} in winter"
    "|My name is {}"
    " and I am a pirate|Please sell me the {} diamond|The king of {} is bald|We shall meet in {} at midnight"
)
_QUESTIONS = (
    "What is the capital of {}?|How far is it to {}?|How much does a {} phone cost?|Who is the president of {}?"
    "|How do I"
    " repair a {} engine?|What is the weather in {}?|How old is Professor {}?|Where can I buy a {} bicycle?|Why did the"
    " {} airline close?|What does the word {} mean?|When was the {} opera opened?|How many people live in {}?"
    "|Which team"
    " won the {} cup?|How do I cook {} soup?|Where is the {} embassy?|What is the boiling point of {}?"
)
_CLAIMS = (
    "the {} railway was closed|{} has no harbour|the {} clock stopped|Queen {} left her palace|the {} comet returns|the"
    " treaty of {} was never signed|people in {} wear masks|Doctor {} never flies|the river {} is yellow"
)
_TITLES = (
    "The Voyage to {}|The {} Manual|Letters from {}|A Winter in {}|The Secret of {}"
    "|The Last {}|Cooking in {}|Songs of {}"
)
_SLOTS = {  # slot of a fact -> what fills it
    **dict.fromkeys(("term", "subject", "heading", "row", "speaker"), _THINGS),
    "predicate": _PREDICATES,
    "condition": _CONDITIONS,
    "quote": _QUOTES,
    "question": _QUESTIONS,
    "claim": _CLAIMS,
    "previous": _QUOTES,
}
_FILLERS = {slot: tuple(text.split("|")) for slot, text in _SLOTS.items()}
_TITLE_FILLERS = tuple(_TITLES.split("|"))
_TEST_SHARE = 0.25  # of the names that only test questions have; as much again is for validation
_NAME = re.compile(r"[^\W\d_]{3,40}")


def is_refusal(text: str) -> bool:
    """Return True if a reply says that the documents do not answer. Longer texts do not count, whatever they contain.

    >>> is_refusal("That is not in the documents."), is_refusal("The hen said that it was late.")
    (True, False)
    """
    plain = normalize(text)
    return any(normalize(sign) in plain for sign in _SIGNS) and len(plain.split()) <= MAX_REFUSAL_WORDS


def invent_name(rng: random.Random) -> str:
    """Return a name that no language has, such as "Velmora"."""
    return (rng.choice(_SYLLABLES) + rng.choice((*_SYLLABLES, "", "")) + rng.choice(_ENDINGS)).capitalize()


class Unanswerable:
    """Draws questions without an answer, in the forms of the facts of one split.

    `vocabulary`: the stems of all words of the documents. `names`: document -> its proper names, for swaps. The splits
    share no invented name.
    """

    def __init__(
        self,
        facts: Sequence[Fact],
        vocabulary: AbstractSet[str],
        names: dict[str, Sequence[str]],
        split: str,
        seed: int,
    ) -> None:
        self._facts = facts
        self._vocabulary = vocabulary
        self._names = names
        self._all_names = sorted({name for found in names.values() for name in found})
        self._split = split
        self._seed = seed

    def draw(self, count: int, swap_share: float, rng: random.Random) -> Iterator[tuple[str, str, Fact]]:
        """Yield about `count` of (kind, question, the fact whose form it has). Kinds: "swapped" and "foreign"."""
        if not self._facts:
            return
        seen: set[str] = set()
        for _ in range(3 * count):
            if len(seen) >= count:
                return
            fact = rng.choice(self._facts)
            swapped = self._swapped(fact, rng) if rng.random() < swap_share else None
            changed = swapped or self._foreign(fact, rng)
            if changed is None:
                continue
            core = rng.choice(cores(changed, self._split == "test"))
            question = framed(changed, fill(changed, core), rng, self._split == "test")
            if question not in seen:
                seen.add(question)
                yield "swapped" if swapped else "foreign", question, changed

    def _swapped(self, fact: Fact, rng: random.Random) -> Fact | None:
        """Return a fact with the name in its question replaced by one that its document does not have."""
        own = set(self._names.get(fact.document, ()))
        slot = next((name for name in ("predicate", "condition", "claim", "previous") if name in fact.slots), None)
        others = self._all_names
        if slot is None or len(others) < 4:
            return None
        inside = [word for word in _NAME.findall(fact.slots[slot]) if word in own]
        other = rng.choice(others)
        if not inside or other in own or stem(other.lower()) in content_words(fact.answer):
            return None
        slots = {**fact.slots, slot: re.sub(rf"\b{re.escape(inside[0])}\b", other, fact.slots[slot])}
        return replace(fact, slots=slots)

    def _foreign(self, fact: Fact, rng: random.Random) -> Fact | None:
        """Return a fact that asks for something whose name stands nowhere in the documents."""
        if not fact.is_english:
            name = self._fill(("{}",), rng)
            return replace(fact, slots={"heading": name}, needs_title=False) if name else None
        if fact.kind in ("summary", "ending"):
            title = self._fill(_TITLE_FILLERS, rng)
            return replace(fact, title=title) if title else None
        if fact.kind == "year":
            year = str(rng.randrange(1000, 2000))
            is_ours = year not in self._vocabulary and self._split_of(year) == self._split
            return replace(fact, slots={"year": year}) if is_ours else None
        slot = next((slot for slot in _FILLERS if slot in fact.slots), None)
        text = self._fill(_FILLERS[slot], rng) if slot is not None else None
        if slot is None or text is None:
            return None
        slots = {**fact.slots, slot: text}
        slots.pop("parent", None)
        if "happens" in slots:
            slots["happens"] = "happens"
        if slots.get("is") in ("are", "were"):
            slots["is"] = "is"
        if slots.get("do") == "do":
            slots["do"] = "does"
        return replace(fact, slots=slots, needs_title=fact.needs_title and rng.random() < 0.5)

    def _fill(self, patterns: Sequence[str], rng: random.Random) -> str | None:
        """Return a pattern with an invented name, or one without a place for it, that the documents do not have."""
        for _ in range(40):
            name = invent_name(rng)
            pattern = rng.choice(patterns)
            text = pattern.format(name)
            if self._split_of(name if "{" in pattern else text) != self._split:
                continue
            of_other_worlds = {stem(name.lower())} if "{" in pattern else content_words(text)
            if not of_other_worlds & self._vocabulary:
                return text
        return None

    def _split_of(self, text: str) -> str:
        place = unit_hash(self._seed, text)
        return "test" if place < _TEST_SHARE else "val" if place < 2 * _TEST_SHARE else "train"
