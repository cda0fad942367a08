"""Relations: the permanent facts by property (values from world.py), with patterns that state them and ask for them.

For example:

    home|char|{A.sub} *live {v};...|where does {A} live ?  ->  "Mia lives in the yellow house", "Where does Mia live?"
"""

from collections.abc import Mapping
from dataclasses import dataclass

from nanochat.data.storyworld import world
from nanochat.data.storyworld.grammar import Pattern, compile_pattern
from nanochat.data.storyworld.sentences import RELATIONS as _TABLE


@dataclass(frozen=True)
class Relation:
    """A property: the type of its subjects, their values, and patterns of statements and questions.

    `statements[tense]` are whole sentences without their full stop. `tails[tense]` are the statements that begin with
    the subject, after its removal, as in "who lives in the old barn".
    """

    name: str
    subject: str
    values: Mapping[str, str]
    statements: dict[str, tuple[Pattern, ...]]
    tails: dict[str, tuple[Pattern, ...]]
    questions: tuple[Pattern, ...]


def _character_values(attribute: str) -> dict[str, str]:
    return {name: getattr(character, attribute) for name, character in world.CHARACTERS.items()}


def _thing_values(attribute: str) -> dict[str, str]:
    return {noun: getattr(thing, attribute) for noun, thing in world.THINGS.items()}


_VALUES: dict[str, Mapping[str, str]] = {
    **{name: _character_values(name) for name in "home kind food friend thing hobby fear look trait".split()},
    **{name: _thing_values(name) for name in "color material kept".split()},
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
TENSE_FORMS = {"past": "past", "present": "s"}


def _compile_relations() -> dict[str, Relation]:
    lines = _TABLE.strip().splitlines()
    relations = {}
    for line, question_line in zip(lines[::2], lines[1::2], strict=True):
        name, subject, statements = line.split("|")
        questions = question_line.removeprefix("|")
        if subject == "char":
            statements = statements.replace("of {A}", "of {A.name}")
            questions = questions.replace("of {A}", "of {A.name}")
        if name == "kind":
            statements = statements.replace("{A} *", "{A.plain} *")
            questions = questions.replace("{A}", "{A.name}")
        roles = {"A": subject, "v": f"value:{name}"}
        texts = statements.split(";")
        tails = [text.removeprefix("{A.sub} ") for text in texts if text.startswith("{A.sub}") and "{A}" not in text]
        relations[name] = Relation(
            name=name,
            subject=subject,
            values=_VALUES[name],
            statements={
                tense: tuple(compile_pattern(text, roles, form) for text in texts)
                for tense, form in TENSE_FORMS.items()
            },
            tails={
                tense: tuple(compile_pattern(text, roles, form) for text in tails)
                for tense, form in TENSE_FORMS.items()
            },
            questions=tuple(compile_pattern(text.rstrip(" ?"), roles) for text in questions.split(";")),
        )
    return relations


RELATIONS = _compile_relations()
PERSONAL = tuple(name for name, relation in RELATIONS.items() if relation.subject == "char")
OF_THINGS = tuple(name for name, relation in RELATIONS.items() if relation.subject == "thing")
OF_PLACES = tuple(name for name, relation in RELATIONS.items() if relation.subject == "place")
GENERAL = tuple(name for name in RELATIONS if name not in PERSONAL + OF_THINGS + OF_PLACES)
