"""Plans documents and tells them: stories, portraits, talks and lessons. The plan alone decides the split."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from nanochat.storyworld.grammar import CHARACTER_CLASSES, SORTS, compile_pattern, members, names_in
from nanochat.storyworld.relations import GENERAL, OF_PLACES, OF_THINGS, PERSONAL, RELATIONS
from nanochat.storyworld.script import STORY_PLOTS, Plot, Step
from nanochat.storyworld.sentences import ENDINGS, OPENINGS, PARTS_OF_DAY, SEASONS, WEATHER
from nanochat.storyworld.voice import SPEECH_PATTERNS, Said, Told, Voice
from nanochat.storyworld.world import CHARACTERS, THINGS

SPLITS = ("train", "val", "test")
_FRAME = {"A": "char", "B": "char", "w": "weather", "s": "season", "d": "daypart"}
_OPENINGS = [compile_pattern(line, _FRAME) for line in OPENINGS.strip().splitlines()]
_ENDINGS = [compile_pattern(line, _FRAME) for line in ENDINGS.strip().splitlines()]
_INTRODUCTIONS = ("home", "food", "hobby", "fear", "look", "trait", "friend", "thing")


@dataclass(frozen=True)
class Plan:
    """What a document is about. Its hash assigns it to a split; the wording is drawn afterwards."""

    kind: str
    roles: tuple[tuple[str, str], ...]
    plot: Plot | None = None

    def split(self) -> str:
        """The split that every document of this plan belongs to: 5% validation, 5% test."""
        bucket = zlib.crc32(repr((self.kind, self.roles)).encode()) % 20
        return SPLITS[1 + bucket] if bucket < 2 else SPLITS[0]


def _pick(rng: Random, options: tuple[str, ...] | list[str]) -> str:
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
    return Plan(plot.name, tuple(sorted(roles.items())), plot)


def plan(rng: Random) -> Plan:
    """Draw what the next document is about."""
    return _plan_story(rng)


def _tell(voice: Voice, step: Step, join: str) -> None:
    if step.join != "speech":
        clauses = tuple(
            Told(tuple(voice.roles[agent] for agent in clause.agents), voice.choose(clause.phrases)) for clause in step.clauses
        )
        return voice.told(clauses, join)
    speaker, hearer = voice.roles[step.speaker], voice.roles[step.hearer]
    said = []
    for utterance in step.utterances:
        if utterance.kind:
            agents = {"plan": (speaker, hearer), "did": (hearer,), "can": (hearer,)}.get(utterance.kind, (speaker,))
            pattern = voice.choose(SPEECH_PATTERNS[utterance.kind])[1]
            clause = Told(agents, voice.choose(utterance.phrases))
            said.append(Said(pattern[:-1], pattern[-1][1], agents, clause))
        else:
            said.append(Said(utterance.items, utterance.mark, (speaker,)))
    return voice.speak(speaker, hearer, said)


def tell_story(voice: Voice, plot: Plot) -> None:
    """Opening, introduction, the plot's beats, ending."""
    hero = voice.roles["H"]
    voice.roles["A"], voice.roles["B"] = hero, voice.roles.get("F", hero)
    opening = voice.choose(_OPENINGS)
    beats = list(plot.beats)
    voice.begin()
    if any(item[0] == "c" for item in opening):
        step = voice.choose(beats.pop(0).ways)[0]
        clauses = tuple(Told(tuple(voice.roles[a] for a in c.agents), voice.choose(c.phrases)) for c in step.clauses)
        voice.emit(opening, (), clauses)
    else:
        voice.emit(opening)
        for name in sorted(_INTRODUCTIONS, key=lambda _: voice.random())[: int(voice.random() * 3)]:
            voice.begin()
            voice.fact(name, hero, voice.choose(RELATIONS[name].statements["past"]))
            voice.say(".")
    for beat in beats:
        if beat.mark == "/":
            voice.paragraph()
            continue
        if beat.mark == "?" and voice.random() < 0.5:
            continue
        for step in voice.choose(beat.ways):
            join = {"!": "sudden", "$": "final"}.get(beat.mark, "one") if step.join == "one" else step.join
            _tell(voice, step, join)
    if voice.random() < 0.7:
        voice.paragraph()
        voice.begin()
        voice.emit(voice.choose(_ENDINGS))


def stories(split: str, seed: int = 0, start: int = 0) -> Iterator[str]:
    """Documents without end, all distinct; the same for the same arguments everywhere. `start` leaves out the first ones.

    Raises ValueError for a split that is not "train", "val" or "test".
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    rng = Random(seed)
    seen: set[int] = set()
    while True:
        drawn = plan(rng)
        if drawn.split() != split:
            continue
        voice = Voice(rng, dict(drawn.roles), drawn.plot.types if drawn.plot else {})
        tell_story(voice, drawn.plot)
        text = voice.text()
        mark = zlib.crc32(text.encode()) | zlib.adler32(text.encode()) << 32
        if mark in seen:
            continue
        seen.add(mark)
        if len(seen) > start:
            yield text
