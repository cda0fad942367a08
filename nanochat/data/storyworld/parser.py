"""Memoized top-down parser of sentences, by the same grammar as the writer's.

A parse is a tuple of findings, small tuples that judge.py tests against the world:
    ("subject", k, mask, plural)    the subject of clause k; a mask is a set of characters as bits
    ("verb", k, phrase, number)     the verb phrase of clause k
    ("pronoun", k, mask, plural)    a pronoun for the subject of clause k
    ("other", mask)                 another character
    ("possessive", word)            "his", "their", ... for the subject
    ("owner", thing, determiner)    a thing with its owner: a mask, or "his", "the", ...
    ("speech_verb", mark)           a verb of saying that suits speech with this mark
    ("speech", kind, mark, end) ... ("speech_end",)    a spoken sentence
    ("question",)                   the spoken sentence asks for a fact
    ("about", subject)  ("value", relation, value)     a fact; its subject is a mask or a word
    ("bad", reason)                 a fault

    "Mia's kite is red ."  ->  (("owner", "kite", mask of Mia), ("about", "kite"), ("value", "color", "red"))
"""

from collections import defaultdict

from nanochat.data.storyworld import narrator, world
from nanochat.data.storyworld.grammar import (
    CHARACTER_CLASSES,
    CHOICE_ITEMS,
    EVERYONE,
    NAME_BITS,
    NAMES,
    SEX_MASKS,
    SORTS,
    Item,
    Pattern,
    members,
)
from nanochat.data.storyworld.lexicon import NOUNS
from nanochat.data.storyworld.mentions import HE, HIM, HIS
from nanochat.data.storyworld.patterns import (
    WORD_KINDS,
    phrase_index,
    sentence_index,
    utterance_patterns,
    value_phrases,
)
from nanochat.data.storyworld.relations import RELATIONS

Finding = tuple[object, ...]
Parse = tuple[int, tuple[Finding, ...]]  # (index of the word after it, findings)
MAX_PARSES = 24  # of one stretch of words; further ones differ in wording only
MAX_SENTENCES = 6  # of one quotation
# The number of the verb, and the possessive words for its subject, by the kind of speech.
SPEECH_NUMBER = {"plan": "p", "did": "p", "can": "p", "past": "s", "will": "s"}
SPEECH_POSSESSIVES = {
    "plan": {"our", "us"},
    "did": {"your", "you"},
    "can": {"your", "you"},
    "past": {"my", "me"},
    "will": {"my", "me"},
}
POSSESSIVES = ("his", "her", "their", "my", "your", "our")
POSSESSIVE_OBJECTS = ("him", "her", "them", "me", "you", "us")
_PLURAL_SUBJECTS = (["they"], ["the", "two", "friends"], ["the", "two", "of", "them"], ["both", "of", "them"])
_PRONOUNS = ("he", "she", "him", "her")
_SPEECH_PRONOUNS = {"he": ("I", "you"), "him": ("me", "you"), "his": ("my", "your")}
_UNIQUE_KINDS = {
    character.kind: NAME_BITS[name]
    for name, character in world.CHARACTERS.items()
    if character.kind not in ("girl", "boy")
}
_NAMES_BY_FIRST_WORD: dict[str, list[str]] = defaultdict(list)
for _name in NAMES:
    _NAMES_BY_FIRST_WORD[_name.split()[0]].append(_name)


def _about(is_topic: bool, name: str) -> tuple[Finding, ...]:
    return (("about", name),) if is_topic else ()


