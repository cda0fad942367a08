"""The kinds of document besides stories: portraits, walks, talks, lessons and notes. Each states facts of the world."""

import re

from nanochat.data.storyworld import habits
from nanochat.data.storyworld.grammar import EVERYONE, Item, Phrase, compile_pattern, expand_slashes
from nanochat.data.storyworld.narrator import BoundClause, FactPattern, Narrator, SpokenSentence
from nanochat.data.storyworld.relations import RELATIONS
from nanochat.data.storyworld.world import CHARACTERS

FRAME = {"A": "char", "B": "char", "P": "place", "T": "thing"}
FRAME |= {"w": "weather", "s": "season", "d": "daypart", "day": "day"}
_HABIT_ROLES = {"H": "walker", "F": "walker"}
Line = tuple[Item, ...]
SpeechTable = tuple[tuple[SpokenSentence, ...], ...]


def compile_lines(table: str) -> tuple[Line, ...]:
    """The compiled lines of a table."""
    return tuple(compile_pattern(line, FRAME) for line in table.strip().splitlines())


def compile_utterances(table: str) -> SpeechTable:
    """The compiled lines of a table of things that are said; a line may hold several sentences."""
    return tuple(
        tuple(
            SpokenSentence(compile_pattern(text, FRAME), mark) for text, mark in re.findall(r"([^.!?]+)([.!?])", line)
        )
        for line in table.strip().splitlines()
    )


HABITS = tuple(
    Phrase(re.sub(r"\{H\.hi", "{H.own_hi", text), _HABIT_ROLES, EVERYONE & ~(1 << tuple(CHARACTERS).index("Finn")))
    for line in habits.HABITS.strip().splitlines()
    for text in expand_slashes(line)
)
HABIT_PATTERNS = compile_lines(habits.HABIT_PATTERNS)
PORTRAITS = compile_lines(habits.PORTRAITS)
PORTRAIT_ENDS = compile_lines(habits.PORTRAIT_ENDS)
THING_INTROS = compile_lines(habits.THING_INTROS)
WALKS, STOPS, WALK_ENDS = compile_lines(habits.WALKS), compile_lines(habits.STOPS), compile_lines(habits.WALK_ENDS)
MEETINGS, CLASSROOM, BELLS = (
    compile_lines(habits.MEETINGS),
    compile_lines(habits.CLASSROOM),
    compile_lines(habits.BELLS),
)
ANSWERS, QUESTIONS = compile_utterances(habits.ANSWERS), compile_utterances(habits.QUESTIONS)
CURIOUS, PRAISE, PARTINGS = (
    compile_utterances(habits.CURIOUS),
    compile_utterances(habits.PRAISE),
    compile_utterances(habits.PARTINGS),
)


def _line(narrator: Narrator, table: tuple[Line, ...]) -> None:
    narrator.begin()
    narrator.emit(narrator.choose(table))


def state_fact(narrator: Narrator, relation: str, subject: str, tense: str = "present") -> None:
    """State a fact as a sentence."""
    narrator.begin()
    narrator.fact(relation, subject, narrator.choose(RELATIONS[relation].statements[tense]))
    narrator.say(".")


def write_portrait(narrator: Narrator, facts: list[tuple[str, str]]) -> None:
    """What someone is like, does every day, and owns."""
    hero = narrator.roles["A"]
    narrator.tense = "present"
    narrator.roles["H"] = hero
    narrator.roles["T"] = CHARACTERS[hero].thing
    if narrator.random() < 0.7:
        _line(narrator, PORTRAITS)
    for relation, subject in facts:
        if subject == hero:
            state_fact(narrator, relation, subject)
    if hero != "Finn":
        narrator.paragraph()
        for _ in range(1 + int(narrator.random() * 4)):
            narrator.roles = {role: value for role, value in narrator.roles.items() if role in "AHTwsd"}
            narrator.roles["F"] = narrator.choose([name for name in CHARACTERS if name not in (hero, "Finn")])
            narrator.begin()
            narrator.emit(narrator.choose(HABIT_PATTERNS), (), (BoundClause((hero,), narrator.choose(HABITS)),))
    things = [fact for fact in facts if fact[1] == narrator.roles["T"]]
    if things:
        narrator.paragraph()
        _line(narrator, THING_INTROS)
        for relation, subject in things:
            state_fact(narrator, relation, subject)
    if narrator.random() < 0.4:
        _line(narrator, PORTRAIT_ENDS)


def write_walk(narrator: Narrator, facts: list[tuple[str, str]]) -> None:
    """Two friends walk from place to place."""
    _line(narrator, WALKS)
    for relation, place in facts:
        if narrator.roles.get("P") != place:
            narrator.roles["P"] = place
            if narrator.random() < 0.3:
                narrator.paragraph()
            _line(narrator, STOPS)
        state_fact(narrator, relation, place, "past" if narrator.random() < 0.5 else "present")
    _line(narrator, WALK_ENDS)


def _about(
    narrator: Narrator, table: tuple[tuple[SpokenSentence, ...], ...], fact: FactPattern
) -> list[SpokenSentence]:
    return [SpokenSentence(said.items, said.mark, fact=fact) for said in narrator.choose(table)]


def _exchange(
    narrator: Narrator, asking: str, answering: str, facts: list[tuple[str, str]], pupils: tuple[str, ...] = ()
) -> None:
    for relation, subject in facts:
        if pupils:
            answering = narrator.choose(pupils)
        if narrator.random() < 0.3:
            narrator.paragraph()
        question = _about(narrator, QUESTIONS, (relation, subject, narrator.choose(RELATIONS[relation].questions)))
        if narrator.random() < 0.2:
            question = [*narrator.choose(CURIOUS), *question] if not pupils else question
        narrator.tell_speech(asking, answering, question)
        statement = narrator.choose(RELATIONS[relation].statements["present"])
        narrator.tell_speech(answering, asking, _about(narrator, ANSWERS, (relation, subject, statement)))
        if narrator.random() < 0.3:
            narrator.tell_speech(asking, answering, list(narrator.choose(PRAISE)))


def write_talk(narrator: Narrator, facts: list[tuple[str, str]]) -> None:
    """One asks, the other knows."""
    asking, answering = narrator.roles["A"], narrator.roles["B"]
    _line(narrator, MEETINGS)
    _exchange(narrator, asking, answering, facts)
    if narrator.random() < 0.7:
        narrator.tell_speech(asking, answering, list(narrator.choose(PARTINGS)))


def write_lesson(narrator: Narrator, facts: list[tuple[str, str]]) -> None:
    """The teacher asks, the children answer."""
    _line(narrator, CLASSROOM)
    pupils = (narrator.roles["B"], narrator.roles["C"], narrator.roles["D"])
    _exchange(narrator, narrator.roles["A"], pupils[0], facts, pupils)
    narrator.roles["B"] = narrator.choose([pupil for pupil in pupils if pupil in narrator.known])
    narrator.paragraph()
    _line(narrator, BELLS)


def write_notes(narrator: Narrator, facts: list[tuple[str, str]]) -> None:
    """One fact after another, as a pupil would write them down: most of what a small model knows comes from here."""
    narrator.tense, narrator.plain = "present", True
    for index, (relation, subject) in enumerate(facts):
        if index and narrator.random() < 0.2:
            narrator.paragraph()
        state_fact(narrator, relation, subject)
