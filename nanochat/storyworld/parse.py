"""Reads a sentence by the same grammar that writes: a memoised top-down parser over words.

A parse is a tuple of findings, small tuples that check.py judges:
    ("subject", k, names as bits, plural)  ("verb", k, phrase, number)  ("own", word)  ("bad", reason)
    ("again", k, bits, plural) a pronoun for the subject   ("other", bits)   ("owner", thing, who)   ("saying", mark)
    ("said", kind, mark, end) ... ("unsaid",)   ("question",)   ("about", bits or word)   ("value", relation, value)
"""

import re
from collections import defaultdict
from functools import lru_cache

from nanochat.storyworld import documents, script, sentences, voice, world
from nanochat.storyworld.grammar import (
    BIT,
    CHARACTER_CLASSES,
    CHOICE_ITEMS,
    EVERYONE,
    NAMES,
    SEX,
    SORTS,
    Item,
    Phrase,
    compile_pattern,
    members,
)
from nanochat.storyworld.lexicon import CHOICES, NOUNS
from nanochat.storyworld.relations import RELATIONS

Finding = tuple[object, ...]
Parse = tuple[int, tuple[Finding, ...]]  # where it ends, what was found
Pattern = tuple[Item, ...]
MOST_PARSES = 24  # of one stretch of words; more are the same in other wording
SPEECH_NUMBER = {"plan": "p", "did": "p", "can": "p", "past": "s", "will": "s"}
SPEECH_OWN = {"plan": {"our", "us"}, "did": {"your", "you"}, "can": {"your", "you"}, "past": {"my", "me"}, "will": {"my", "me"}}
OWN = {"own": ("his", "her", "their", "my", "your", "our"), "own_him": ("him", "her", "them", "me", "you", "us")}
_WORD_KINDS: dict[str, tuple[str, ...]] = {
    "weather": tuple(word for words in sentences.WEATHER.values() for word in words),
    "season": sentences.SEASONS,
    "daypart": sentences.PARTS_OF_DAY,
    "day": tuple(world.DAYS),
    "species": tuple(world.SOUNDS),
    "trade": tuple(world.WORK),
    "foodstuff": tuple(world.TASTES),
    "word": tuple(world.OPPOSITES),
    "happening": tuple(world.SEASON_OF),
    "tool": tuple(world.TOOL_USES),
}


def split_sentences(pattern: Pattern) -> list[Pattern]:
    """The sentences of a pattern that may hold several, each with its closing mark."""
    parts: list[list[Item]] = [[]]
    for item in pattern:
        parts[-1].append(item)
        if item in (("w", "."), ("w", "!"), ("w", "?")):
            parts.append([])
    return [tuple(part) for part in parts if part]


@lru_cache(maxsize=1)
def sentence_patterns() -> tuple[Pattern, ...]:
    """Every pattern of a whole narrative sentence."""
    tables = [pattern for kind in (voice.JOIN_PATTERNS, voice.WRAP_PATTERNS) for rows in kind.values() for _, pattern in rows]
    tables += documents.lines(sentences.OPENINGS) + documents.lines(sentences.ENDINGS)
    for name in "HABIT_PATTERNS PORTRAITS THING_INTROS PORTRAIT_ENDS WALKS STOPS WALK_ENDS MEETINGS CLASSROOM BELLS".split():
        tables += getattr(documents, name)
    stop = (("w", "."),)
    tables += [pattern + stop for r in RELATIONS.values() for rows in r.statements.values() for pattern in rows]
    return tuple(dict.fromkeys(part for pattern in tables for part in split_sentences(pattern)))


