"""Tests what a parse found against the world: is the subject able to do this, whose is it, is it true?"""

from dataclasses import dataclass, field
from itertools import pairwise

from nanochat.data.storyworld import world
from nanochat.data.storyworld.grammar import BIT, EVERYONE, NAMES, SEX, Phrase, names_in
from nanochat.data.storyworld.parser import SPEECH_NUMBER, SPEECH_OWN, Finding
from nanochat.data.storyworld.relations import RELATIONS

_KINDS = {c.kind: BIT[name] for name, c in world.CHARACTERS.items()}
_OWN_SEX = {"his": "m", "him": "m", "her": "f"}


class Wrong(Exception):
    """A sentence is not true or not sensible; the message says why."""


@dataclass
class Context:
    """Who and what was named in this sentence and the one before."""

    before: int = 0  # characters, as bits
    now: int = 0
    things_before: set[str] = field(default_factory=set)
    things: set[str] = field(default_factory=set)

    def copy(self) -> "Context":
        """An equal context that can go its own way."""
        return Context(self.before, self.now, set(self.things_before), set(self.things))

    def step(self, words: list[str]) -> None:
        """Go on to the next sentence."""
        self.before, self.things_before = self.now, self.things
        self.now, self.things = 0, set()
        line = " ".join(words).replace("'s", "") + " "
        for name in NAMES:
            if name + " " in line:
                self.now |= BIT[name]
        for word, after in pairwise(words):
            if word == "the":
                self.now |= _KINDS.get(after, 0)
        if "it" in words:
            self.things |= self.things_before
        for word in words:
            if word in world.THINGS:
                self.things.add(word)
                self.now |= BIT[world.THINGS[word].owner] if "his" in words or "her" in words else 0


class Judge:
    """Judges one parse of a sentence."""

    def __init__(self, findings: tuple[Finding, ...], words: list[str], context: Context) -> None:
        self.findings = findings
        self.words = words
        self.context = context
        self.resolved = 0  # whom the pronouns mean
        self.subjects: dict[int, tuple[int, bool]] = {}
        self.agent: tuple[int, bool] = (EVERYONE, False)
        self.inside = False  # what is said
        self.kind = ""  # of the speech we are in
        self.mark = ""  # that closed the last speech
        self.verb_mark = ""  # what the verb of saying wants
        self.asked = False
        self.topic: object = None
        self.value: tuple[str, str] | None = None
        self.spoken = any(finding[0] == "saying" for finding in findings)

    def reason(self) -> str:
        """Why the sentence is wrong, or nothing."""
        try:
            self._subjects()
            for finding in self.findings:
                self.inside = finding[0] == "said" or (self.inside and finding[0] != "unsaid")
                getattr(self, f"_{finding[0]}")(*finding[1:])
            self._marks()
        except Wrong as wrong:
            return str(wrong)
        return ""

    def _subjects(self) -> None:
        for finding in self.findings:
            if finding[0] == "subject":
                _, k, bits, plural = finding
                self.subjects[k] = (self._who(bits), bool(plural))  # type: ignore[arg-type,index]

    def _who(self, bits: int) -> int:
        """Whom a name or pronoun means here."""
        if bits not in SEX.values():
            return bits
        meant = bits & (self.context.now | self.context.before)
        if not meant:
            raise Wrong("nobody was named whom the pronoun can mean")
        self.resolved |= meant
        return meant

    def _subject(self, k: int, bits: int, plural: bool) -> None:
        pass  # taken before all else, for a verb may come first

    def _again(self, k: int, bits: int, plural: bool) -> None:
        if k not in self.subjects:
            self._who(bits)
            return
        who, many = self.subjects[k]
        if many != plural or not who & bits:
            raise Wrong("the pronoun does not fit the subject")

    def _other(self, bits: int) -> None:
        self._who(bits)

    def _verb(self, k: int, phrase: Phrase, number: str) -> None:
        if self.inside:
            plural = SPEECH_NUMBER[self.kind] == "p"
            who = EVERYONE if plural else self._speaker()
        else:
            who, plural = self.subjects.get(k) or self.subjects.get(1) or (EVERYONE, False)
        if number and number != ("p" if plural else "s"):
            raise Wrong("subject and verb do not agree")
        if not who & phrase.subjects:
            raise Wrong(f"false: {' and '.join(names_in(who))} cannot {phrase.text.replace('*', '')}")
        self.agent = (who, plural)

    def _speaker(self) -> int:
        return self.subjects[1][0] if self.spoken and 1 in self.subjects else EVERYONE

    def _own(self, word: str) -> None:
        if self.inside and self.kind:
            if word not in SPEECH_OWN[self.kind]:
                raise Wrong(f"{word!r} does not fit the one who speaks")
            return
        who, plural = self.agent
        if isinstance(self.topic, int) and self.topic != EVERYONE:
            who, plural = self.topic, False
        has_required_forms = (
            word in ("their", "them") if plural else bool(who & SEX[_OWN_SEX[word]]) if word in _OWN_SEX else False
        )
        if not has_required_forms:
            raise Wrong(f"{word!r} does not fit its owner")

    def _owner(self, noun: str, who: object) -> None:
        owner = BIT[world.THINGS[noun].owner]
        mine = owner
        if isinstance(who, int):
            mine = who
        elif who in ("his", "her"):
            mine = SEX[_OWN_SEX[str(who)]]
        elif who == "my":
            mine = self._speaker()
        if not mine & owner:
            raise Wrong(f"false: the {noun} belongs to {world.THINGS[noun].owner}")

    def _bad(self, reason: str) -> None:
        raise Wrong(reason)

    def _saying(self, mark: str) -> None:
        self.verb_mark = "." if mark == "," else mark

    def _said(self, kind: str, mark: str, end: int) -> None:
        self.kind, self.mark = kind, mark
        self.topic = self.value = None
        self.asked = False
        closes = mark == "." and self.words[end + 1 : end + 2] == ["”"]
        if closes and (self.words[end] == ",") != (end + 2 < len(self.words)):
            raise Wrong("wrong mark at the end of what is said")

    def _unsaid(self) -> None:
        self.kind, self.topic, self.value = "", None, None

    def _question(self) -> None:
        if self.mark != "?":
            raise Wrong("a question without its mark")
        self.asked = True

    def _marks(self) -> None:
        if self.spoken and self.verb_mark != self.mark:
            raise Wrong("the verb of saying does not fit what is said")

    def _about(self, about: object) -> None:
        self.topic = self._who(about) if isinstance(about, int) else about
        if self.value:
            self._true()

    def _value(self, relation: str, value: str) -> None:
        self.value = (relation, value)
        if self.topic is not None:
            self._true()

    def _true(self) -> None:
        assert self.value, "a truth is judged when a value was found"
        relation, value = self.value
        values = RELATIONS[relation].values
        if isinstance(self.topic, int):
            topics = names_in(self.topic)
        elif self.topic == "it":
            topics = sorted(self.context.things | self.context.things_before)
        else:
            topics = [str(self.topic)]
        if not any(values.get(topic) == value for topic in topics):
            truth = values.get(topics[0], "something else") if len(topics) == 1 else "not so of any of them"
            raise Wrong(f"false: {relation} of {' or '.join(topics[:3])}: {truth}, not {value}")
        if isinstance(self.topic, int):
            self.agent = (self.topic, False)  # "who had a bowl of his own"
        self.topic = self.value = None
