"""What is true for good: every relation of the world with its values, and how it is stated and asked."""

from collections.abc import Mapping
from dataclasses import dataclass

from nanochat.data.storyworld import world
from nanochat.data.storyworld.grammar import Item, compile_pattern
from nanochat.data.storyworld.sentences import RELATIONS as _TABLE


@dataclass(frozen=True)
class Relation:
    """A property: whose (`subject`, a type), its true values, statements by tense, and questions.

    `statements[tense]` are whole sentences without their full stop; `tails[tense]` the same without
    a subject that stands first, as in "who lives in the old barn".
    """

    name: str
    subject: str
    values: Mapping[str, str]
    statements: dict[str, tuple[tuple[Item, ...], ...]]
    tails: dict[str, tuple[tuple[Item, ...], ...]]
    questions: tuple[tuple[Item, ...], ...]


def _of_characters(attribute: str) -> dict[str, str]:
    return {name: getattr(character, attribute) for name, character in world.CHARACTERS.items()}


def _of_things(attribute: str) -> dict[str, str]:
    return {noun: getattr(thing, attribute) for noun, thing in world.THINGS.items()}


_VALUES: dict[str, Mapping[str, str]] = {
    **{name: _of_characters(name) for name in "home kind food friend thing hobby fear look trait".split()},
    **{name: _of_things(name) for name in "color material kept".split()},
    "near": {name: place.near for name, place in world.PLACES.items()},
    "sight": {name: place.sight for name, place in world.PLACES.items()},
    "sound": world.SOUNDS,
    "covering": world.COVERINGS,
    "young": world.YOUNG,
    "work": world.WORK,
    "workplace": world.WORKPLACES,
    "foodcolor": world.FOOD_COLORS,
    "taste": world.TASTES,
    "origin": world.ORIGINS,
    "opposite": world.OPPOSITES,
    "dayafter": world.DAY_AFTER,
    "season": world.SEASON_OF,
    "tool": world.TOOL_USES,
}
TENSES = {"past": "past", "present": "s"}


def _read() -> dict[str, Relation]:
    lines = _TABLE.strip().splitlines()
    relations = {}
    for head, asked in zip(lines[::2], lines[1::2], strict=True):
        name, subject, stated = head.split("|")
        if subject == "char":
            stated, asked = stated.replace("of {A}", "of {A.name}"), asked.replace("of {A}", "of {A.name}")
        if name == "kind":
            stated, asked = stated.replace("{A} *", "{A.plain} *"), asked.replace("{A}", "{A.name}")
        roles = {"A": subject, "v": f"value:{name}"}
        texts = stated.split(";")
        tails = [text.removeprefix("{A.sub} ") for text in texts if text.startswith("{A.sub}") and "{A}" not in text]
        relations[name] = Relation(
            name,
            subject,
            _VALUES[name],
            {tense: tuple(compile_pattern(text, roles, form) for text in texts) for tense, form in TENSES.items()},
            {tense: tuple(compile_pattern(text, roles, form) for text in tails) for tense, form in TENSES.items()},
            tuple(compile_pattern(text.rstrip(" ?"), roles) for text in asked.removeprefix("|").split(";")),
        )
    return relations


RELATIONS = _read()
PERSONAL = tuple(name for name, relation in RELATIONS.items() if relation.subject == "char")
OF_THINGS = tuple(name for name, relation in RELATIONS.items() if relation.subject == "thing")
OF_PLACES = tuple(name for name, relation in RELATIONS.items() if relation.subject == "place")
GENERAL = tuple(name for name in RELATIONS if name not in PERSONAL + OF_THINGS + OF_PLACES)
