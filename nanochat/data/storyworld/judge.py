"""Judge: tests the findings of a parse against the world (abilities, owners of things, facts, agreement)."""

from dataclasses import dataclass, field
from itertools import pairwise

from nanochat.data.storyworld import world
from nanochat.data.storyworld.grammar import EVERYONE, NAME_BITS, NAMES, SEX_MASKS, Phrase, names_in
from nanochat.data.storyworld.parser import SPEECH_NUMBER, SPEECH_POSSESSIVES, Finding
from nanochat.data.storyworld.relations import RELATIONS

_KIND_MASKS = {character.kind: NAME_BITS[name] for name, character in world.CHARACTERS.items()}
_POSSESSIVE_SEX = {"his": "m", "him": "m", "her": "f"}


class UnsoundError(Exception):
    """Raised for a sentence that is false or not sensible; the message is the reason."""


@dataclass
class Context:
    """Characters (as masks) and things mentioned in this sentence and in the one before."""

    before: int = 0
    now: int = 0
    things_before: set[str] = field(default_factory=set)
    things: set[str] = field(default_factory=set)

    def copy(self) -> "Context":
        """Return an independent copy."""
        return Context(self.before, self.now, set(self.things_before), set(self.things))

    def step(self, words: list[str]) -> None:
        """Go on to the next sentence, given by its words."""
        self.before = self.now
        self.things_before = self.things
        self.now = 0
        self.things = set()
        text = " ".join(words).replace("'s", "") + " "
        for name in NAMES:
            if name + " " in text:
                self.now |= NAME_BITS[name]
        for word, following in pairwise(words):
            if word == "the":
                self.now |= _KIND_MASKS.get(following, 0)
        if "it" in words:
            self.things |= self.things_before
        for word in words:
            if word in world.THINGS:
                self.things.add(word)
                if "his" in words or "her" in words:
                    self.now |= NAME_BITS[world.THINGS[word].owner]


