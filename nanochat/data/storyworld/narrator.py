"""Puts grammar items into words: phrases, clauses, facts, speech. One `Voice` tells one document."""

from dataclasses import dataclass

from nanochat.data.storyworld.grammar import CHOICE_ITEMS, SORTS, Item, Phrase, compile_pattern, members
from nanochat.data.storyworld.lexicon import CHOICES
from nanochat.data.storyworld.mentions import HIM, HIS, MentionTracker
from nanochat.data.storyworld.relations import RELATIONS
from nanochat.data.storyworld.sentences import JOINS, SPEECH, WRAPS
from nanochat.data.storyworld.world import CHARACTERS

FactPattern = tuple[str, str, tuple[Item, ...]]  # relation, subject, the pattern that states it or asks for it
ASIDES = ("home", "trait", "food", "hobby", "fear", "look", "thing", "friend")
SPEECH_VERBS = {mark: CHOICES[name] for mark, name in ((".", "said"), (",", "replied"), ("?", "asked"), ("!", "cried"))}
SOFT_MANNERS = {("cat", "softly"), ("cat", "kindly")}
EMPTY_PHRASE = Phrase("*be", {}, 0)


@dataclass(frozen=True)
class BoundClause:
    """A clause whose roles are filled in: its subjects by name and one phrase."""

    agents: tuple[str, ...]
    phrase: Phrase


@dataclass(frozen=True)
class SpokenSentence:
    """One sentence of a speech, to be worded with `roles` of the plot; `mark` closes it."""

    items: tuple[Item, ...]
    mark: str
    agents: tuple[str, ...] = ()
    clause: BoundClause | None = None
    fact: FactPattern | None = None


def _by_kind(table: str) -> dict[str, tuple[tuple[bool, tuple[Item, ...]], ...]]:
    kinds: dict[str, list[tuple[bool, tuple[Item, ...]]]] = {}
    for line in table.strip().splitlines():
        kind, _, pattern = line.partition(": ")
        kinds.setdefault(kind, []).append((pattern.startswith("+ "), compile_pattern(pattern.removeprefix("+ "), {})))
    return {kind: tuple(patterns) for kind, patterns in kinds.items()}


JOIN_PATTERNS = _by_kind(JOINS)
SPEECH_PATTERNS = _by_kind(SPEECH)
WRAP_PATTERNS = _by_kind(WRAPS)


def has_required_forms(pattern: tuple[Item, ...], clauses: tuple[BoundClause, ...]) -> bool:
    """Whether the clauses' verbs are used in the forms that a pattern wants."""
    for item in pattern:
        if item[0] in "vc":
            phrase = clauses[item[1] - 1].phrase
            if (item[2] == "ger" and not phrase.gerund) or (item[2] in ("part", "perf") and not phrase.perfect):
                return False
    return True