@lru_cache(maxsize=1)
def utterance_patterns() -> tuple[tuple[Pattern, str, str], ...]:
    """Every pattern of something said: items without the closing mark, the mark, the kind of speech."""
    said = [(s.items, s.mark, "") for t in ("ANSWERS", "QUESTIONS", "CURIOUS", "PRAISE", "PARTINGS")
            for row in getattr(documents, t) for s in row]  # fmt: skip
    for step in _steps():
        said += [(u.items, u.mark, "") for u in step.utterances if not u.kind]
    for kind, rows in voice.SPEECH_PATTERNS.items():
        said += [(pattern[:-1], pattern[-1][1], kind) for _, pattern in rows]
    return tuple(dict.fromkeys(said))


def _steps() -> list[script.Step]:
    return [step for plot in script.STORY_PLOTS for beat in plot.beats for way in beat.ways for step in way]


@lru_cache(maxsize=1)
def phrases() -> tuple[tuple[Phrase, ...], tuple[Phrase, ...]]:
    """All verb phrases, and all clauses without a character for a subject."""
    found = list(documents.HABITS)
    for step in _steps():
        found += [phrase for clause in step.clauses for phrase in clause.phrases]
        found += [phrase for utterance in step.utterances for phrase in utterance.phrases]
    unique: dict[object, Phrase] = {}
    for phrase in found:
        key = (phrase.personal, tuple(item[:1] + item[2:] if item[0] == "slot" else item for item in phrase.forms["base"]))
        unique.setdefault((key, phrase.subjects), phrase)
    return tuple(p for p in unique.values() if p.personal), tuple(p for p in unique.values() if not p.personal)


Index = dict[str, list[tuple[Pattern, Phrase, str]]]  # first word ("" for a slot) -> items, phrase, number


@lru_cache(maxsize=None)
def phrase_index(personal: bool, form: str) -> Index:
    """The phrases by the first word of their form; "past" holds the plural past as well."""
    index: Index = defaultdict(list)
    for phrase in phrases()[0 if personal else 1]:
        forms = [(phrase.forms[form], "")]
        if form == "past" and phrase.forms["past"] != phrase.forms["pastp"] and personal:
            forms = [(phrase.forms["past"], "s"), (phrase.forms["pastp"], "p")]
        for items, number in forms:
            for first in first_words(items):
                index[first].append((items, phrase, number))
    return index


def first_words(items: Pattern) -> set[str]:
    """The words a pattern can begin with; "" stands for any."""
    if items[0][0] == "w":
        return {items[0][1]}
    if items[0][0] != "cat":
        return {""}
    firsts: set[str] = set()
    for option in CHOICE_ITEMS[items[0][1]]:
        firsts |= first_words(option or items[1:])
    return firsts


def _by_first(patterns: tuple[Pattern, ...]) -> dict[str, list[Pattern]]:
    index: dict[str, list[Pattern]] = defaultdict(list)
    for pattern in patterns:
        for first in first_words(pattern):
            index[first].append(pattern)
    return index


@lru_cache(maxsize=1)
def sentence_index() -> dict[str, list[Pattern]]:
    """Sentence patterns by first word."""
    return _by_first(sentence_patterns())


@lru_cache(maxsize=None)
def value_phrases(kind: str) -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """The fixed phrases of a kind of word or of a relation's values, by first word: (words, value)."""
    values = RELATIONS[kind[6:]].values.values() if kind.startswith("value:") else _WORD_KINDS[kind]
    index: dict[str, list[tuple[tuple[str, ...], str]]] = defaultdict(list)
    for value in dict.fromkeys(values):
        words = tuple("a" if word == "an" else word for word in value.split())
        index[words[0]].append((words, value))
    return index


