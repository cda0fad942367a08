"""Reads the plots' notation (troubles.py) into beats, and gathers every phrase, utterance and sentence that occurs."""

import re
from dataclasses import dataclass, field

from nanochat.data.storyworld.adventures import ADVENTURES
from nanochat.data.storyworld.grammar import CHARACTER_CLASSES, SORTS, Item, Phrase, compile_pattern, expand_slashes
from nanochat.data.storyworld.troubles import TROUBLES

_JOIN_SIGNS = {";": "seq", "<-": "cause", "~": "but", "&": "while", "=>": "goal"}
_SPEECH_KINDS = ("plan", "did", "past", "will", "can")


# What one cannot decide or begin to do.
_NOT_CHOSEN = frozenset(
    "be bepl have see hear notice find know feel lose love like miss fall drop trip slip reach discover spot remember "
    "wake want need forget learn win begin get live stay meet stand blush tremble shiver grow understand step".split()
)


@dataclass
class Clause:
    """Who does what: role letters of the subject (none if it is no character), and the phrases to choose from."""

    agents: tuple[str, ...]
    phrases: tuple[Phrase, ...]


@dataclass
class Utterance:
    """Something said: fixed words with their closing mark, or a kind of speech about a phrase."""

    items: tuple[Item, ...] = ()
    mark: str = "."
    kind: str = ""
    phrases: tuple[Phrase, ...] = ()


@dataclass
class Step:
    """One way to tell a beat: a join of one or two clauses, or (join "speech") utterances."""

    join: str
    clauses: tuple[Clause, ...] = ()
    speaker: str = ""
    hearer: str = ""
    utterances: tuple[Utterance, ...] = ()


@dataclass
class Beat:
    """A moment of the plot: its mark ("", "!", "$", "?" or "/" for a new paragraph) and its alternatives."""

    mark: str
    ways: tuple[tuple[Step, ...], ...] = ()


@dataclass
class Plot:
    """A plot with its roles: letter -> (type, owner's letter or "")."""

    name: str
    roles: dict[str, tuple[str, str]] = field(default_factory=dict)
    weather: str = ""
    beats: list[Beat] = field(default_factory=list)

    @property
    def types(self) -> dict[str, str]:
        """The type of each role."""
        return {role: kind for role, (kind, _) in self.roles.items()}


def _clause(text: str, plot: Plot, agents: tuple[str, ...] = ()) -> Clause:
    match = re.match(r"([A-Z](?:\+[A-Z])*) (.*)", text)
    if match:
        agents, text = tuple(match[1].split("+")), match[2]
    first = re.search(r"\*([a-z]+)", text)
    on_purpose = "-*" not in text and first is not None and first[1] not in _NOT_CHOSEN
    subjects = CHARACTER_CLASSES["char"]
    for agent in agents:
        subjects &= CHARACTER_CLASSES[plot.roles[agent][0]] if len(agents) == 1 else CHARACTER_CLASSES["walker"]
    for agent in agents:  # "his" is the subject's own
        text = re.sub(rf"\{{{agent}\.(his|him)\}}", rf"{{{agent}.own_\1}}", text)
    expanded = expand_slashes(text.replace("-*", "*"))
    phrases = tuple(Phrase(one, plot.types, subjects, bool(agents), on_purpose) for one in expanded)
    return Clause(agents, phrases)


def _steps(text: str, plot: Plot) -> tuple[Step, ...]:
    speech = re.match(r"([A-Z])>([A-Z]) (.*)", text)
    if speech:
        return (_speech(speech[1], speech[2], speech[3], plot),)
    parts = re.split(r" (;|<-|~|&|=>) ", text)
    first = _clause(parts[0], plot)
    if len(parts) == 1:
        return (Step("one", (first,)),)
    join = _JOIN_SIGNS[parts[1]]
    second = _clause(parts[2], plot, first.agents if join == "goal" else ())
    if join == "seq" and first.agents and first.agents == second.agents:
        join = "same"
    rest = (Step("one", (_clause(parts[4], plot),)),) if len(parts) > 3 else ()
    return (Step(join, (first, second)), *rest)


def _speech(speaker: str, hearer: str, text: str, plot: Plot) -> Step:
    kind = text.split()[0]
    if kind in _SPEECH_KINDS:
        agents = (speaker, hearer) if kind == "plan" else (hearer,) if kind in ("did", "can") else (speaker,)
        clause = _clause("+".join(agents) + " " + text[len(kind) + 1 :], plot)
        return Step("speech", (), speaker, hearer, (Utterance(kind=kind, phrases=clause.phrases),))
    said = []
    for quoted in re.findall(r'"([^"]*)"', text):
        for sentence in re.findall(r"[^.!?]+[.!?]", re.sub(r"\{[^}]*\}", lambda m: m[0].replace(".", "~"), quoted)):
            sentence = sentence.strip().replace("~", ".")
            said.append(Utterance(compile_pattern(sentence[:-1], plot.types), sentence[-1]))
    assert said, f"nothing is said in {text!r}"
    return Step("speech", (), speaker, hearer, tuple(said))


def _read(text: str) -> list[Plot]:
    plots: list[Plot] = []
    text = re.sub(r"\{([A-Z])\}'s", r"{\1.his}", text)
    for line in filter(None, map(str.strip, text.splitlines())):
        if line.startswith("= "):
            plots.append(Plot(line[2:]))
        elif line.startswith(": "):
            for part in line[2:].split():
                role, spec = part.split("=")
                kind, _, owner = spec.partition("@")
                assert kind in SORTS, f"no such type: {kind}"
                plots[-1].roles[role] = (kind, owner)
        elif line.startswith("% "):
            plots[-1].weather = line[2:]
        elif line == "/":
            plots[-1].beats.append(Beat("/"))
        else:
            mark, body = (line[0], line[2:]) if line[0] in "!$?" else ("", line)
            ways = tuple(_steps(way.strip(), plots[-1]) for way in body.split("||"))
            plots[-1].beats.append(Beat(mark, ways))
    return plots


STORY_PLOTS = _read(TROUBLES + ADVENTURES)