class Narrator(MentionTracker):
    """Tells a document."""

    def subject(self, names: tuple[str, ...], described: bool = True, pronoun: bool = True) -> None:
        """The subject of a clause, at times with a relative clause that says something true."""
        if len(names) == 1:
            before = len(self.words)
            self.character(names[0], pronoun=pronoun)
            if (
                described
                and not self.inside
                and self.words[before].lower() not in ("he", "she")
                and self.random() < 0.07
            ):
                self.aside(names[0])
            return
        if self.pair == names and self.random() < 0.7:
            self.say("they")
        elif self.known.issuperset(names) and self.random() < 0.25:
            for word in self.choose((("the", "two", "friends"), ("the", "two", "of", "them"), ("both", "of", "them"))):
                self.say(word)
        else:
            self.character(names[0])
            self.say("and")
            self.character(names[1], plain=True)
        self.current.update(names)
        self.pair = names

    def aside(self, name: str) -> None:
        """A relative clause that says something true of a character, not said before in this document."""
        relation = RELATIONS[self.choose(ASIDES)]
        if (relation.name, name) not in self.stated:
            self.say(",")
            self.say("who")
            self.fact(relation.name, name, self.choose(relation.tails[self.tense]))
            self.say(",")

    def emit(
        self,
        items: tuple[Item, ...],
        agents: tuple[str, ...] = (),
        clauses: tuple[BoundClause, ...] = (),
        fact: FactPattern | None = None,
    ) -> None:
        """Word a pattern; `agents` are the subjects of the phrase it is, `clauses` and `fact` what its parts mean."""
        for item in items:
            tag = item[0]
            if tag == "w":
                self.say(item[1])
                if item[1] in ".!?" and not self.inside:
                    self.begin()
            elif tag == "cat":
                self.emit(self.choose(CHOICE_ITEMS[item[1]]))
            elif tag == "slot":
                self.slot(item, agents)
            elif tag == "n":
                self.subject(clauses[item[1] - 1].agents)
            elif tag == "h":
                self.pronoun(clauses[item[1] - 1].agents)
            elif tag == "v":
                self.verb(clauses[item[1] - 1], item[2])
            elif tag == "c":
                self.clause(clauses[item[1] - 1], item[2])
            elif tag == "f" and fact:
                self.fact(*fact)

    def verb(self, told: BoundClause, form: str) -> None:
        """The verb phrase of a clause in one of its forms."""
        plural = len(told.agents) > 1 or (self.inside and told.agents != (self.speaker,))
        self.emit(told.phrase.forms["pastp" if form == "past" and plural else form], told.agents)

    def clause(self, told: BoundClause, form: str) -> None:
        """A whole clause in the past, or with form "perf" in the past perfect."""
        if told.agents:
            self.subject(told.agents)
        self.verb(told, form)

    def slot(self, item: Item, agents: tuple[str, ...]) -> None:
        """Word a slot."""
        _, role, kind, mode = item
        if mode.startswith("own"):
            return self.own(agents, mode)
        if kind.startswith("value:"):
            return self.value(self.roles[role])
        if mode == "he":
            return self.pronoun((self.roles[role],))
        value = self.roles.get(role) or self.fill(role, kind)
        sort = SORTS.get(kind, "word")
        if sort == "char":
            return self.character(
                value,
                {"sub": "he", "his": "his"}.get(mode, "he" if mode == "plain" else "him"),
                mode in ("name", "plain"),
            )
        if sort == "thing":
            return self.thing(value, agents)
        if sort == "place":
            return self.place(value, mode)
        return self.noun(value, mode) if sort == "noun" else self.say(value)

    def fill(self, role: str, kind: str) -> str:
        """Choose a value for a role that the plan left open."""
        self.roles[role] = self.choose(members(kind))
        return self.roles[role]

    def own(self, agents: tuple[str, ...], mode: str) -> None:
        """The subject's own: "his", "their", in speech "my", "our"; with mode "own_him" "him", "them", "me"."""
        words = HIM if mode == "own_him" else HIS
        if self.inside and self.speaker in agents:
            self.say(("us" if len(agents) > 1 else "me") if words is HIM else "our" if len(agents) > 1 else "my")
        elif self.inside and self.hearer in agents:
            self.say("you" if words is HIM else "your")
        elif len(agents) > 1:
            self.say("them" if words is HIM else "their")
        else:
            self.say(words[CHARACTERS[agents[0]].sex])

    def value(self, phrase: str) -> None:
        """The value of a fact; it may name a character."""
        if phrase in CHARACTERS:
            self.mention(phrase)
        self.say(phrase)

    def fact(self, relation: str, subject: str, pattern: tuple[Item, ...]) -> None:
        """State or ask about the `relation` of `subject` in the words of one of its patterns."""
        kept = self.roles.get("A"), self.roles.get("v")
        self.roles["A"], self.roles["v"] = subject, RELATIONS[relation].values[subject]
        self.stated.add((relation, subject))
        self.hide_color = relation == "color"
        self.emit(pattern, (subject,))
        self.hide_color = False
        self.roles["A"], self.roles["v"] = kept[0] or "", kept[1] or ""

    def tell_clauses(self, clauses: tuple[BoundClause, ...], join: str) -> None:
        """One or two clauses, joined in one of the ways of `join`, as one or two sentences."""
        first, self.replying = not self.known_story, False
        self.plain = False  # name everyone and everything in full
        self.tense = "past"  # of what is said by the way
        self.hide_color = False
        self.known_story = True
        self.begin()
        while True:
            on_purpose, pattern = self.choose(JOIN_PATTERNS[join])
            if first and pattern[0] == ("cat", "next"):
                continue
            if not has_required_forms(pattern, clauses):
                continue
            if not on_purpose or (clauses[0].phrase.on_purpose and clauses[0].agents):
                return self.emit(pattern, (), clauses)

    def tell_speech(self, speaker: str, hearer: str, said: list[SpokenSentence]) -> None:
        """What one character says to another, wrapped into a sentence or two."""
        self.begin()
        kind = "2" if len(said) > 1 and self.random() < 0.6 else "1"
        _, pattern = self.choose(WRAP_PATTERNS[kind])
        while said[0].mark != "." and not SOFT_MANNERS.isdisjoint(pattern):
            _, pattern = self.choose(WRAP_PATTERNS[kind])
        parts = {1: said, 2: []} if ("q", 2) not in pattern else {1: said[:1], 2: said[1:]}
        teller = BoundClause((speaker,), EMPTY_PHRASE)
        for place, item in enumerate(pattern):
            if item[0] == "q":
                last = place + 2 >= len(pattern) or pattern[place + 2] == ("w", ".") or item[1] == 2
                self.quote(speaker, hearer, parts[item[1]], last)
            elif item[0] == "s":
                mark = said[0 if parts[2] else -1].mark
                self.say(self.choose(SPEECH_VERBS["," if mark == "." and self.replying else mark]))
            elif item[0] == "m":
                self.character(hearer, "him")
            elif item[0] == "n":
                self.subject((speaker,), described=False, pronoun=pattern[place - 1][0] != "s")
            else:
                self.emit((item,), (), (teller,))
        self.replying = True

    def quote(self, speaker: str, hearer: str, said: list[SpokenSentence], last: bool) -> None:
        """The words between quotation marks; a closing full stop is a comma unless it is the `last` of the sentence."""
        self.speaker, self.hearer, self.inside = speaker, hearer, True
        for sentence in said:
            self.cap = True
            self.emit(sentence.items, sentence.agents, (sentence.clause,) if sentence.clause else (), sentence.fact)
            self.say("," if sentence is said[-1] and sentence.mark == "." and not last else sentence.mark)
        self.inside = self.cap = False
