"""Plans documents and tells them: stories, portraits, walks, talks, lessons, notes. The plan decides the split."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from nanochat.data.storyworld.documents import (
    compile_lines,
    state_fact,
    write_lesson,
    write_notes,
    write_portrait,
    write_talk,
    write_walk,
)
from nanochat.data.storyworld.grammar import NAMES, SORTS, members
from nanochat.data.storyworld.narrator import SPEECH_PATTERNS, BoundClause, Narrator, SpokenSentence, has_required_forms
from nanochat.data.storyworld.plots import STORY_PLOTS, Plot, Step
from nanochat.data.storyworld.relations import GENERAL, OF_PLACES, OF_THINGS, PERSONAL, RELATIONS
from nanochat.data.storyworld.sentences import ENDINGS, OPENINGS, PARTS_OF_DAY, SEASONS, WEATHER
from nanochat.data.storyworld.world import CHARACTERS, DAYS, PLACES

T = TypeVar("T")
SPLITS = ("train", "val", "test")
_OPENINGS, _ENDINGS = compile_lines(OPENINGS), compile_lines(ENDINGS)
_INTRODUCTIONS = ("home", "food", "hobby", "fear", "look", "trait", "friend", "thing", "kind")


@dataclass(frozen=True)
class Plan:
    """What a document is about. That assigns it to a split; the wording is drawn afterwards."""

    kind: str
    roles: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...] = ()
    plot: Plot | None = None

    def split(self) -> str:
        """The split of every document of this plan: 5% validation, 5% test, by a hash of what each wording of it shows.

        That is who meets whom in which plot; whose portrait it is and what it says; or the facts that are talked about.
        """
        telling = "HF" if self.plot else "A" if self.kind == "portrait" else ""
        cast = [value for role, value in self.roles if role in telling]
        bucket = zlib.crc32(repr((self.kind, cast, sorted(self.facts))).encode()) % 20
        return SPLITS[1 + bucket] if bucket < 2 else SPLITS[0]


def _pick(rng: Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def _plan_story(rng: Random) -> Plan:
    plot = STORY_PLOTS[int(rng.random() * len(STORY_PLOTS))]
    roles: dict[str, str] = {}
    for role, (kind, owner) in plot.roles.items():
        if owner:
            continue
        options = members(kind)
        if SORTS[kind] == "char":
            owned = [want for want, who in plot.roles.values() if who == role]
            options = tuple(
                name
                for name in options
                if name not in roles.values() and all(CHARACTERS[name].thing in members(want) for want in owned)
            )
        elif SORTS[kind] == "place":
            options = tuple(name for name in options if name not in roles.values())
        roles[role] = _pick(rng, options)
    for role, (_, owner) in plot.roles.items():
        if owner:
            roles[role] = CHARACTERS[roles[owner]].thing
    season = _pick(rng, SEASONS)
    weather = plot.weather or _pick(rng, [w for w in WEATHER if w != "snowy" and w != "windy"])
    if weather == "snowy":
        season = "winter"
    roles |= {"s": season, "w": _pick(rng, WEATHER[weather]), "d": _pick(rng, PARTS_OF_DAY)}
    return Plan(plot.name, tuple(sorted(roles.items())), plot=plot)


def _draw(rng: Random, options: Sequence[T], count: int) -> list[T]:
    left = list(options)
    return [left.pop(int(rng.random() * len(left))) for _ in range(min(count, len(left)))]


def _setting(rng: Random) -> dict[str, str]:
    weather = WEATHER[_pick(rng, ("cloudy", "sunny", "windy"))]
    return {
        "w": _pick(rng, weather),
        "s": _pick(rng, SEASONS),
        "d": _pick(rng, PARTS_OF_DAY),
        "day": _pick(rng, DAYS[:5]),
    }


def _plan_portrait(rng: Random) -> Plan:
    hero = _pick(rng, NAMES)
    thing = CHARACTERS[hero].thing
    facts = [(name, hero) for name in _draw(rng, PERSONAL, 4 + int(rng.random() * 5))]
    facts += [(name, thing) for name in _draw(rng, OF_THINGS, 2 + int(rng.random() * 2))]
    return Plan("portrait", tuple(sorted((_setting(rng) | {"A": hero}).items())), tuple(facts))


def _plan_walk(rng: Random) -> Plan:
    first, second = _draw(rng, members("walker"), 2)
    places = _draw(rng, tuple(PLACES), 3 + int(rng.random() * 3))
    facts = [(name, place) for place in places for name in _draw(rng, OF_PLACES, 1 + int(rng.random() * 2))]
    return Plan("walk", tuple(sorted((_setting(rng) | {"A": first, "B": second}).items())), tuple(facts))


def _plan_talk(rng: Random) -> Plan:
    first, second = _draw(rng, members("walker"), 2)
    roles = _setting(rng) | {"A": first, "B": second, "P": _pick(rng, tuple(PLACES))}
    told = [
        fact
        for fact in _draw(rng, _TALKED if rng.random() < 0.6 else _TAUGHT, 8)
        if not {first, second} & {fact[1], RELATIONS[fact[0]].values[fact[1]]}
    ]
    return Plan("talk", tuple(sorted(roles.items())), tuple(told[: 3 + int(rng.random() * 3)]))


def _plan_lesson(rng: Random) -> Plan:
    pupils = _draw(rng, members("child"), 3)
    roles = _setting(rng) | {"A": "Mrs Bell"} | dict(zip("BCD", pupils, strict=True))
    return Plan("lesson", tuple(sorted(roles.items())), tuple(_draw(rng, _TAUGHT, 4 + int(rng.random() * 4))))


def _plan_notes(rng: Random) -> Plan:
    return Plan("notes", (), tuple(_draw(rng, _TALKED + _TAUGHT, 8 + int(rng.random() * 9))))


_TALKED = [(r, subject) for r in PERSONAL + OF_THINGS + OF_PLACES for subject in RELATIONS[r].values]
_TAUGHT = [(r, subject) for r in GENERAL for subject in RELATIONS[r].values]
_PLANNERS = (
    *[_plan_story] * 11,
    *[_plan_portrait] * 3,
    _plan_walk,
    *[_plan_talk] * 3,
    *[_plan_lesson] * 3,
    *[_plan_notes] * 10,
)
_WRITERS = {
    "portrait": write_portrait,
    "walk": write_walk,
    "talk": write_talk,
    "lesson": write_lesson,
    "notes": write_notes,
}


def draw_plan(rng: Random) -> Plan:
    """Draw what the next document is about."""
    return _PLANNERS[int(rng.random() * len(_PLANNERS))](rng)


def _bind_clauses(narrator: Narrator, step: Step) -> tuple[BoundClause, ...]:
    return tuple(
        BoundClause(tuple(narrator.roles[a] for a in c.agents), narrator.choose(c.phrases)) for c in step.clauses
    )


def _write_step(narrator: Narrator, step: Step, join: str) -> None:
    if step.join != "speech":
        clauses = tuple(
            BoundClause(tuple(narrator.roles[agent] for agent in clause.agents), narrator.choose(clause.phrases))
            for clause in step.clauses
        )
        return narrator.tell_clauses(clauses, join)
    speaker, hearer = narrator.roles[step.speaker], narrator.roles[step.hearer]
    said = []
    for utterance in step.utterances:
        if utterance.kind:
            agents = {"plan": (speaker, hearer), "did": (hearer,), "can": (hearer,)}.get(utterance.kind, (speaker,))
            clause = BoundClause(agents, narrator.choose(utterance.phrases))
            pattern = narrator.choose(SPEECH_PATTERNS[utterance.kind])[1]
            while not has_required_forms(pattern, (clause,)):
                pattern = narrator.choose(SPEECH_PATTERNS[utterance.kind])[1]
            said.append(SpokenSentence(pattern[:-1], pattern[-1][1], agents, clause))
        else:
            said.append(SpokenSentence(utterance.items, utterance.mark, (speaker,)))
    return narrator.tell_speech(speaker, hearer, said)


def write_story(narrator: Narrator, plot: Plot) -> None:
    """Opening, introduction, the plot's beats, ending."""
    hero = narrator.roles["H"]
    narrator.roles["A"], narrator.roles["B"] = hero, narrator.roles.get("F", hero)
    opening = narrator.choose(_OPENINGS)
    beats = list(plot.beats)
    narrator.begin()
    if any(item[0] == "c" for item in opening):
        step = narrator.choose(beats.pop(0).ways)[0]
        narrator.emit(opening, (), _bind_clauses(narrator, step))
    else:
        narrator.emit(opening)
        for name in sorted(_INTRODUCTIONS, key=lambda _: narrator.random())[: int(narrator.random() * 3)]:
            state_fact(narrator, name, hero, "past")
        if "T" in narrator.roles and narrator.random() < 0.6:
            state_fact(narrator, narrator.choose(OF_THINGS), narrator.roles["T"], "past")
    for beat in beats:
        if beat.mark == "/":
            narrator.paragraph()
            continue
        if beat.mark == "?" and narrator.random() < 0.5:
            continue
        for step in narrator.choose(beat.ways):
            join = {"!": "sudden", "$": "final"}.get(beat.mark, "one") if step.join == "one" else step.join
            _write_step(narrator, step, join)
    if narrator.random() < 0.7:
        narrator.paragraph()
        narrator.begin()
        narrator.emit(narrator.choose(_ENDINGS))


def generate_stories(split: str, seed: int = 0, start: int = 0) -> Iterator[str]:
    """Documents without end, all distinct, the same for the same arguments everywhere; `start` leaves out the first.

    Raises ValueError for a split that is not "train", "val" or "test".
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    rng = Random(seed)
    seen: set[int] = set()
    while True:
        drawn = draw_plan(rng)
        if drawn.split() != split:
            continue
        narrator = Narrator(rng, dict(drawn.roles))
        if drawn.plot:
            write_story(narrator, drawn.plot)
        else:
            _WRITERS[drawn.kind](narrator, list(drawn.facts))
        text = narrator.text()
        mark = zlib.crc32(text.encode()) | zlib.adler32(text.encode()) << 32
        if mark in seen:
            continue
        seen.add(mark)
        if len(seen) > start:
            yield text


def generate_notes(rng: Random, split: str) -> str:
    """One more document of notes, of this split."""
    while (drawn := _plan_notes(rng)).split() != split:
        pass
    narrator = Narrator(rng, {})
    write_notes(narrator, list(drawn.facts))
    return narrator.text()
