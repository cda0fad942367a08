"""Writers of documents other than stories: portraits, walks, talks, lessons and notes. Each document states facts.

Each writer takes a narrator, whose roles name the characters, and the facts to state, as pairs (relation, subject).
"""

import re

from nanochat.data.storyworld import habits
from nanochat.data.storyworld.grammar import EVERYONE, NAME_BITS, Pattern, Phrase, compile_pattern, expand_slashes
from nanochat.data.storyworld.narrator import BoundClause, FactPattern, Narrator, SpokenSentence
from nanochat.data.storyworld.relations import RELATIONS
from nanochat.data.storyworld.world import CHARACTERS

# The types of the roles in the tables of sentences (habits.py and sentences.py).
FRAME_ROLES = {
    "A": "char",
    "B": "char",
    "P": "place",
    "T": "thing",
    "w": "weather",
    "s": "season",
    "d": "daypart",
    "day": "day",
}
_HABIT_ROLES = {"H": "walker", "F": "walker"}
FISH = "Finn"  # has no habits: they need legs
FactKey = tuple[str, str]  # (relation, subject)
SpeechTable = tuple[tuple[SpokenSentence, ...], ...]


def compile_lines(table: str) -> tuple[Pattern, ...]:
    """Compile the lines of a table of sentences."""
    return tuple(compile_pattern(line, FRAME_ROLES) for line in table.strip().splitlines())


def compile_speeches(table: str) -> SpeechTable:
    """Compile the lines of a table of speeches; a line may have several sentences."""
    return tuple(
        tuple(
            SpokenSentence(compile_pattern(text, FRAME_ROLES), mark)
            for text, mark in re.findall(r"([^.!?]+)([.!?])", line)
        )
        for line in table.strip().splitlines()
    )


HABITS = tuple(
    Phrase(re.sub(r"\{H\.hi", "{H.own_hi", text), _HABIT_ROLES, EVERYONE & ~NAME_BITS[FISH])
    for line in habits.HABITS.strip().splitlines()
    for text in expand_slashes(line)
)
HABIT_PATTERNS = compile_lines(habits.HABIT_PATTERNS)
PORTRAITS = compile_lines(habits.PORTRAITS)
PORTRAIT_ENDS = compile_lines(habits.PORTRAIT_ENDS)
THING_INTROS = compile_lines(habits.THING_INTROS)
WALKS = compile_lines(habits.WALKS)
STOPS = compile_lines(habits.STOPS)
WALK_ENDS = compile_lines(habits.WALK_ENDS)
MEETINGS = compile_lines(habits.MEETINGS)
CLASSROOM = compile_lines(habits.CLASSROOM)
BELLS = compile_lines(habits.BELLS)
ANSWERS = compile_speeches(habits.ANSWERS)
QUESTIONS = compile_speeches(habits.QUESTIONS)
CURIOUS = compile_speeches(habits.CURIOUS)
PRAISE = compile_speeches(habits.PRAISE)
PARTINGS = compile_speeches(habits.PARTINGS)


def _write_line(narrator: Narrator, patterns: tuple[Pattern, ...]) -> None:
    narrator.begin_sentence()
    narrator.emit(narrator.choose(patterns))


def state_fact(narrator: Narrator, relation: str, subject: str, tense: str = "present") -> None:
    """Write a sentence that states a fact."""
    narrator.begin_sentence()
    narrator.emit_fact(relation, subject, narrator.choose(RELATIONS[relation].statements[tense]))
    narrator.say(".")