class Parser:
    """Parses one sentence, given as words in the case of the grammar, with “ and ” for quotation marks.

    `furthest` is the index of the first word that no parse covers.
    """

    def __init__(self, words: list[str]) -> None:
        self.words = words
        self.furthest = 0
        self._memo: dict[object, list[Parse]] = {}
        self._in_quote = [False] * (len(words) + 1)
        for i, word in enumerate(words):
            self._in_quote[i + 1] = word == "“" or (self._in_quote[i] and word != "”")

    def sentence(self) -> list[tuple[Finding, ...]]:
        """Return the findings of every reading of the words as one whole sentence."""
        index = sentence_index()
        return [
            findings
            for pattern in (*index.get(self.words[0], ()), *index[""])
            for end, findings in self.sequence(pattern, 0)
            if end == len(self.words)
        ]

    def sequence(self, items: Pattern, start: int) -> list[Parse]:
        """Return all parses of consecutive items from word `start`."""
        states: list[Parse] = [(start, ())]
        for item in items:
            if item[0] == "w":
                word = item[1]
                states = [(i + 1, findings) for i, findings in states if i < len(self.words) and self.words[i] == word]
            else:
                states = [(end, findings + new) for i, findings in states for end, new in self.item(item, i)]
                states = list(dict.fromkeys(states))[:MAX_PARSES]
            if not states:
                return []
            self.furthest = max(self.furthest, states[-1][0])
        return states

    def item(self, item: Item, i: int) -> list[Parse]:
        """Return all parses of one item from word `i`, memoized."""
        key = (item, i)
        if key not in self._memo:
            self._memo[key] = []  # no parse of an item depends on itself
            if i < len(self.words) or item[0] == "cat":
                parse_item = getattr(self, f"_parse_{item[0]}")
                self._memo[key] = list(dict.fromkeys(parse_item(item, i)))[:MAX_PARSES]
        return self._memo[key]

    # --- items, by their tags

    def _parse_cat(self, item: Item, i: int) -> list[Parse]:
        return [parse for option in CHOICE_ITEMS[item[1]] for parse in self.sequence(option, i)]

    def _parse_n(self, item: Item, i: int) -> list[Parse]:
        """Parse the subject of a clause, with an aside or a second subject."""
        k = item[1]
        parses: list[Parse] = []
        for end, mask in self._characters(i, "he"):
            subject = ("subject", k, mask, False)
            parses.append((end, (subject,)))
            if self.words[end : end + 2] == [",", "who"]:
                for name in narrator.ASIDE_RELATIONS:
                    for tail in (*RELATIONS[name].tails["past"], *RELATIONS[name].tails["present"]):
                        for aside_end, new in self.sequence((*tail, ("w", ",")), end + 2):
                            parses.append((aside_end, (subject, ("about", mask), *new)))
            if self.words[end : end + 1] == ["and"]:
                parses += [
                    (second_end, (("subject", k, mask | second_mask, True),))
                    for second_end, second_mask in self._characters(end + 1, "he")
                    if self.words[end + 1] not in ("he", "she")
                ]
        for words in _PLURAL_SUBJECTS:
            if self.words[i : i + len(words)] == words:
                parses.append((i + len(words), (("subject", k, EVERYONE, True),)))
        return parses

    def _parse_h(self, item: Item, i: int) -> list[Parse]:
        word = self.words[i]
        if word == "they":
            return [(i + 1, (("pronoun", item[1], EVERYONE, True),))]
        mask = self._pronoun_mask(word, "he")
        return [(i + 1, (("pronoun", item[1], mask, False),))] if mask else []

    def _parse_v(self, item: Item, i: int) -> list[Parse]:
        index = phrase_index(True, item[2])
        parses: list[Parse] = []
        for items, phrase, number in (*index.get(self.words[i], ()), *index.get("", ())):
            parses += [(end, (("verb", item[1], phrase, number), *new)) for end, new in self.sequence(items, i)]
        return parses

    def _parse_c(self, item: Item, i: int) -> list[Parse]:
        _, k, form = item
        parses = self.sequence((("n", k), ("v", k, form)), i)
        index = phrase_index(False, form)
        for items, _, _ in (*index.get(self.words[i], ()), *index.get("", ())):
            parses += self.sequence(items, i)
        return parses

    def _parse_m(self, _: Item, i: int) -> list[Parse]:
        return [(end, (("other", mask),)) for end, mask in self._characters(i, "him")]

    def _parse_s(self, _: Item, i: int) -> list[Parse]:
        return [
            (i + 1, (("speech_verb", mark),)) for mark, words in narrator.SPEECH_VERBS.items() if self.words[i] in words
        ]

    def _parse_q(self, _: Item, i: int) -> list[Parse]:
        """Parse the sentences between quotation marks."""
        states: list[Parse] = [(i, ())]
        parses: list[Parse] = []
        for _sentence in range(MAX_SENTENCES):
            states = [(end, findings + new) for j, findings in states for end, new in self.item(("utterance",), j)]
            states = states[:MAX_PARSES]
            parses += [state for state in states if self.words[state[0] : state[0] + 1] == ["”"]]
            states = [state for state in states if self.words[state[0] - 1] != ","]
        return parses

    def _parse_utterance(self, _: Item, i: int) -> list[Parse]:
        """Parse one spoken sentence with its mark, which is a comma in place of a full stop where the quote goes on."""
        parses: list[Parse] = []
        for items, mark, kind in utterance_patterns():
            if items[0][0] == "w" and items[0][1] != self.words[i]:
                continue
            for end, new in self.sequence(items, i):
                if end < len(self.words) and (self.words[end] == mark or (mark, self.words[end]) == (".", ",")):
                    parses.append((end + 1, (("speech", kind, mark, end), *new, ("speech_end",))))
        return parses

    def _parse_f(self, _: Item, i: int) -> list[Parse]:
        parses: list[Parse] = []
        for relation in RELATIONS.values():
            for pattern in relation.statements["present"]:
                parses += self.sequence(pattern, i)
            for pattern in relation.questions:
                parses += [(end, (("question",),)) for end, _ in self.sequence(pattern, i)]
        return parses

    def _parse_slot(self, item: Item, i: int) -> list[Parse]:
        _, role, kind, mode = item
        word = self.words[i]
        if mode.startswith("own"):
            words = POSSESSIVE_OBJECTS if mode == "own_him" else POSSESSIVES
            return [(i + 1, (("possessive", word),))] if word in words else []
        if mode == "he":
            mask = self._pronoun_mask(word, "he")
            return [(i + 1, (("other", mask),))] if mask else []
        if kind.startswith("value:"):
            relation = kind.removeprefix("value:")
            return [(end, (("value", relation, value),)) for end, value in self._values(kind, i)]
        if kind in WORD_KINDS:
            return [(end, (("about", value),)) for end, value in self._values(kind, i)]
        parse_slot = {
            "char": self._character_slot,
            "thing": self._thing_slot,
            "place": self._place_slot,
            "noun": self._noun_slot,
        }[SORTS[kind]]
        return parse_slot(kind, mode, i, role == "A")

    # --- slots, by the sort of their type; the role A is the topic, the subject of a fact

    def _character_slot(self, kind: str, mode: str, i: int, is_topic: bool) -> list[Parse]:
        if mode in ("name", "plain") and self.words[i] in _PRONOUNS:
            return []
        case = {"sub": "he", "plain": "he", "his": "his"}.get(mode, "him")
        tag = "about" if is_topic else "other"
        masks = [(end, mask & CHARACTER_CLASSES[kind]) for end, mask in self._characters(i, case)]
        return [(end, ((tag, mask),)) for end, mask in masks if mask]

    def _place_slot(self, kind: str, mode: str, i: int, is_topic: bool) -> list[Parse]:
        parses: list[Parse] = []
        preposition = self.words[i] if mode == "at" else ""
        i += mode == "at"
        if self.words[i : i + 1] == ["the"]:
            for name in members(kind):
                words = name.split()
                end = i + 1 + len(words)
                if self.words[i + 1 : end] == words and preposition in ("", world.PLACES[name].at):
                    parses.append((end, _about(is_topic, name)))
        return parses

    def _noun_slot(self, kind: str, mode: str, i: int, is_topic: bool) -> list[Parse]:
        """Parse "the apple", "an apple" or "a ripe apple"; in mode "bare", "apple"."""
        article, first, second = (self._word(i + offset) for offset in range(3))
        if mode == "bare":
            return [(i + 1, ())] if article in members(kind) else []
        if first in members(kind):
            return [(i + 2, _about(is_topic, first))] if article in ("the", NOUNS[first].article) else []
        if second not in members(kind) or mode == "the" or article != NOUNS[second].article:
            return []
        if first in NOUNS[second].adjectives:
            return [(i + 3, ())]
        return [(i + 3, (("bad", f"{second} is not said to be {first}"),))]

    def _thing_slot(self, kind: str, _: str, i: int, is_topic: bool) -> list[Parse]:
        """Parse "it", or a thing with its determiner and perhaps its color: "Mia's red kite"."""
        if self.words[i] == "it":
            return [(i + 1, _about(is_topic, "it"))]
        parses: list[Parse] = []
        for end, determiner in self._determiners(i):
            for color_end, color in [(end, ""), *self._values("value:color", end)]:
                noun = self._word(color_end)
                if noun in members(kind):
                    findings: list[Finding] = [("owner", noun, determiner)]
                    true_color = world.THINGS[noun].color
                    if color and color != true_color:
                        findings.append(("bad", f"false: the {noun} is {true_color}, not {color}"))
                    parses.append((color_end + 1, (*findings, *_about(is_topic, noun))))
        return parses

    # --- words

    def _determiners(self, i: int) -> list[tuple[int, object]]:
        """Return the readings of a determiner at word `i`: (end, the word, or the owner as a mask)."""
        word = self.words[i]
        readings: list[tuple[int, object]] = [(i + 1, word)] if word in ("the", "his", "her") else []
        if word in ("my", "your") and self._in_quote[i]:
            readings.append((i + 1, word))
        if word not in ("his", "her", "my", "your"):
            readings += self._characters(i, "his")
        return readings

    def _values(self, kind: str, i: int) -> list[tuple[int, str]]:
        """Return the values of a kind of word, or of a relation, that the words from `i` name: (end, value)."""
        phrases = value_phrases(kind).get(self._word(i), ())
        return [(i + len(words), value) for words, value in phrases if tuple(self.words[i : i + len(words)]) == words]

    def _word(self, i: int) -> str:
        """Return the word at a position, or "" after the last."""
        return self.words[i] if i < len(self.words) else ""

    def _pronoun_mask(self, word: str, case: str) -> int:
        """Return the characters that a pronoun in a case can refer to; 0 if the word is no such pronoun."""
        forms = {"he": HE, "him": HIM, "his": HIS}[case]
        return next((SEX_MASKS[sex] for sex in "mf" if forms[sex] == word), 0)

    def _characters(self, i: int, case: str) -> list[tuple[int, int]]:
        """Return the characters that the words from `i` refer to in a case (he, him or his): (end, mask)."""
        word = self._word(i)
        suffix = "'s" if case == "his" else ""
        if self._in_quote[min(i, len(self.words))] and word in _SPEECH_PRONOUNS[case]:
            return [(i + 1, EVERYONE)]
        if mask := self._pronoun_mask(word, case):
            return [(i + 1, mask)]
        if word == "the" and not suffix and self._word(i + 1) in _UNIQUE_KINDS:
            return [(i + 2, _UNIQUE_KINDS[self._word(i + 1)])]
        for name in _NAMES_BY_FIRST_WORD.get(word.removesuffix("'s"), ()):
            words = (name + suffix).split()
            end = i + len(words)
            if self.words[i:end] == words:
                readings = [(end, NAME_BITS[name])]
                if not suffix and self._word(end) == "the" and self._word(end + 1) == world.CHARACTERS[name].kind:
                    readings.append((end + 2, NAME_BITS[name]))
                return readings
        return []
