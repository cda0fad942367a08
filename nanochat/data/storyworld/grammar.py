"""The grammar's notation, compiled once and used in both directions: the writer expands it, the checker parses by it.

A pattern is a line of text in which
    word            stands for itself (punctuation too)
    *go/walk        is a verb, inflected by the form its phrase is in; a slash offers several
    [happy]         is one of the choices of that name in the lexicon
    {H} {P.at} {x:fruit}     is a slot: a role of the plot (or a role and its type), and how to word it
    N1 H1 V1.past C1 C1.perf are the parts of a sentence: the subject of clause 1, a pronoun for it, its verb phrase,
                    the whole clause (C1.perf: with "had"), a fact or question (F1); Q1 S1 M1 belong to speech
"""

import itertools
import re
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from nanochat.data.storyworld.lexicon import (
    CHOICES,
    FORMS,
    NOUNS,
    SUBJECT_GROUPS,
    VERB_SUBJECTS,
    WITH_GERUND,
    WITHOUT_PERFECT,
    inflect,
)
from nanochat.data.storyworld.world import CHARACTERS, PLACES, THING_CLASSES

# ("w", word) ("cat", name) ("slot", role, type, mode) ("n"|"h"|"m"|"q"|"s", k) ("v"|"c", k, form)
Item = tuple[Any, ...]

_PART = re.compile(r"[NHVCQSMF][12](\.[a-z]+)?")
_TOKEN = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\*[a-z/]+|[NHVCQSMF][12](?:\.[a-z]+)?|[A-Za-z][A-Za-z'-]*|[.,!?;:+“”]")

NAMES = tuple(CHARACTERS)
EVERYONE = (1 << len(NAMES)) - 1
BIT = {name: 1 << i for i, name in enumerate(NAMES)}
SEX = {sex: sum(BIT[n] for n, c in CHARACTERS.items() if c.sex == sex) for sex in "mf"}


def _mask_of_kinds(kinds: str) -> int:
    wanted = {kind for word in kinds.split() for kind in SUBJECT_GROUPS.get(word, word).split()}
    return sum(BIT[name] for name, character in CHARACTERS.items() if character.kind in wanted)


CHARACTER_CLASSES = {
    "char": EVERYONE,
    "walker": EVERYONE & ~_mask_of_kinds("fish"),
    "child": _mask_of_kinds("girl boy"),
    "bird": _mask_of_kinds("bird"),
    "swimmer": _mask_of_kinds("swimmer") & ~_mask_of_kinds("fish"),
    "young": _mask_of_kinds("girl boy mouse rabbit squirrel hedgehog robin mole frog"),
}


def names_in(mask: int) -> list[str]:
    """The characters of a set that is written as the bits of a number."""
    return [name for name in NAMES if mask & BIT[name]]


@cache
def members(kind: str) -> tuple[str, ...]:
    """The values of a type: characters, things, places or nouns, in the order of their tables."""
    if kind in CHARACTER_CLASSES:
        return tuple(names_in(CHARACTER_CLASSES[kind]))
    if kind in THING_CLASSES:
        return THING_CLASSES[kind]
    places = tuple(name for name, place in PLACES.items() if kind == "place" or kind in place.kinds)
    return places or tuple(word for word, noun in NOUNS.items() if kind in noun.classes)


SORTS = (
    dict.fromkeys(CHARACTER_CLASSES, "char")
    | dict.fromkeys(THING_CLASSES, "thing")
    | {kind: "place" for place in PLACES.values() for kind in place.kinds | {"place"}}
    | {kind: "noun" for noun in NOUNS.values() for kind in noun.classes}
)


def compile_pattern(text: str, roles: dict[str, str], form: str = "past") -> tuple[Item, ...]:
    """Items of a pattern; `roles` gives the type of each role letter."""
    items: list[Item] = []
    for token in _TOKEN.findall(text):
        if token[0] == "{":
            name, _, mode = token[1:-1].partition(".")
            role, _, kind = name.partition(":")
            assert bool(kind) != (role in roles), (
                f"{token} in {text!r}: a role has its type from the plot, or else here"
            )
            items.append(("slot", role, kind or roles[role], mode))
        elif token[0] == "[":
            assert token[1:-1] in CHOICES, f"no choices named {token} in {text!r}"
            items.append(("cat", token[1:-1]))
        elif token[0] == "*":
            items.extend(("w", word) for word in verb_words(token[1:], form))
        elif _PART.fullmatch(token):
            part, _, form_of = token.partition(".")
            k = int(part[1])
            items.append((part[0].lower(), k, form_of or "past") if part[0] in "VC" else (part[0].lower(), k))
        else:
            items.append(("w", {"i": "I", "an": "a"}.get(token, token)))
    return tuple(items)


def verb_words(lemma: str, form: str) -> list[str]:
    """The words of a verb; besides the inflected forms there is "perf", with "had"."""
    return ["had", inflect(lemma, "part")] if form == "perf" else [inflect(lemma, form)]


def expand_slashes(text: str) -> list[str]:
    """One text for each way of choosing among the verbs of `*go/walk`."""
    parts = [
        ["*" + verb for verb in part[1:].split("/")] if part.startswith("*") else [part]
        for part in re.split(r"(\*[a-z/]+)", text)
    ]
    return ["".join(choice) for choice in itertools.product(*parts)]


CHOICE_ITEMS = {name: tuple(compile_pattern(alt, {}) for alt in alternatives) for name, alternatives in CHOICES.items()}


@dataclass(eq=False)
class Phrase:
    """A verb phrase, or with `personal=False` a clause whose subject is no character ("the wind blew ...")."""

    text: str
    roles: dict[str, str]
    subjects: int
    personal: bool = True
    on_purpose: bool = True
    gerund: bool = False  # whether the -ing form is used
    perfect: bool = False  # whether the participle is used
    forms: dict[str, tuple[Item, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.forms = {form: compile_pattern(self.text, self.roles, form) for form in (*FORMS, "perf")}
        first = re.search(r"\*([a-z]+)", self.text)
        assert first, f"a clause without a verb: {self.text!r}"
        verbs = set(re.findall(r"\*([a-z]+)", self.text))
        self.gerund, self.perfect = verbs <= WITH_GERUND, not verbs & WITHOUT_PERFECT
        if self.personal and first[1] in VERB_SUBJECTS:
            self.subjects &= _mask_of_kinds(VERB_SUBJECTS[first[1]])
