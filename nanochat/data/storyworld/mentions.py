"""Names things: who is "Rusty the fox", "the fox" or "he", what is "his red kite", and when an apple is "the apple"."""

import re
from random import Random
from typing import TypeVar

from nanochat.data.storyworld.lexicon import NOUNS
from nanochat.data.storyworld.world import CHARACTERS, PLACES, THINGS

T = TypeVar("T")
HE = {"m": "he", "f": "she"}
HIM = {"m": "him", "f": "her"}
HIS = {"m": "his", "f": "her"}
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiouAEIOU]|hour)")


class MentionTracker:
    """Collects the words of a document; knows who was mentioned lately, so that pronouns are clear."""

    def __init__(self, rng: Random, roles: dict[str, str]) -> None:
        self.random = rng.random
        self.roles = roles
        self.words: list[str] = []
        self.cap = True
        self.known: set[str] = set()  # who and what has been mentioned in the document
        self.recent: set[str] = set()  # in this sentence and the one before
        self.current: set[str] = set()  # in this sentence
        self.stated: set[tuple[str, str]] = set()  # facts told in this document
        self.pair: tuple[str, ...] = ()  # the last plural subject
        self.speaker = self.hearer = ""
        self.inside = False  # inside quotation marks
        self.plain = False  # name everyone and everything in full
        self.tense = "past"  # of what is said by the way
        self.hide_color = False
        self.known_story = self.replying = False  # whether the action has begun; whether the last sentence was speech

    def choose(self, options: "tuple[T, ...] | list[T]") -> T:
        """One of the options, each as likely."""
        return options[int(self.random() * len(options))]

    # --- words

    def say(self, word: str) -> None:
        """Append a word or mark; the first word of a sentence gets its capital here."""
        if self.cap and word[0].isalpha():
            word = word[0].upper() + word[1:]
            self.cap = False
        elif word == "“":
            self.cap = True
        self.words.append(word)

    def begin(self) -> None:
        """Start a sentence."""
        self.cap = True
        self.recent, self.current = self.current, set()

    def paragraph(self) -> None:
        """Start a paragraph: nobody is "he" or "she" until named again."""
        if self.words:
            self.words.append("\n")
        self.recent, self.current, self.pair = set(), set(), ()

    def text(self) -> str:
        """The document so far."""
        text = " ".join(self.words).replace(" \n ", "\n\n").replace("“ ", '"').replace(" ”", '"')
        for mark in ",.!?:":
            text = text.replace(" " + mark, mark)
        return _ARTICLE.sub(r"\1n ", text)

    # --- noun phrases

    def mention(self, name: str) -> None:
        """Remember that a character, thing or noun has just been named."""
        self.known.add(name)
        self.current.add(name)

    def _clear(self, name: str) -> bool:
        """Whether "he" or "she" can only mean this character."""
        near = self.recent | self.current
        sex = CHARACTERS[name].sex
        return name in near and all(CHARACTERS[n].sex != sex for n in near if n != name and n in CHARACTERS)

    def character(self, name: str, case: str = "he", plain: bool = False, pronoun: bool = True) -> None:
        """Name a character: `case` is he, him or his; `plain` means by name, else perhaps by a `pronoun`."""
        if self.inside and name in (self.speaker, self.hearer):
            first = name == self.speaker
            return self.say(
                {"he": "I" if first else "you", "him": "me" if first else "you"}.get(case, "my" if first else "your")
            )
        sex = CHARACTERS[name].sex
        if pronoun and not plain and self._clear(name) and self.random() < (0.75 if case == "he" else 0.6):
            self.mention(name)
            return self.say({"he": HE, "him": HIM, "his": HIS}[case][sex])
        kind = CHARACTERS[name].kind
        by_name = kind in ("girl", "boy") or case == "his" or plain or self.plain
        pick = self.random()
        if not by_name and name in self.known and pick < 0.35:
            self.say("the")
            self.say(kind)
        else:
            self.say(name)
            if not by_name and pick > (0.97 if name in self.known else 0.4):
                self.say("the")
                self.say(kind)
        if case == "his":
            self.words[-1] += "'s"
        self.mention(name)
        return None

    def pronoun(self, names: tuple[str, ...]) -> None:
        """A pronoun for the subject named just before."""
        self.current.update(names)
        self.say(HE[CHARACTERS[names[0]].sex] if len(names) == 1 else "they")

    def thing(self, noun: str, agents: tuple[str, ...]) -> None:
        """A thing that has an owner and a color."""
        owner = THINGS[noun].owner
        near = self.recent | self.current
        others = [n for n in near if n in THINGS or n in NOUNS]
        if not self.plain and others == [noun] and self.random() < 0.5:
            self.current.add(noun)
            return self.say("it")
        new = noun not in self.known
        pick = self.random()
        if self.inside and owner in (self.speaker, self.hearer):
            self.say("my" if owner == self.speaker else "your")
        elif agents == (owner,) or (self._clear(owner) and pick < 0.9):
            self.say(HIS[CHARACTERS[owner].sex])
        elif new or pick < 0.4:
            self.say(owner + "'s")
            self.current.add(owner)
        else:
            self.say("the")
        if not self.hide_color and not self.plain and self.random() < (0.7 if new else 0.25):
            self.say(THINGS[noun].color)
        self.mention(noun)
        return self.say(noun)

    def noun(self, word: str, mode: str) -> None:
        """One of many: "a ripe apple" at first, then "the apple"."""
        if mode == "bare":
            return self.say(word)
        definite = mode == "the" or word in self.known
        self.say("the" if definite else NOUNS[word].article)
        if not definite and self.random() < 0.6:
            self.say(self.choose(NOUNS[word].adjectives))
        self.mention(word)
        return self.say(word)

    def place(self, name: str, mode: str) -> None:
        """A place, with its preposition if `mode` is "at"."""
        if mode == "at":
            self.say(PLACES[name].at)
        self.say("the")
        self.say(name)
