"""The notation of the grammar, compiled once and used in both directions: the narrator expands it, the parser matches.

    *go/walk to {P}                ->  "walked to the market"                  (a verb phrase)
    after V1.ger , N1 V2.past .    ->  "After walking to the market, Mia bought a ripe apple."  (a sentence of two)

A pattern is a line of text that consists of
    word                        a literal word or mark
    *go/walk                    a verb, inflected by the form of its phrase; a slash separates alternatives
    [happy]                     one of the alternatives of that name in the lexicon
    {H} {P.at} {x:fruit}        a slot: a role of the plot (or a role with its type), and the mode of its wording
    N1 H1 V1.past C1 C1.perf    parts of clause 1: its subject, a pronoun for the subject, its verb phrase in a form,
                                the whole clause (C1.perf: with "had")
    F1 Q1 S1 M1                 a fact or question; parts of speech (see WRAPS in sentences.py)

sentences.py has the patterns of sentences, troubles.py the notation of plots.
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

# An item of a compiled pattern; the first element is its tag, k the number of a clause:
# ("w", word)  ("cat", name of a choice)  ("slot", role, type, mode)  ("v"|"c", k, form)  ("n"|"h"|"m"|"q"|"s"|"f", k)
Item = tuple[Any, ...]
Pattern = tuple[Item, ...]

_PART = re.compile(r"[NHVCQSMF][12](\.[a-z]+)?")
_TOKEN = re.compile(r"\{[^}]*\}|\[[^\]]*\]|\*[a-z/]+|[NHVCQSMF][12](?:\.[a-z]+)?|[A-Za-z][A-Za-z'-]*|[.,!?;:+“”]")

# Sets of characters are bit masks.
NAMES = tuple(CHARACTERS)
EVERYONE = (1 << len(NAMES)) - 1
NAME_BITS = {name: 1 << i for i, name in enumerate(NAMES)}
SEX_MASKS = {
    sex: sum(NAME_BITS[name] for name, character in CHARACTERS.items() if character.sex == sex) for sex in "mf"
}


def _kinds_mask(kinds: str) -> int:
    """Return the characters of these kinds or groups of kinds, separated by spaces."""
    expanded = {kind for word in kinds.split() for kind in SUBJECT_GROUPS.get(word, word).split()}
    return sum(NAME_BITS[name] for name, character in CHARACTERS.items() if character.kind in expanded)


CHARACTER_CLASSES = {
    "char": EVERYONE,
    "walker": EVERYONE & ~_kinds_mask("fish"),
    "child": _kinds_mask("girl boy"),
    "bird": _kinds_mask("bird"),
    "swimmer": _kinds_mask("swimmer") & ~_kinds_mask("fish"),
    "young": _kinds_mask("girl boy mouse rabbit squirrel hedgehog robin mole frog"),
}


def names_in(mask: int) -> list[str]:
    """Return the names in a set of characters given as a bit mask."""
    return [name for name in NAMES if mask & NAME_BITS[name]]


@cache
def members(kind: str) -> tuple[str, ...]:
    """Return the values of a type: characters, things, places or nouns, in the order of their tables."""
    if kind in CHARACTER_CLASSES:
        return tuple(names_in(CHARACTER_CLASSES[kind]))
    if kind in THING_CLASSES:
        return THING_CLASSES[kind]
    places = tuple(name for name, place in PLACES.items() if kind == "place" or kind in place.kinds)
    return places or tuple(word for word, noun in NOUNS.items() if kind in noun.classes)


# type -> "char", "thing", "place" or "noun"
SORTS = (
    dict.fromkeys(CHARACTER_CLASSES, "char")
    | dict.fromkeys(THING_CLASSES, "thing")
    | {kind: "place" for place in PLACES.values() for kind in place.kinds | {"place"}}
    | {kind: "noun" for noun in NOUNS.values() for kind in noun.classes}
)


def compile_pattern(text: str, roles: dict[str, str], form: str = "past") -> Pattern:
    """Compile a pattern; `roles` gives the type of each role letter, `form` the form of its verbs.

    >>> compile_pattern("{H} *walk to {P} .", {"H": "char", "P": "place"})
    (('slot', 'H', 'char', ''), ('w', 'walked'), ('w', 'to'), ('slot', 'P', 'place', ''), ('w', '.'))
    """
    items: list[Item] = []
    for token in _TOKEN.findall(text):
        if token[0] == "{":
            name, _, mode = token[1:-1].partition(".")
            role, _, kind = name.partition(":")
            assert bool(kind) != (role in roles), (
                f"{token} in {text!r}: a role has its type either from the plot or in its slot"
            )
            items.append(("slot", role, kind or roles[role], mode))
        elif token[0] == "[":
            assert token[1:-1] in CHOICES, f"no choices named {token} in {text!r}"
            items.append(("cat", token[1:-1]))
        elif token[0] == "*":
            items.extend(("w", word) for word in verb_words(token[1:], form))
        elif _PART.fullmatch(token):
            part, _, part_form = token.partition(".")
            tag, k = part[0].lower(), int(part[1])
            items.append((tag, k, part_form or "past") if tag in "vc" else (tag, k))
        else:
            items.append(("w", {"i": "I", "an": "a"}.get(token, token)))
    return tuple(items)


def verb_words(lemma: str, form: str) -> list[str]:
    """Return the words of a verb in one of FORMS, or in the form "perf" (with "had").

    >>> verb_words("go", "ger"), verb_words("go", "perf")
    (['going'], ['had', 'gone'])
    """
    return ["had", inflect(lemma, "part")] if form == "perf" else [inflect(lemma, form)]


def expand_slashes(text: str) -> list[str]:
    """Return one text for each choice among the alternatives of its verbs.

    >>> expand_slashes("*go/walk home")
    ['*go home', '*walk home']
    """
    parts = [
        ["*" + verb for verb in part[1:].split("/")] if part.startswith("*") else [part]
        for part in re.split(r"(\*[a-z/]+)", text)
    ]
    return ["".join(choice) for choice in itertools.product(*parts)]


CHOICE_ITEMS = {
    name: tuple(compile_pattern(alternative, {}) for alternative in alternatives)
    for name, alternatives in CHOICES.items()
}


@dataclass(eq=False)
class Phrase:
    """A verb phrase; with `is_personal=False`, a clause whose subject is no character ("the wind blew ...").

    `roles` gives the type of each role letter, `subjects` the characters that may be its subject, as a bit mask.
    """

    text: str
    roles: dict[str, str]
    subjects: int
    is_personal: bool = True
    is_deliberate: bool = True  # "decided to ..." fits
    has_gerund: bool = False  # its -ing form is used
    has_perfect: bool = False  # its participle is used
    forms: dict[str, Pattern] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.forms = {form: compile_pattern(self.text, self.roles, form) for form in (*FORMS, "perf")}
        verbs = re.findall(r"\*([a-z]+)", self.text)
        assert verbs, f"a clause without a verb: {self.text!r}"
        self.has_gerund = set(verbs) <= WITH_GERUND
        self.has_perfect = not set(verbs) & WITHOUT_PERFECT
        if self.is_personal and verbs[0] in VERB_SUBJECTS:
            self.subjects &= _kinds_mask(VERB_SUBJECTS[verbs[0]])
