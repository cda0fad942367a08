"""Writer of documents: draws a plan, then the wording. Stories, portraits, walks, talks, lessons and notes.

For example:

    draw_plan(rng) -> Plan("lost", roles={"H": "Mia", ...})  ->  "Once upon a time, Mia took her red kite ..."
"""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import TypeVar

from nanochat.data.storyworld.documents import (
    FactKey,
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
PROMPT_WORDS = 6
_OPENINGS = compile_lines(OPENINGS)
_ENDINGS = compile_lines(ENDINGS)
_INTRODUCTIONS = ("home", "food", "hobby", "fear", "look", "trait", "friend", "thing", "kind")
_TEACHER = "Mrs Bell"


@dataclass(frozen=True)
class Plan:
    """The content of a document, which decides its split; the wording is drawn afterwards.

    `kind` is the name of the plot or the kind of document, `roles` are sorted pairs (role, value).
    """

    kind: str
    roles: tuple[tuple[str, str], ...]
    facts: tuple[FactKey, ...] = ()
    plot: Plot | None = None

    def split(self) -> str:
        """Return the split of all documents of this plan: 5% validation, 5% test.

        It is a hash of the content that every wording shows: the two characters who meet in a plot, the character of a
        portrait and its facts, or the facts that are stated.
        """
        if self.plot:
            decisive_roles = "HF"
        else:
            decisive_roles = "A" if self.kind == "portrait" else ""
        cast = [value for role, value in self.roles if role in decisive_roles]
        bucket = zlib.crc32(repr((self.kind, cast, sorted(self.facts))).encode()) % 20
        return SPLITS[1 + bucket] if bucket < 2 else SPLITS[0]


def _pick(rng: Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def _sample(rng: Random, options: Sequence[T], count: int) -> list[T]:
    """Draw at most `count` distinct options."""
    remaining = list(options)
    return [remaining.pop(int(rng.random() * len(remaining))) for _ in range(min(count, len(remaining)))]


# --- plans


def _plan_story(rng: Random) -> Plan:
    plot = _pick(rng, STORY_PLOTS)
    roles: dict[str, str] = {}
    for role, (kind, owner) in plot.roles.items():
        if owner:
            continue
        options = members(kind)
        if SORTS[kind] == "char":
            owned_types = [owned_type for owned_type, owner_role in plot.roles.values() if owner_role == role]
            options = tuple(
                name
                for name in options
                if name not in roles.values()
                and all(CHARACTERS[name].thing in members(owned_type) for owned_type in owned_types)
            )
        elif SORTS[kind] == "place":
            options = tuple(name for name in options if name not in roles.values())
        roles[role] = _pick(rng, options)
    for role, (_, owner) in plot.roles.items():
        if owner:
            roles[role] = CHARACTERS[roles[owner]].thing
    season = _pick(rng, SEASONS)
    weather = plot.weather or _pick(rng, [kind for kind in WEATHER if kind not in ("snowy", "windy")])
    if weather == "snowy":
        season = "winter"
    roles |= {"s": season, "w": _pick(rng, WEATHER[weather]), "d": _pick(rng, PARTS_OF_DAY)}
    return Plan(plot.name, tuple(sorted(roles.items())), plot=plot)


def _draw_setting(rng: Random) -> dict[str, str]:
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
    facts = [(name, hero) for name in _sample(rng, PERSONAL, 4 + int(rng.random() * 5))]
    facts += [(name, thing) for name in _sample(rng, OF_THINGS, 2 + int(rng.random() * 2))]
    roles = _draw_setting(rng) | {"A": hero}
    return Plan("portrait", tuple(sorted(roles.items())), tuple(facts))


def _plan_walk(rng: Random) -> Plan:
    first, second = _sample(rng, members("walker"), 2)
    places = _sample(rng, tuple(PLACES), 3 + int(rng.random() * 3))
    facts = [(name, place) for place in places for name in _sample(rng, OF_PLACES, 1 + int(rng.random() * 2))]
    roles = _draw_setting(rng) | {"A": first, "B": second}
    return Plan("walk", tuple(sorted(roles.items())), tuple(facts))


def _plan_talk(rng: Random) -> Plan:
    first, second = _sample(rng, members("walker"), 2)
    roles = _draw_setting(rng) | {"A": first, "B": second, "P": _pick(rng, tuple(PLACES))}
    candidates = _sample(rng, _PARTICULAR_FACTS if rng.random() < 0.6 else _GENERAL_FACTS, 8)
    facts = [  # not about the two speakers
        (relation, subject)
        for relation, subject in candidates
        if not {first, second} & {subject, RELATIONS[relation].values[subject]}
    ]
    return Plan("talk", tuple(sorted(roles.items())), tuple(facts[: 3 + int(rng.random() * 3)]))


def _plan_lesson(rng: Random) -> Plan:
    pupils = _sample(rng, members("child"), 3)
    roles = _draw_setting(rng) | {"A": _TEACHER} | dict(zip("BCD", pupils, strict=True))
    facts = _sample(rng, _GENERAL_FACTS, 4 + int(rng.random() * 4))
    return Plan("lesson", tuple(sorted(roles.items())), tuple(facts))


def _plan_notes(rng: Random) -> Plan:
    return Plan("notes", (), tuple(_sample(rng, _PARTICULAR_FACTS + _GENERAL_FACTS, 8 + int(rng.random() * 9))))


_PARTICULAR_FACTS = [
    (relation, subject)
    for relation in PERSONAL + OF_THINGS + OF_PLACES
    for subject in RELATIONS[relation].values
]  # fmt: skip
_GENERAL_FACTS = [(relation, subject) for relation in GENERAL for subject in RELATIONS[relation].values]
# Repetition sets the frequency of a kind of document.
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
    """Draw the plan of the next document."""
    return _pick(rng, _PLANNERS)(rng)


# --- stories


def _bind_clauses(narrator: Narrator, step: Step) -> tuple[BoundClause, ...]:
    return tuple(
        BoundClause(tuple(narrator.roles[agent] for agent in clause.agents), narrator.choose(clause.phrases))
        for clause in step.clauses
    )


def _write_step(narrator: Narrator, step: Step, join: str) -> None:
    if step.join != "speech":
        narrator.tell_clauses(_bind_clauses(narrator, step), join)
        return
    speaker = narrator.roles[step.speaker]
    hearer = narrator.roles[step.hearer]
    speech = []
    for utterance in step.utterances:
        if not utterance.kind:
            speech.append(SpokenSentence(utterance.items, utterance.mark, (speaker,)))
            continue
        agents = {"plan": (speaker, hearer), "did": (hearer,), "can": (hearer,)}.get(utterance.kind, (speaker,))
        clause = BoundClause(agents, narrator.choose(utterance.phrases))
        _, pattern = narrator.choose(SPEECH_PATTERNS[utterance.kind])
        while not has_required_forms(pattern, (clause,)):
            _, pattern = narrator.choose(SPEECH_PATTERNS[utterance.kind])
        speech.append(SpokenSentence(pattern[:-1], pattern[-1][1], agents, clause))
    narrator.tell_speech(speaker, hearer, speech)


def write_story(narrator: Narrator, plot: Plot) -> None:
    """Write a story: opening, introduction of the hero, the beats of the plot, ending."""
    hero = narrator.roles["H"]
    narrator.roles["A"] = hero
    narrator.roles["B"] = narrator.roles.get("F", hero)
    opening = narrator.choose(_OPENINGS)
    beats = list(plot.beats)
    narrator.begin_sentence()
    if any(item[0] == "c" for item in opening):  # the opening contains the first event
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
            narrator.begin_paragraph()
            continue
        if beat.mark == "?" and narrator.random() < 0.5:
            continue
        for step in narrator.choose(beat.ways):
            join = {"!": "sudden", "$": "final"}.get(beat.mark, "one") if step.join == "one" else step.join
            _write_step(narrator, step, join)
    if narrator.random() < 0.7:
        narrator.begin_paragraph()
        narrator.begin_sentence()
        narrator.emit(narrator.choose(_ENDINGS))


def generate_stories(split: str, seed: int = 0, start: int = 0) -> Iterator[str]:
    """Yield distinct documents of a split, endlessly. The arguments determine them; `start` skips the first ones.

    Raises ValueError for a split that is not "train", "val" or "test".
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}: must be one of {', '.join(SPLITS)}")
    rng = Random(seed)
    seen: set[int] = set()
    while True:
        plan = draw_plan(rng)
        if plan.split() != split:
            continue
        narrator = Narrator(rng, dict(plan.roles))
        if plan.plot:
            write_story(narrator, plan.plot)
        else:
            _WRITERS[plan.kind](narrator, list(plan.facts))
        text = narrator.text()
        fingerprint = zlib.crc32(text.encode()) | zlib.adler32(text.encode()) << 32
        if fingerprint in seen:
            continue
        seen.add(fingerprint)
        if len(seen) > start:
            yield text


def generate_notes(rng: Random, split: str) -> str:
    """Return one document of notes of a split."""
    plan = _plan_notes(rng)
    while plan.split() != split:
        plan = _plan_notes(rng)
    narrator = Narrator(rng, {})
    write_notes(narrator, list(plan.facts))
    return narrator.text()


def generate_prompts(count: int, seed: int = 0) -> list[str]:
    """Return the first words of `count` stories of the test split, for a model to continue."""
    prompts = []
    for text in islice(generate_stories("test", seed), count):
        words = text.split("\n")[0].split(" ")
        prompts.append(" ".join(words[:PROMPT_WORDS]))
    return prompts