@lru_cache(maxsize=1)
def vocabulary() -> frozenset[str]:
    """Every word that can occur (in the case in which it stands inside a sentence)."""
    words: set[str] = set("a the some his her their my your our he she they it I me you him them us and who two friends of both".split())

    def gather(items: Pattern) -> None:
        words.update(item[1] for item in items if item[0] == "w")

    for pattern in (*sentence_patterns(), *(items for items, _, _ in utterance_patterns())):
        gather(pattern)
    for group in (*phrases()[0], *phrases()[1]):
        for items in group.forms.values():
            gather(items)
    for relation in RELATIONS.values():
        for pattern in (*relation.questions, *(p for rows in relation.statements.values() for p in rows)):
            gather(pattern)
        words.update(word for pair in relation.values.items() for value in pair for word in value.split())
    for options in CHOICE_ITEMS.values():
        for items in options:
            gather(items)
    words.update(word for kinds in _WORD_KINDS.values() for value in kinds for word in value.split())
    words.update(word for noun in NOUNS.values() for word in (noun.word, *noun.adjectives))
    words.update(place.at for place in world.PLACES.values())
    return frozenset(words)


class Parser:
    """Parses one sentence, given as words in the case of the grammar, with “ and ” for quotation marks."""

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.memo: dict[object, list[Parse]] = {}
        self.furthest = 0
        self.inside = [False] * (len(words) + 1)
        for i, word in enumerate(words):
            self.inside[i + 1] = word == "“" or (self.inside[i] and word != "”")

    def sentence(self) -> list[tuple[Finding, ...]]:
        """The findings of every way to read the words as one whole sentence."""
        index, whole = sentence_index(), []
        for pattern in (*index.get(self.words[0], ()), *index[""]):
            whole += [found for end, found in self.sequence(pattern, 0) if end == len(self.words)]
        return whole

    def sequence(self, items: Pattern, start: int) -> list[Parse]:
        """All parses of a row of items."""
        states: list[Parse] = [(start, ())]
        for item in items:
            if item[0] == "w":
                word = item[1]
                states = [(i + 1, found) for i, found in states if i < len(self.words) and self.words[i] == word]
            else:
                states = [(end, found + new) for i, found in states for end, new in self.item(item, i)]
                states = list(dict.fromkeys(states))[:MOST_PARSES]
            if not states:
                return []
            self.furthest = max(self.furthest, states[-1][0])
        return states

    def item(self, item: Item, i: int) -> list[Parse]:
        """All parses of one item, remembered."""
        key = (item, i)
        if key not in self.memo:
            self.memo[key] = []  # a row that would need itself has no parse
            if i < len(self.words) or item[0] == "cat":
                self.memo[key] = list(dict.fromkeys(getattr(self, "_" + item[0])(item, i)))[:MOST_PARSES]
        return self.memo[key]

    def _cat(self, item: Item, i: int) -> list[Parse]:
        return [parse for option in CHOICE_ITEMS[item[1]] for parse in self.sequence(option, i)]

    def _n(self, item: Item, i: int) -> list[Parse]:
        k, found = item[1], []
        for end, bits in self.character(i, "he"):
            found.append((end, (("subject", k, bits, False),)))
            if self.words[end : end + 2] == [",", "who"]:
                for name in voice.ASIDES:
                    for tail in (*RELATIONS[name].tails["past"], *RELATIONS[name].tails["present"]):
                        for stop, new in self.sequence((*tail, ("w", ",")), end + 2):
                            found.append((stop, (("subject", k, bits, False), ("about", bits), *new)))
            if self.words[end : end + 1] == ["and"]:
                found += [(stop, (("subject", k, bits | more, True),)) for stop, more in self.character(end + 1, "he") if self.words[end + 1] not in ("he", "she")]
        for words in (["they"], ["the", "two", "friends"], ["the", "two", "of", "them"], ["both", "of", "them"]):
            if self.words[i : i + len(words)] == words:
                found.append((i + len(words), (("subject", k, EVERYONE, True),)))
        return found

    def _h(self, item: Item, i: int) -> list[Parse]:
        word = self.words[i]
        if word == "they":
            return [(i + 1, (("again", item[1], EVERYONE, True),))]
        return [(i + 1, (("again", item[1], self.sex(word, "he"), False),))] if self.sex(word, "he") else []

    def _v(self, item: Item, i: int) -> list[Parse]:
        index, found = phrase_index(True, item[2]), []
        for items, phrase, number in (*index.get(self.words[i], ()), *index.get("", ())):
            found += [(end, (("verb", item[1], phrase, number), *new)) for end, new in self.sequence(items, i)]
        return found

    def _c(self, item: Item, i: int) -> list[Parse]:
        _, k, form = item
        found = self.sequence((("n", k), ("v", k, form)), i)
        index = phrase_index(False, form)
        for items, _, _ in (*index.get(self.words[i], ()), *index.get("", ())):
            found += self.sequence(items, i)
        return found

    def _m(self, item: Item, i: int) -> list[Parse]:
        return [(end, (("other", bits),)) for end, bits in self.character(i, "him")]

    def _s(self, item: Item, i: int) -> list[Parse]:
        return [(i + 1, (("saying", mark),)) for mark, words in voice.SAYING.items() if self.words[i] in words]

    def _q(self, item: Item, i: int) -> list[Parse]:
        states: list[Parse] = [(i, ())]
        whole: list[Parse] = []
        for _ in range(6):
            states = [(end, found + new) for j, found in states for end, new in self.item(("utterance",), j)][:MOST_PARSES]
            whole += [parse for parse in states if self.words[parse[0] : parse[0] + 1] == ["”"]]
            states = [parse for parse in states if self.words[parse[0] - 1] != ","]
        return whole

    def _utterance(self, item: Item, i: int) -> list[Parse]:
        found = []
        for items, mark, kind in utterance_patterns():
            if items[0][0] == "w" and items[0][1] != self.words[i]:
                continue
            for end, new in self.sequence(items, i):
                if end < len(self.words) and (self.words[end] == mark or (mark, self.words[end]) == (".", ",")):
                    found.append((end + 1, (("said", kind, mark, end), *new, ("unsaid",))))
        return found

    def _f(self, item: Item, i: int) -> list[Parse]:
        found = []
        for relation in RELATIONS.values():
            for pattern in relation.statements["present"]:
                found += self.sequence(pattern, i)
            for pattern in relation.questions:
                found += [(end, (("question",),)) for end, _ in self.sequence(pattern, i)]
        return found

    def _slot(self, item: Item, i: int) -> list[Parse]:
        _, role, kind, mode = item
        word = self.words[i]
        if mode.startswith("own"):
            return [(i + 1, (("own", word),))] if word in OWN["own_him" if mode == "own_him" else "own"] else []
        if mode == "he":
            return [(i + 1, (("other", self.sex(word, "he")),))] if self.sex(word, "he") else []
        if kind.startswith("value:") or kind in _WORD_KINDS:
            tag = ("value", kind[6:]) if kind.startswith("value:") else ("about",)
            return [(i + len(words), ((*tag, value),)) for words, value in value_phrases(kind).get(word, ())
                    if self.words[i : i + len(words)] == list(words)]  # fmt: skip
        return getattr(self, "_slot_" + SORTS[kind])(kind, mode, i, role == "A")

    def _slot_char(self, kind: str, mode: str, i: int, topic: bool) -> list[Parse]:
        case = {"sub": "he", "plain": "he", "his": "his"}.get(mode, "him")
        tag = "about" if topic else "other"
        return [(end, ((tag, bits & CHARACTER_CLASSES[kind]),)) for end, bits in self.character(i, case)
                if bits & CHARACTER_CLASSES[kind] and not (mode in ("name", "plain") and self.words[i] in ("he", "she", "him", "her"))]  # fmt: skip

    def _slot_place(self, kind: str, mode: str, i: int, topic: bool) -> list[Parse]:
        at, found = self.words[i] if mode == "at" else "", []
        i += mode == "at"
        if self.words[i : i + 1] == ["the"]:
            for name in members(kind):
                words = name.split()
                if self.words[i + 1 : i + 1 + len(words)] == words and at in ("", world.PLACES[name].at):
                    found.append((i + 1 + len(words), (("about", name),) if topic else ()))
        return found

    def _slot_noun(self, kind: str, mode: str, i: int, topic: bool) -> list[Parse]:
        words = self.words
        article, first, second = words[i], *(words[i + 1 : i + 3] + ["", ""])[:2]
        if mode == "bare":
            return [(i + 1, ())] if article in members(kind) else []
        if first in members(kind):
            return [(i + 2, ())] if article in ("the", NOUNS[first].article) else []
        if second in members(kind) and mode != "the" and article == NOUNS[second].article:
            return [(i + 3, ())] if first in NOUNS[second].adjectives else [(i + 3, (("bad", f"{second} is not said to be {first}"),))]
        return []

    def _slot_thing(self, kind: str, mode: str, i: int, topic: bool) -> list[Parse]:
        if mode == "color":
            return [(i + len(words), ()) for words, _ in value_phrases("value:color").get(self.words[i], ())
                    if self.words[i : i + len(words)] == list(words)]  # fmt: skip
        if self.words[i] == "it":
            return [(i + 1, (("about", "it"),) if topic else ())]
        found = []
        for end, owner in self._determiners(i):
            colors = [(end, "")] + [(end + len(words), color) for words, color in value_phrases("value:color").get(self.word(end), ())
                                    if self.words[end : end + len(words)] == list(words)]  # fmt: skip
            for stop, color in colors:
                noun = self.word(stop)
                if noun in members(kind):
                    new: list[Finding] = [("owner", noun, owner)]
                    if color and color != world.THINGS[noun].color:
                        new.append(("bad", f"false: the {noun} is {world.THINGS[noun].color}, not {color}"))
                    found.append((stop + 1, (*new, *((("about", noun),) if topic else ()))))
        return found

    def _determiners(self, i: int) -> list[tuple[int, object]]:
        word = self.words[i]
        found: list[tuple[int, object]] = [(i + 1, word)] if word in ("the", "his", "her") else []
        if word in ("my", "your") and self.inside[i]:
            found.append((i + 1, word))
        return found + [(end, bits) for end, bits in self.character(i, "his") if word not in ("his", "her", "my", "your")]

    def word(self, i: int) -> str:
        """The word at a position, or nothing."""
        return self.words[i] if i < len(self.words) else ""

    def sex(self, word: str, case: str) -> int:
        """Whom a pronoun in a case can mean, as bits; none if it is no such pronoun."""
        forms = {"he": voice.HE, "him": voice.HIM, "his": voice.HIS}[case]
        return next((SEX[sex] for sex in "mf" if forms[sex] == word), 0)

    def character(self, i: int, case: str) -> list[tuple[int, int]]:
        """Whom the words from `i` name in a case: (end, bits)."""
        word, tail = self.word(i), "'s" if case == "his" else ""
        if self.inside[min(i, len(self.words))] and word in {"he": ("I", "you"), "him": ("me", "you"), "his": ("my", "your")}[case]:
            return [(i + 1, EVERYONE)]
        if self.sex(word, case):
            return [(i + 1, self.sex(word, case))]
        if word == "the" and not tail and self.word(i + 1) in _KINDS:
            return [(i + 2, _KINDS[self.word(i + 1)])]
        for name in _NAMES_BY_FIRST.get(word.removesuffix("'s"), ()):
            words = (name + tail).split()
            if self.words[i : i + len(words)] == words:
                end = i + len(words)
                found = [(end, BIT[name])]
                if not tail and self.word(end) == "the" and self.word(end + 1) == world.CHARACTERS[name].kind:
                    found.append((end + 2, BIT[name]))
                return found
        return []


_KINDS = {c.kind: BIT[name] for name, c in world.CHARACTERS.items() if c.kind not in ("girl", "boy")}
_NAMES_BY_FIRST: dict[str, list[str]] = defaultdict(list)
for _name in NAMES:
    _NAMES_BY_FIRST[_name.split()[0]].append(_name)
