"""The kinds of document besides stories: portraits, walks, talks, lessons and notes. Each states facts of the world."""

import re

from nanochat.data.storyworld import habits
from nanochat.data.storyworld.grammar import EVERYONE, Item, Phrase, compile_pattern, expand_slashes
from nanochat.data.storyworld.relations import RELATIONS
from nanochat.data.storyworld.voice import Fact, Said, Told, Voice
from nanochat.data.storyworld.world import CHARACTERS

FRAME = {"A": "char", "B": "char", "P": "place", "T": "thing"}
FRAME |= {"w": "weather", "s": "season", "d": "daypart", "day": "day"}
_HABIT_ROLES = {"H": "walker", "F": "walker"}
Line = tuple[Item, ...]


def lines(table: str) -> tuple[Line, ...]:
    """The compiled lines of a table."""
    return tuple(compile_pattern(line, FRAME) for line in table.strip().splitlines())


def utterances(table: str) -> tuple[tuple[Said, ...], ...]:
    """The compiled lines of a table of things that are said; a line may hold several sentences."""
    return tuple(
        tuple(Said(compile_pattern(text, FRAME), mark) for text, mark in re.findall(r"([^.!?]+)([.!?])", line))
        for line in table.strip().splitlines()
    )


HABITS = tuple(
    Phrase(re.sub(r"\{H\.hi", "{H.own_hi", text), _HABIT_ROLES, EVERYONE & ~(1 << tuple(CHARACTERS).index("Finn")))
    for line in habits.HABITS.strip().splitlines()
    for text in expand_slashes(line)
)
HABIT_PATTERNS = lines(habits.HABIT_PATTERNS)
PORTRAITS, PORTRAIT_ENDS, THING_INTROS = map(lines, (habits.PORTRAITS, habits.PORTRAIT_ENDS, habits.THING_INTROS))
WALKS, STOPS, WALK_ENDS = lines(habits.WALKS), lines(habits.STOPS), lines(habits.WALK_ENDS)
MEETINGS, CLASSROOM, BELLS = lines(habits.MEETINGS), lines(habits.CLASSROOM), lines(habits.BELLS)
ANSWERS, QUESTIONS = utterances(habits.ANSWERS), utterances(habits.QUESTIONS)
CURIOUS, PRAISE, PARTINGS = utterances(habits.CURIOUS), utterances(habits.PRAISE), utterances(habits.PARTINGS)


def _line(voice: Voice, table: tuple[Line, ...]) -> None:
    voice.begin()
    voice.emit(voice.choose(table))


def state(voice: Voice, relation: str, subject: str, tense: str = "present") -> None:
    """State a fact as a sentence."""
    voice.begin()
    voice.fact(relation, subject, voice.choose(RELATIONS[relation].statements[tense]))
    voice.say(".")


def portrait(voice: Voice, facts: list[tuple[str, str]]) -> None:
    """What someone is like, does every day, and owns."""
    hero = voice.roles["A"]
    voice.tense = "present"
    voice.roles["H"] = hero
    voice.roles["T"] = CHARACTERS[hero].thing
    if voice.random() < 0.7:
        _line(voice, PORTRAITS)
    for relation, subject in facts:
        if subject == hero:
            state(voice, relation, subject)
    if hero != "Finn":
        voice.paragraph()
        for _ in range(1 + int(voice.random() * 4)):
            voice.roles = {role: value for role, value in voice.roles.items() if role in "AHTwsd"}
            voice.roles["F"] = voice.choose([name for name in CHARACTERS if name not in (hero, "Finn")])
            voice.begin()
            voice.emit(voice.choose(HABIT_PATTERNS), (), (Told((hero,), voice.choose(HABITS)),))
    things = [fact for fact in facts if fact[1] == voice.roles["T"]]
    if things:
        voice.paragraph()
        _line(voice, THING_INTROS)
        for relation, subject in things:
            state(voice, relation, subject)
    if voice.random() < 0.4:
        _line(voice, PORTRAIT_ENDS)


def walk(voice: Voice, facts: list[tuple[str, str]]) -> None:
    """Two friends walk from place to place."""
    _line(voice, WALKS)
    for relation, place in facts:
        if voice.roles.get("P") != place:
            voice.roles["P"] = place
            if voice.random() < 0.3:
                voice.paragraph()
            _line(voice, STOPS)
        state(voice, relation, place, "past" if voice.random() < 0.5 else "present")
    _line(voice, WALK_ENDS)


def _about(voice: Voice, table: tuple[tuple[Said, ...], ...], fact: Fact) -> list[Said]:
    return [Said(said.items, said.mark, fact=fact) for said in voice.choose(table)]


def _exchange(
    voice: Voice, asking: str, answering: str, facts: list[tuple[str, str]], pupils: tuple[str, ...] = ()
) -> None:
    for relation, subject in facts:
        if pupils:
            answering = voice.choose(pupils)
        if voice.random() < 0.3:
            voice.paragraph()
        question = _about(voice, QUESTIONS, (relation, subject, voice.choose(RELATIONS[relation].questions)))
        if voice.random() < 0.2:
            question = [*voice.choose(CURIOUS), *question] if not pupils else question
        voice.speak(asking, answering, question)
        statement = voice.choose(RELATIONS[relation].statements["present"])
        voice.speak(answering, asking, _about(voice, ANSWERS, (relation, subject, statement)))
        if voice.random() < 0.3:
            voice.speak(asking, answering, list(voice.choose(PRAISE)))


def talk(voice: Voice, facts: list[tuple[str, str]]) -> None:
    """One asks, the other knows."""
    asking, answering = voice.roles["A"], voice.roles["B"]
    _line(voice, MEETINGS)
    _exchange(voice, asking, answering, facts)
    if voice.random() < 0.7:
        voice.speak(asking, answering, list(voice.choose(PARTINGS)))


def lesson(voice: Voice, facts: list[tuple[str, str]]) -> None:
    """The teacher asks, the children answer."""
    _line(voice, CLASSROOM)
    pupils = (voice.roles["B"], voice.roles["C"], voice.roles["D"])
    _exchange(voice, voice.roles["A"], pupils[0], facts, pupils)
    voice.roles["B"] = voice.choose([pupil for pupil in pupils if pupil in voice.known])
    voice.paragraph()
    _line(voice, BELLS)


def notes(voice: Voice, facts: list[tuple[str, str]]) -> None:
    """One fact after another, as a pupil would write them down: most of what a small model knows comes from here."""
    voice.tense, voice.plain = "present", True
    for index, (relation, subject) in enumerate(facts):
        if index and voice.random() < 0.2:
            voice.paragraph()
        state(voice, relation, subject)
