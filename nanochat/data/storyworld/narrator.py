"""Narrator: turns the items of compiled patterns into the words of a document (phrases, clauses, facts, speech).

For example:

    JOINS line "same: after V1.ger , N1 V2.past ."  with clauses (Mia, "*walk home") and (Mia, "*be [tired]")
    ->  "After walking home, Mia was sleepy."
"""

from dataclasses import dataclass

from nanochat.data.storyworld.grammar import CHOICE_ITEMS, SORTS, Item, Pattern, Phrase, compile_pattern, members
from nanochat.data.storyworld.lexicon import CHOICES
from nanochat.data.storyworld.mentions import HIM, HIS, MentionTracker
from nanochat.data.storyworld.relations import RELATIONS
from nanochat.data.storyworld.sentences import JOINS, SPEECH, WRAPS
from nanochat.data.storyworld.world import CHARACTERS

FactPattern = tuple[str, str, Pattern]  # (relation, subject, a pattern that states it or asks for it)
MarkedPattern = tuple[bool, Pattern]  # (needs a deliberate first clause, pattern)
ASIDE_RELATIONS = ("home", "trait", "food", "hobby", "fear", "look", "thing", "friend")
# Verbs of saying by the mark of the speech; "," is for a reply that ends in a full stop.
SPEECH_VERBS = {".": CHOICES["said"], ",": CHOICES["replied"], "?": CHOICES["asked"], "!": CHOICES["cried"]}
SOFT_MANNERS = {("cat", "softly"), ("cat", "kindly")}  # do not go with questions and exclamations
EMPTY_PHRASE = Phrase("*be", {}, 0)


@dataclass(frozen=True)
class BoundClause:
    """A clause with its roles filled in: the names of its subjects, and one phrase."""

    agents: tuple[str, ...]
    phrase: Phrase


@dataclass(frozen=True)
class SpokenSentence:
    """One sentence of a speech, without its closing `mark`; `agents`, `clause` and `fact` fill in its items."""

    items: Pattern
    mark: str
    agents: tuple[str, ...] = ()
    clause: BoundClause | None = None
    fact: FactPattern | None = None


def _compile_by_kind(table: str) -> dict[str, tuple[MarkedPattern, ...]]:
    """Compile a table of lines `kind: pattern` or `kind: + pattern`; `+` needs a deliberate first clause."""
    patterns: dict[str, list[MarkedPattern]] = {}
    for line in table.strip().splitlines():
        kind, _, text = line.partition(": ")
        patterns.setdefault(kind, []).append((text.startswith("+ "), compile_pattern(text.removeprefix("+ "), {})))
    return {kind: tuple(of_kind) for kind, of_kind in patterns.items()}


JOIN_PATTERNS = _compile_by_kind(JOINS)
SPEECH_PATTERNS = _compile_by_kind(SPEECH)
WRAP_PATTERNS = _compile_by_kind(WRAPS)


def has_required_forms(pattern: Pattern, clauses: tuple[BoundClause, ...]) -> bool:
    """Return True if the verbs of the clauses are used in the forms that the pattern requires."""
    for item in pattern:
        if item[0] in "vc":
            phrase = clauses[item[1] - 1].phrase
            form = item[2]
            if (form == "ger" and not phrase.has_gerund) or (form in ("part", "perf") and not phrase.has_perfect):
                return False
    return True


