"""Reads a sentence by the same grammar that writes: a memoised top-down parser over words.

A parse is a tuple of findings, small tuples that check.py judges:
    ("subject", k, names as bits, plural)  ("verb", k, phrase, number)  ("own", word)  ("bad", reason)
    ("again", k, bits, plural) a pronoun for the subject   ("other", bits)   ("owner", thing, who)   ("saying", mark)
    ("said", kind, mark, end) ... ("unsaid",)   ("question",)   ("about", bits or word)   ("value", relation, value)
"""

from collections import defaultdict

from nanochat.data.storyworld import narrator, world
from nanochat.data.storyworld.grammar import (
    BIT,
    CHARACTER_CLASSES,
    CHOICE_ITEMS,
    EVERYONE,
    NAMES,
    SEX,
    SORTS,
    Item,
    members,
)
from nanochat.data.storyworld.lexicon import NOUNS
from nanochat.data.storyworld.mentions import HE, HIM, HIS
from nanochat.data.storyworld.patterns import (
    WORD_KINDS,
    Pattern,
    phrase_index,
    sentence_index,
    utterance_patterns,
    value_phrases,
)
from nanochat.data.storyworld.relations import RELATIONS

Finding = tuple[object, ...]
Parse = tuple[int, tuple[Finding, ...]]  # where it ends, what was found
MOST_PARSES = 24  # of one stretch of words; more are the same in other wording
SPEECH_NUMBER = {"plan": "p", "did": "p", "can": "p", "past": "s", "will": "s"}
SPEECH_OWN = {
    "plan": {"our", "us"},
    "did": {"your", "you"},
    "can": {"your", "you"},
    "past": {"my", "me"},
    "will": {"my", "me"},
}
OWN = {"own": ("his", "her", "their", "my", "your", "our"), "own_him": ("him", "her", "them", "me", "you", "us")}
_KINDS = {c.kind: BIT[name] for name, c in world.CHARACTERS.items() if c.kind not in ("girl", "boy")}
_NAMES_BY_FIRST: dict[str, list[str]] = defaultdict(list)
for _name in NAMES:
    _NAMES_BY_FIRST[_name.split()[0]].append(_name)

_PRONOUNS = ("he", "she", "him", "her")
_SPEAKERS = {"he": ("I", "you"), "him": ("me", "you"), "his": ("my", "your")}