class Judge:
    """Judges one parse of a sentence: each finding by the `_judge_` method of its tag (parser.py)."""

    def __init__(self, findings: tuple[Finding, ...], words: list[str], context: Context) -> None:
        self.findings = findings
        self.words = words
        self.context = context
        self.resolved = 0  # the characters that pronouns refer to
        self.subjects: dict[int, tuple[int, bool]] = {}  # clause -> (mask, plural)
        self.agent: tuple[int, bool] = (EVERYONE, False)  # the subject of the last verb: (mask, plural)
        self.in_speech = False
        self.speech_kind = ""
        self.speech_mark = ""  # the mark that closed the last spoken sentence
        self.verb_mark = ""  # the mark that the verb of saying requires
        self.topic: object = None  # the subject of a fact: a mask or a word
        self.value: tuple[str, str] | None = None  # (relation, value)
        self.has_speech_verb = any(finding[0] == "speech_verb" for finding in findings)

    def reason(self) -> str:
        """Return the reason why the sentence is unsound, or "" if it is sound."""
        try:
            self._resolve_subjects()
            for finding in self.findings:
                self.in_speech = finding[0] == "speech" or (self.in_speech and finding[0] != "speech_end")
                getattr(self, f"_judge_{finding[0]}")(*finding[1:])
            if self.has_speech_verb and self.verb_mark != self.speech_mark:
                raise UnsoundError("the verb of saying does not fit what is said")
        except UnsoundError as error:
            return str(error)
        return ""

    def _resolve_subjects(self) -> None:
        """Resolve the subjects first: a verb may precede its subject."""
        for finding in self.findings:
            if finding[0] == "subject":
                _, k, mask, plural = finding
                self.subjects[k] = (self._resolve(mask), bool(plural))  # type: ignore[arg-type,index]

    def _resolve(self, mask: int) -> int:
        """Return the characters that a name or pronoun refers to here."""
        if mask not in SEX_MASKS.values():
            return mask
        referents = mask & (self.context.now | self.context.before)
        if not referents:
            raise UnsoundError("no character was mentioned that the pronoun can refer to")
        self.resolved |= referents
        return referents

    def _judge_subject(self, k: int, mask: int, plural: bool) -> None:
        pass  # done by `_resolve_subjects`

    def _judge_pronoun(self, k: int, mask: int, plural: bool) -> None:
        if k not in self.subjects:
            self._resolve(mask)
            return
        subject, subject_plural = self.subjects[k]
        if subject_plural != plural or not subject & mask:
            raise UnsoundError("the pronoun does not fit the subject")

    def _judge_other(self, mask: int) -> None:
        self._resolve(mask)

    def _judge_verb(self, k: int, phrase: Phrase, number: str) -> None:
        if self.in_speech:
            plural = SPEECH_NUMBER[self.speech_kind] == "p"
            subject = EVERYONE if plural else self._speaker()
        else:
            subject, plural = self.subjects.get(k) or self.subjects.get(1) or (EVERYONE, False)
        if number and number != ("p" if plural else "s"):
            raise UnsoundError("subject and verb do not agree")
        if not subject & phrase.subjects:
            action = phrase.text.replace("*", "")
            raise UnsoundError(f"false: {' and '.join(names_in(subject))} cannot {action}")
        self.agent = (subject, plural)

    def _speaker(self) -> int:
        return self.subjects[1][0] if self.has_speech_verb and 1 in self.subjects else EVERYONE

    def _judge_possessive(self, word: str) -> None:
        if self.in_speech and self.speech_kind:
            if word not in SPEECH_POSSESSIVES[self.speech_kind]:
                raise UnsoundError(f"{word!r} does not fit the one who speaks")
            return
        owner, plural = self.agent
        if isinstance(self.topic, int) and self.topic != EVERYONE:
            owner, plural = self.topic, False
        if plural:
            is_fitting = word in ("their", "them")
        else:
            is_fitting = word in _POSSESSIVE_SEX and bool(owner & SEX_MASKS[_POSSESSIVE_SEX[word]])
        if not is_fitting:
            raise UnsoundError(f"{word!r} does not fit its owner")

    def _judge_owner(self, noun: str, determiner: object) -> None:
        true_owner = NAME_BITS[world.THINGS[noun].owner]
        owner = true_owner
        if isinstance(determiner, int):
            owner = determiner
        elif determiner in ("his", "her"):
            owner = SEX_MASKS[_POSSESSIVE_SEX[str(determiner)]]
        elif determiner == "my":
            owner = self._speaker()
        if not owner & true_owner:
            raise UnsoundError(f"false: the {noun} belongs to {world.THINGS[noun].owner}")

    def _judge_bad(self, reason: str) -> None:
        raise UnsoundError(reason)

    def _judge_speech_verb(self, mark: str) -> None:
        self.verb_mark = "." if mark == "," else mark

    def _judge_speech(self, kind: str, mark: str, end: int) -> None:
        self.speech_kind = kind
        self.speech_mark = mark
        self.topic = None
        self.value = None
        closes_quote = mark == "." and self.words[end + 1 : end + 2] == ["”"]
        sentence_goes_on = end + 2 < len(self.words)
        if closes_quote and (self.words[end] == ",") != sentence_goes_on:
            raise UnsoundError("wrong mark at the end of what is said")

    def _judge_speech_end(self) -> None:
        self.speech_kind = ""
        self.topic = None
        self.value = None

    def _judge_question(self) -> None:
        if self.speech_mark != "?":
            raise UnsoundError("a question without its mark")

    def _judge_about(self, topic: object) -> None:
        self.topic = self._resolve(topic) if isinstance(topic, int) else topic
        if self.value:
            self._judge_fact()

    def _judge_value(self, relation: str, value: str) -> None:
        self.value = (relation, value)
        if self.topic is not None:
            self._judge_fact()

    def _judge_fact(self) -> None:
        """Test the value of the relation for the topic; a topic that is ambiguous may have any of its readings."""
        assert self.value, "a fact is judged when its value was found"
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
            raise UnsoundError(f"false: {relation} of {' or '.join(topics[:3])}: {truth}, not {value}")
        if isinstance(self.topic, int):
            self.agent = (self.topic, False)  # "who had a bowl of his own"
        self.topic = None
        self.value = None