class Narrator(MentionTracker):
    """Writes one document: each `emit_` method appends the words of one kind of item."""

    # --- sentences

    def tell_clauses(self, clauses: tuple[BoundClause, ...], join: str) -> None:
        """Write one or two clauses, joined by a pattern of `join`, as one or two sentences."""
        is_first = not self.has_begun
        self.is_reply = False
        self.has_begun = True
        self.begin_sentence()
        while True:
            needs_deliberate, pattern = self.choose(JOIN_PATTERNS[join])
            if is_first and pattern[0] == ("cat", "next"):  # nothing precedes that "then" could follow
                continue
            if not has_required_forms(pattern, clauses):
                continue
            if not needs_deliberate or (clauses[0].phrase.is_deliberate and clauses[0].agents):
                return self.emit(pattern, (), clauses)

    def tell_speech(self, speaker: str, hearer: str, speech: list[SpokenSentence]) -> None:
        """Write a speech of one character to another, wrapped into one sentence or two."""
        self.begin_sentence()
        num_quotes = "2" if len(speech) > 1 and self.random() < 0.6 else "1"
        _, pattern = self.choose(WRAP_PATTERNS[num_quotes])
        while speech[0].mark != "." and not SOFT_MANNERS.isdisjoint(pattern):
            _, pattern = self.choose(WRAP_PATTERNS[num_quotes])
        quotes = {1: speech[:1], 2: speech[1:]} if ("q", 2) in pattern else {1: speech, 2: []}
        speaker_clause = BoundClause((speaker,), EMPTY_PHRASE)
        for position, item in enumerate(pattern):
            tag = item[0]
            if tag == "q":
                ends_sentence = position + 2 >= len(pattern) or pattern[position + 2] == ("w", ".") or item[1] == 2
                self.emit_quote(speaker, hearer, quotes[item[1]], ends_sentence)
            elif tag == "s":
                mark = speech[0 if quotes[2] else -1].mark
                self.say(self.choose(SPEECH_VERBS["," if mark == "." and self.is_reply else mark]))
            elif tag == "m":
                self.emit_character(hearer, "him")
            elif tag == "n":
                self.emit_subject((speaker,), allow_aside=False, allow_pronoun=pattern[position - 1][0] != "s")
            else:
                self.emit((item,), (), (speaker_clause,))
        self.is_reply = True

    # --- items

    def emit(
        self,
        items: Pattern,
        agents: tuple[str, ...] = (),
        clauses: tuple[BoundClause, ...] = (),
        fact: FactPattern | None = None,
    ) -> None:
        """Write the items of a pattern.

        `agents` are the subjects if it is a verb phrase; `clauses` and `fact` fill in the parts N1, V1, C1, F1.
        """
        for item in items:
            tag = item[0]
            if tag == "w":
                self.say(item[1])
                if item[1] in ".!?" and not self.in_quote:
                    self.begin_sentence()
            elif tag == "cat":
                self.emit(self.choose(CHOICE_ITEMS[item[1]]))
            elif tag == "slot":
                self.emit_slot(item, agents)
            elif tag == "n":
                self.emit_subject(clauses[item[1] - 1].agents)
            elif tag == "h":
                self.emit_pronoun(clauses[item[1] - 1].agents)
            elif tag == "v":
                self.emit_verb(clauses[item[1] - 1], item[2])
            elif tag == "c":
                self.emit_clause(clauses[item[1] - 1], item[2])
            elif tag == "f" and fact:
                self.emit_fact(*fact)

    def emit_subject(self, names: tuple[str, ...], allow_aside: bool = True, allow_pronoun: bool = True) -> None:
        """Write the subject of a clause, sometimes with an aside: a relative clause that states a fact."""
        if len(names) == 1:
            start = len(self.words)
            self.emit_character(names[0], allow_pronoun=allow_pronoun)
            may_add_aside = allow_aside and not self.in_quote and self.words[start].lower() not in ("he", "she")
            if may_add_aside and self.random() < 0.07:
                self.emit_aside(names[0])
            return
        if self.pair == names and self.random() < 0.7:
            self.say("they")
        elif self.known.issuperset(names) and self.random() < 0.25:
            for word in self.choose((("the", "two", "friends"), ("the", "two", "of", "them"), ("both", "of", "them"))):
                self.say(word)
        else:
            self.emit_character(names[0])
            self.say("and")
            self.emit_character(names[1], by_name=True)
        self.current.update(names)
        self.pair = names

    def emit_aside(self, name: str) -> None:
        """Write a relative clause about a character, unless its fact was stated before in the document."""
        relation = RELATIONS[self.choose(ASIDE_RELATIONS)]
        if (relation.name, name) not in self.stated:
            self.say(",")
            self.say("who")
            self.emit_fact(relation.name, name, self.choose(relation.tails[self.tense]))
            self.say(",")

    def emit_verb(self, clause: BoundClause, form: str) -> None:
        """Write the verb phrase of a clause in a form."""
        is_plural = len(clause.agents) > 1 or (self.in_quote and clause.agents != (self.speaker,))
        self.emit(clause.phrase.forms["pastp" if form == "past" and is_plural else form], clause.agents)

    def emit_clause(self, clause: BoundClause, form: str) -> None:
        """Write a whole clause in the past, or with form "perf" in the past perfect."""
        if clause.agents:
            self.emit_subject(clause.agents)
        self.emit_verb(clause, form)

    def emit_slot(self, item: Item, agents: tuple[str, ...]) -> None:
        """Write the value of a slot's role in the wording of its mode; `agents` are the subjects of the phrase."""
        _, role, kind, mode = item
        if mode.startswith("own"):
            return self.emit_possessive(agents, mode)
        if kind.startswith("value:"):
            return self.emit_value(self.roles[role])
        if mode == "he":
            return self.emit_pronoun((self.roles[role],))
        value = self.roles.get(role) or self.fill_role(role, kind)
        sort = SORTS.get(kind, "word")
        if sort == "char":
            case = {"sub": "he", "his": "his", "plain": "he"}.get(mode, "him")
            return self.emit_character(value, case, by_name=mode in ("name", "plain"))
        if sort == "thing":
            return self.emit_thing(value, agents)
        if sort == "place":
            return self.emit_place(value, mode)
        return self.emit_noun(value, mode) if sort == "noun" else self.say(value)

    def fill_role(self, role: str, kind: str) -> str:
        """Choose and return a value for a role that the plan left open."""
        self.roles[role] = self.choose(members(kind))
        return self.roles[role]

    def emit_possessive(self, agents: tuple[str, ...], mode: str) -> None:
        """Write a word that refers to the subjects: "his", "their", in speech "my", "our".

        With mode "own_him" it is the object form: "him", "them", in speech "me", "us".
        """
        is_object = mode == "own_him"
        is_plural = len(agents) > 1
        if self.in_quote and self.speaker in agents:
            if is_object:
                self.say("us" if is_plural else "me")
            else:
                self.say("our" if is_plural else "my")
        elif self.in_quote and self.hearer in agents:
            self.say("you" if is_object else "your")
        elif is_plural:
            self.say("them" if is_object else "their")
        else:
            self.say((HIM if is_object else HIS)[CHARACTERS[agents[0]].sex])

    def emit_value(self, phrase: str) -> None:
        """Write the value of a fact, which may be the name of a character."""
        if phrase in CHARACTERS:
            self.mention(phrase)
        self.say(phrase)

    def emit_fact(self, relation: str, subject: str, pattern: Pattern) -> None:
        """State or ask for the `relation` of `subject` by one of the relation's patterns."""
        outer_subject, outer_value = self.roles.get("A"), self.roles.get("v")
        self.roles["A"] = subject
        self.roles["v"] = RELATIONS[relation].values[subject]
        self.stated.add((relation, subject))
        self.hide_color = relation == "color"  # "the red kite is red"
        self.emit(pattern, (subject,))
        self.hide_color = False
        self.roles["A"] = outer_subject or ""
        self.roles["v"] = outer_value or ""

    def emit_quote(self, speaker: str, hearer: str, speech: list[SpokenSentence], ends_sentence: bool) -> None:
        """Write the words between quotation marks; a final full stop becomes a comma if the sentence goes on."""
        self.speaker = speaker
        self.hearer = hearer
        self.in_quote = True
        for sentence in speech:
            self.capitalize_next = True
            self.emit(sentence.items, sentence.agents, (sentence.clause,) if sentence.clause else (), sentence.fact)
            is_comma = sentence is speech[-1] and sentence.mark == "." and not ends_sentence
            self.say("," if is_comma else sentence.mark)
        self.in_quote = False
        self.capitalize_next = False