def _about(topic: bool, name: str) -> tuple[Finding, ...]:
    return (("about", name),) if topic else ()


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
        k = item[1]
        found: list[Parse] = []
        for end, bits in self.character(i, "he"):
            found.append((end, (("subject", k, bits, False),)))
            if self.words[end : end + 2] == [",", "who"]:
                for name in narrator.ASIDES:
                    for tail in (*RELATIONS[name].tails["past"], *RELATIONS[name].tails["present"]):
                        for stop, new in self.sequence((*tail, ("w", ",")), end + 2):
                            found.append((stop, (("subject", k, bits, False), ("about", bits), *new)))
            if self.words[end : end + 1] == ["and"]:
                found += [
                    (stop, (("subject", k, bits | more, True),))
                    for stop, more in self.character(end + 1, "he")
                    if self.words[end + 1] not in ("he", "she")
                ]
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
        index = phrase_index(True, item[2])
        found: list[Parse] = []
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

    def _m(self, _: Item, i: int) -> list[Parse]:
        return [(end, (("other", bits),)) for end, bits in self.character(i, "him")]

    def _s(self, _: Item, i: int) -> list[Parse]:
        return [(i + 1, (("saying", mark),)) for mark, words in narrator.SPEECH_VERBS.items() if self.words[i] in words]

    def _q(self, _: Item, i: int) -> list[Parse]:
        states: list[Parse] = [(i, ())]
        whole: list[Parse] = []
        for _sentence in range(6):
            states = [(end, found + new) for j, found in states for end, new in self.item(("utterance",), j)]
            states = states[:MOST_PARSES]
            whole += [parse for parse in states if self.words[parse[0] : parse[0] + 1] == ["”"]]
            states = [parse for parse in states if self.words[parse[0] - 1] != ","]
        return whole

    def _utterance(self, _: Item, i: int) -> list[Parse]:
        found: list[Parse] = []
        for items, mark, kind in utterance_patterns():
            if items[0][0] == "w" and items[0][1] != self.words[i]:
                continue
            for end, new in self.sequence(items, i):
                if end < len(self.words) and (self.words[end] == mark or (mark, self.words[end]) == (".", ",")):
                    found.append((end + 1, (("said", kind, mark, end), *new, ("unsaid",))))
        return found

    def _f(self, _: Item, i: int) -> list[Parse]:
        found: list[Parse] = []
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
        if kind.startswith("value:") or kind in WORD_KINDS:
            tag = ("value", kind[6:]) if kind.startswith("value:") else ("about",)
            return [(end, ((*tag, value),)) for end, value in self.fixed(kind, i)]
        slot = {"char": self._character, "thing": self._thing, "place": self._place, "noun": self._noun}[SORTS[kind]]
        return slot(kind, mode, i, role == "A")

    def fixed(self, kind: str, i: int) -> list[tuple[int, str]]:
        """The fixed phrases of a kind that stand at `i`: (end, value)."""
        found = value_phrases(kind).get(self.word(i), ())
        return [(i + len(words), value) for words, value in found if tuple(self.words[i : i + len(words)]) == words]

    def _character(self, kind: str, mode: str, i: int, topic: bool) -> list[Parse]:
        if mode in ("name", "plain") and self.words[i] in _PRONOUNS:
            return []
        case = {"sub": "he", "plain": "he", "his": "his"}.get(mode, "him")
        fitting = [(end, bits & CHARACTER_CLASSES[kind]) for end, bits in self.character(i, case)]
        return [(end, (("about" if topic else "other", bits),)) for end, bits in fitting if bits]

    def _place(self, kind: str, mode: str, i: int, topic: bool) -> list[Parse]:
        found: list[Parse] = []
        at = self.words[i] if mode == "at" else ""
        i += mode == "at"
        if self.words[i : i + 1] == ["the"]:
            for name in members(kind):
                words = name.split()
                if self.words[i + 1 : i + 1 + len(words)] == words and at in ("", world.PLACES[name].at):
                    found.append((i + 1 + len(words), _about(topic, name)))
        return found

    def _noun(self, kind: str, mode: str, i: int, topic: bool) -> list[Parse]:
        article, first, second = (self.word(i + k) for k in range(3))
        if mode == "bare":
            return [(i + 1, ())] if article in members(kind) else []
        if first in members(kind):
            return [(i + 2, _about(topic, first))] if article in ("the", NOUNS[first].article) else []
        if second not in members(kind) or mode == "the" or article != NOUNS[second].article:
            return []
        fitting = first in NOUNS[second].adjectives
        return [(i + 3, () if fitting else (("bad", f"{second} is not said to be {first}"),))]

    def _thing(self, kind: str, _: str, i: int, topic: bool) -> list[Parse]:
        if self.words[i] == "it":
            return [(i + 1, _about(topic, "it"))]
        found: list[Parse] = []
        for end, owner in self._determiners(i):
            colors = [(end, ""), *self.fixed("value:color", end)]
            for stop, color in colors:
                noun = self.word(stop)
                if noun in members(kind):
                    new: list[Finding] = [("owner", noun, owner)]
                    if color and color != world.THINGS[noun].color:
                        new.append(("bad", f"false: the {noun} is {world.THINGS[noun].color}, not {color}"))
                    found.append((stop + 1, (*new, *_about(topic, noun))))
        return found

    def _determiners(self, i: int) -> list[tuple[int, object]]:
        word = self.words[i]
        found: list[tuple[int, object]] = [(i + 1, word)] if word in ("the", "his", "her") else []
        if word in ("my", "your") and self.inside[i]:
            found.append((i + 1, word))
        return found + [
            (end, bits) for end, bits in self.character(i, "his") if word not in ("his", "her", "my", "your")
        ]

    def word(self, i: int) -> str:
        """The word at a position, or nothing."""
        return self.words[i] if i < len(self.words) else ""

    def sex(self, word: str, case: str) -> int:
        """Whom a pronoun in a case can mean, as bits; none if it is no such pronoun."""
        forms = {"he": HE, "him": HIM, "his": HIS}[case]
        return next((SEX[sex] for sex in "mf" if forms[sex] == word), 0)

    def character(self, i: int, case: str) -> list[tuple[int, int]]:
        """Whom the words from `i` name in a case: (end, bits)."""
        word, tail = self.word(i), "'s" if case == "his" else ""
        if self.inside[min(i, len(self.words))] and word in _SPEAKERS[case]:
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