def write_portrait(narrator: Narrator, facts: list[FactKey]) -> None:
    """Write about one character: facts, habits, and facts about the thing it owns."""
    hero = narrator.roles["A"]
    narrator.tense = "present"
    narrator.roles["H"] = hero
    narrator.roles["T"] = CHARACTERS[hero].thing
    if narrator.random() < 0.7:
        _write_line(narrator, PORTRAITS)
    for relation, subject in facts:
        if subject == hero:
            state_fact(narrator, relation, subject)
    if hero != FISH:
        narrator.begin_paragraph()
        for _ in range(1 + int(narrator.random() * 4)):
            # Each habit draws new places, foods and a new friend.
            narrator.roles = {role: value for role, value in narrator.roles.items() if role in "AHTwsd"}
            narrator.roles["F"] = narrator.choose([name for name in CHARACTERS if name not in (hero, FISH)])
            narrator.begin_sentence()
            narrator.emit(narrator.choose(HABIT_PATTERNS), (), (BoundClause((hero,), narrator.choose(HABITS)),))
    thing_facts = [fact for fact in facts if fact[1] == narrator.roles["T"]]
    if thing_facts:
        narrator.begin_paragraph()
        _write_line(narrator, THING_INTROS)
        for relation, subject in thing_facts:
            state_fact(narrator, relation, subject)
    if narrator.random() < 0.4:
        _write_line(narrator, PORTRAIT_ENDS)


def write_walk(narrator: Narrator, facts: list[FactKey]) -> None:
    """Write about two friends who walk from place to place."""
    _write_line(narrator, WALKS)
    for relation, place in facts:
        if narrator.roles.get("P") != place:
            narrator.roles["P"] = place
            if narrator.random() < 0.3:
                narrator.begin_paragraph()
            _write_line(narrator, STOPS)
        state_fact(narrator, relation, place, "past" if narrator.random() < 0.5 else "present")
    _write_line(narrator, WALK_ENDS)


def _speech_about(narrator: Narrator, table: SpeechTable, fact: FactPattern) -> list[SpokenSentence]:
    return [SpokenSentence(sentence.items, sentence.mark, fact=fact) for sentence in narrator.choose(table)]


def _write_exchange(
    narrator: Narrator, asker: str, answerer: str, facts: list[FactKey], pupils: tuple[str, ...] = ()
) -> None:
    """Write a question and an answer for each fact; with `pupils`, one of them answers, else `answerer`."""
    for relation, subject in facts:
        if pupils:
            answerer = narrator.choose(pupils)
        if narrator.random() < 0.3:
            narrator.begin_paragraph()
        question_pattern = narrator.choose(RELATIONS[relation].questions)
        question = _speech_about(narrator, QUESTIONS, (relation, subject, question_pattern))
        if narrator.random() < 0.2 and not pupils:
            question = [*narrator.choose(CURIOUS), *question]
        narrator.tell_speech(asker, answerer, question)
        statement = narrator.choose(RELATIONS[relation].statements["present"])
        narrator.tell_speech(answerer, asker, _speech_about(narrator, ANSWERS, (relation, subject, statement)))
        if narrator.random() < 0.3:
            narrator.tell_speech(asker, answerer, list(narrator.choose(PRAISE)))


def write_talk(narrator: Narrator, facts: list[FactKey]) -> None:
    """Write a talk of two characters: one asks, the other answers."""
    asker = narrator.roles["A"]
    answerer = narrator.roles["B"]
    _write_line(narrator, MEETINGS)
    _write_exchange(narrator, asker, answerer, facts)
    if narrator.random() < 0.7:
        narrator.tell_speech(asker, answerer, list(narrator.choose(PARTINGS)))


def write_lesson(narrator: Narrator, facts: list[FactKey]) -> None:
    """Write a lesson: the teacher asks, three children answer."""
    _write_line(narrator, CLASSROOM)
    pupils = (narrator.roles["B"], narrator.roles["C"], narrator.roles["D"])
    _write_exchange(narrator, narrator.roles["A"], pupils[0], facts, pupils)
    narrator.roles["B"] = narrator.choose([pupil for pupil in pupils if pupil in narrator.known])
    narrator.begin_paragraph()
    _write_line(narrator, BELLS)


def write_notes(narrator: Narrator, facts: list[FactKey]) -> None:
    """Write one plain statement after another. Small models learn most facts from these notes."""
    narrator.tense = "present"
    narrator.full_names = True
    for index, (relation, subject) in enumerate(facts):
        if index and narrator.random() < 0.2:
            narrator.begin_paragraph()
        state_fact(narrator, relation, subject)
