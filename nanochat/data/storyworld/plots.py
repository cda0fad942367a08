"""Plots: the notation of troubles.py and adventures.py, parsed into beats with their phrases and utterances.

For example:

    "H *take {T} to {P} ; H *play until noon"  ->  Step("same", (Clause(("H",), ...), Clause(("H",), ...)))
    'H>F past *lose {T}'                       ->  Step("speech", speaker="H", hearer="F", utterances=...)
"""

import re
from dataclasses import dataclass, field

from nanochat.data.storyworld.adventures import ADVENTURES
from nanochat.data.storyworld.grammar import CHARACTER_CLASSES, SORTS, Pattern, Phrase, compile_pattern, expand_slashes
from nanochat.data.storyworld.troubles import TROUBLES

_JOIN_SIGNS = {";": "seq", "<-": "cause", "~": "but", "&": "while", "=>": "goal"}
_SPEECH_KINDS = ("plan", "did", "past", "will", "can")

# Verbs of events that are not deliberate: "decided to ..." and "began to ..." do not fit.
_NOT_DELIBERATE = frozenset(
    "be bepl have see hear notice find know feel lose love like miss fall drop trip slip reach discover spot remember "
    "wake want need forget learn win begin get live stay meet stand blush tremble shiver grow understand step".split()
)


@dataclass
class Clause:
    """An event: the role letters of its subjects (none if the subject is no character), and its alternative phrases."""

    agents: tuple[str, ...]
    phrases: tuple[Phrase, ...]


@dataclass
class Utterance:
    """A sentence of a speech: fixed `items` with their closing mark, or a `kind` of speech about one of `phrases`."""

    items: Pattern = ()
    mark: str = "."
    kind: str = ""
    phrases: tuple[Phrase, ...] = ()


@dataclass
class Step:
    """A sentence of a beat: a join of one or two clauses, or (join "speech") utterances."""

    join: str
    clauses: tuple[Clause, ...] = ()
    speaker: str = ""
    hearer: str = ""
    utterances: tuple[Utterance, ...] = ()


@dataclass
class Beat:
    """A moment of the plot: its mark ("", "!", "$", "?", or "/" for a new paragraph) and its alternatives."""

    mark: str
    ways: tuple[tuple[Step, ...], ...] = ()


@dataclass
class Plot:
    """A plot with its roles: letter -> (type, letter of the owner or "")."""

    name: str
    roles: dict[str, tuple[str, str]] = field(default_factory=dict)
    weather: str = ""
    beats: list[Beat] = field(default_factory=list)

    @property
    def types(self) -> dict[str, str]:
        """The type of each role."""
        return {role: kind for role, (kind, _) in self.roles.items()}


def _parse_clause(text: str, plot: Plot, agents: tuple[str, ...] = ()) -> Clause:
    match = re.match(r"([A-Z](?:\+[A-Z])*) (.*)", text)
    if match:
        agents = tuple(match[1].split("+"))
        text = match[2]
    first_verb = re.search(r"\*([a-z]+)", text)
    is_deliberate = "-*" not in text and first_verb is not None and first_verb[1] not in _NOT_DELIBERATE
    subjects = CHARACTER_CLASSES["char"]
    for agent in agents:
        subjects &= CHARACTER_CLASSES[plot.roles[agent][0] if len(agents) == 1 else "walker"]
    for agent in agents:  # "his" refers to the subject
        text = re.sub(rf"\{{{agent}\.(his|him)\}}", rf"{{{agent}.own_\1}}", text)
    alternatives = expand_slashes(text.replace("-*", "*"))
    phrases = tuple(Phrase(phrase, plot.types, subjects, bool(agents), is_deliberate) for phrase in alternatives)
    return Clause(agents, phrases)


def _parse_steps(text: str, plot: Plot) -> tuple[Step, ...]:
    speech = re.match(r"([A-Z])>([A-Z]) (.*)", text)
    if speech:
        return (_parse_speech(speech[1], speech[2], speech[3], plot),)
    parts = re.split(r" (;|<-|~|&|=>) ", text)
    first = _parse_clause(parts[0], plot)
    if len(parts) == 1:
        return (Step("one", (first,)),)
    join = _JOIN_SIGNS[parts[1]]
    second = _parse_clause(parts[2], plot, first.agents if join == "goal" else ())
    if join == "seq" and first.agents and first.agents == second.agents:
        join = "same"
    rest = (Step("one", (_parse_clause(parts[4], plot),)),) if len(parts) > 3 else ()
    return (Step(join, (first, second)), *rest)


def _parse_speech(speaker: str, hearer: str, text: str, plot: Plot) -> Step:
    kind = text.split()[0]
    if kind in _SPEECH_KINDS:
        agents = {"plan": (speaker, hearer), "did": (hearer,), "can": (hearer,)}.get(kind, (speaker,))
        clause = _parse_clause("+".join(agents) + " " + text[len(kind) + 1 :], plot)
        return Step("speech", (), speaker, hearer, (Utterance(kind=kind, phrases=clause.phrases),))
    utterances = []
    for quoted in re.findall(r'"([^"]*)"', text):
        # The full stop of a slot's mode, as in {T.color}, ends no sentence.
        protected = re.sub(r"\{[^}]*\}", lambda slot: slot[0].replace(".", "~"), quoted)
        for sentence in re.findall(r"[^.!?]+[.!?]", protected):
            sentence = sentence.strip().replace("~", ".")
            utterances.append(Utterance(compile_pattern(sentence[:-1], plot.types), sentence[-1]))
    assert utterances, f"nothing is said in {text!r}"
    return Step("speech", (), speaker, hearer, tuple(utterances))


def _parse_plots(text: str) -> list[Plot]:
    plots: list[Plot] = []
    text = re.sub(r"\{([A-Z])\}'s", r"{\1.his}", text)
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("= "):
            plots.append(Plot(line[2:]))
        elif line.startswith(": "):
            for part in line[2:].split():
                role, role_type = part.split("=")
                kind, _, owner = role_type.partition("@")
                assert kind in SORTS, f"no such type: {kind}"
                plots[-1].roles[role] = (kind, owner)
        elif line.startswith("% "):
            plots[-1].weather = line[2:]
        elif line == "/":
            plots[-1].beats.append(Beat("/"))
        else:
            mark, body = (line[0], line[2:]) if line[0] in "!$?" else ("", line)
            ways = tuple(_parse_steps(way.strip(), plots[-1]) for way in body.split("||"))
            plots[-1].beats.append(Beat(mark, ways))
    return plots


STORY_PLOTS = _parse_plots(TROUBLES + ADVENTURES)
