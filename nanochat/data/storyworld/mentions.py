"""Noun phrases: "Rusty the fox", "the fox" or "he", "his red kite", "an apple" at first and then "the apple"."""

import re
from collections.abc import Sequence
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
    """Collects the words of a document and tracks mentioned characters and things, so that pronouns are unambiguous."""

    def __init__(self, rng: Random, roles: dict[str, str]) -> None:
        self.random = rng.random
        self.roles = roles
        self.words: list[str] = []
        self.capitalize_next = True
        self.known: set[str] = set()  # characters, things and nouns mentioned in the document
        self.recent: set[str] = set()  # ... in this sentence and the one before
        self.current: set[str] = set()  # ... in this sentence
        self.stated: set[tuple[str, str]] = set()  # facts stated in the document
        self.pair: tuple[str, ...] = ()  # the last plural subject
        self.speaker = ""
        self.hearer = ""
        self.in_quote = False
        self.full_names = False  # no pronouns, no omitted words
        self.tense = "past"  # of asides
        self.hide_color = False
        self.has_begun = False  # the action of the story has begun
        self.is_reply = False  # the last sentence was speech

    def choose(self, options: Sequence[T]) -> T:
        """Return one of the options, all equally likely."""
        return options[int(self.random() * len(options))]

    # --- words

    def say(self, word: str) -> None:
        """Append a word or mark. The first word of a sentence is capitalized."""
        if self.capitalize_next and word[0].isalpha():
            word = word[0].upper() + word[1:]
            self.capitalize_next = False
        elif word == "“":
            self.capitalize_next = True
        self.words.append(word)

    def begin_sentence(self) -> None:
        """Start a sentence."""
        self.capitalize_next = True
        self.recent = self.current
        self.current = set()

    def begin_paragraph(self) -> None:
        """Start a paragraph. No pronoun in it refers to a character of an earlier paragraph."""
        if self.words:
            self.words.append("\n")
        self.recent = set()
        self.current = set()
        self.pair = ()

    def text(self) -> str:
        """Return the document so far."""
        text = " ".join(self.words).replace(" \n ", "\n\n").replace("“ ", '"').replace(" ”", '"')
        for mark in ",.!?:":
            text = text.replace(" " + mark, mark)
        return _ARTICLE.sub(r"\1n ", text)

    # --- noun phrases

    def mention(self, name: str) -> None:
        """Record that a character, thing or noun has just been named."""
        self.known.add(name)
        self.current.add(name)

    def _is_unambiguous(self, name: str) -> bool:
        """Return True if "he" or "she" can refer to this character only."""
        near = self.recent | self.current
        sex = CHARACTERS[name].sex
        return name in near and all(
            CHARACTERS[other].sex != sex for other in near if other != name and other in CHARACTERS
        )

    def emit_character(self, name: str, case: str = "he", by_name: bool = False, allow_pronoun: bool = True) -> None:
        """Refer to a character, by name or by kind or with a pronoun. `case` is he, him or his.

        `by_name` forces the name, `allow_pronoun=False` excludes pronouns outside of speech.
        """
        if self.in_quote and name in (self.speaker, self.hearer):
            is_speaker = name == self.speaker
            forms = {"he": "I", "him": "me", "his": "my"} if is_speaker else {"he": "you", "him": "you", "his": "your"}
            self.say(forms[case])
            return
        may_use_pronoun = allow_pronoun and not by_name and self._is_unambiguous(name)
        if may_use_pronoun and self.random() < (0.75 if case == "he" else 0.6):
            self.mention(name)
            self.say({"he": HE, "him": HIM, "his": HIS}[case][CHARACTERS[name].sex])
            return
        kind = CHARACTERS[name].kind
        name_only = kind in ("girl", "boy") or case == "his" or by_name or self.full_names
        draw = self.random()
        if not name_only and name in self.known and draw < 0.35:
            self.say("the")
            self.say(kind)
        else:
            self.say(name)
            if not name_only and draw > (0.97 if name in self.known else 0.4):
                self.say("the")
                self.say(kind)
        if case == "his":
            self.words[-1] += "'s"
        self.mention(name)

    def emit_pronoun(self, names: tuple[str, ...]) -> None:
        """Refer with a pronoun to the subject named just before."""
        self.current.update(names)
        self.say(HE[CHARACTERS[names[0]].sex] if len(names) == 1 else "they")

    def emit_thing(self, noun: str, agents: tuple[str, ...]) -> None:
        """Refer to a thing, which has an owner and a color; `agents` are the subjects of the clause."""
        owner = THINGS[noun].owner
        near_things = [name for name in self.recent | self.current if name in THINGS or name in NOUNS]
        if not self.full_names and near_things == [noun] and self.random() < 0.5:
            self.current.add(noun)
            self.say("it")
            return
        is_new = noun not in self.known
        draw = self.random()
        if self.in_quote and owner in (self.speaker, self.hearer):
            self.say("my" if owner == self.speaker else "your")
        elif agents == (owner,) or (self._is_unambiguous(owner) and draw < 0.9):
            self.say(HIS[CHARACTERS[owner].sex])
        elif is_new or draw < 0.4:
            self.say(owner + "'s")
            self.current.add(owner)
        else:
            self.say("the")
        if not self.hide_color and not self.full_names and self.random() < (0.7 if is_new else 0.25):
            self.say(THINGS[noun].color)
        self.mention(noun)
        self.say(noun)

    def emit_noun(self, word: str, mode: str) -> None:
        """Refer to a common noun: "a ripe apple" at first, then "the apple". `mode` is "", "the" or "bare"."""
        if mode == "bare":
            self.say(word)
            return
        is_definite = mode == "the" or word in self.known
        self.say("the" if is_definite else NOUNS[word].article)
        if not is_definite and self.random() < 0.6:
            self.say(self.choose(NOUNS[word].adjectives))
        self.mention(word)
        self.say(word)

    def emit_place(self, name: str, mode: str) -> None:
        """Refer to a place, with its preposition if `mode` is "at"."""
        if mode == "at":
            self.say(PLACES[name].at)
        self.say("the")
        self.say(name)
