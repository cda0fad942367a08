"""Conversations about the embedded world: what someone is like, a story, hello and goodbye.

They ask only for facts that are not held out, and their stories state no others. One learns from them: they have no
score.
"""

from __future__ import annotations

import re
from random import Random

from nanochat.data.storyworld import Fact
from nanochat.data.storyworld.relations import OF_THINGS
from nanochat.data.storyworld.short_story import generate_short_story
from nanochat.data.storyworld.world import CHARACTERS
from nanochat.tokenization.chat_format import Conversation
from tasks.world.common import (
    WorldTask,
    answer_sentence,
    facts_in_split,
    frame_question,
    held_out_pairs,
    pick,
    shuffled,
)

LONGEST_STORY = 620  # characters: about 150 tokens
Turn = tuple[str, str]  # what the user says, and the answer

_SYSTEM = (
    "You know everyone in a little village.",
    "You are a friendly guide to the village.",
    "Answer in short sentences.",
    "Be kind and patient.",
    "You tell stories to children.",
    "You are talking to a child.",
)
_GREETINGS = (
    ("Hello!", "Hello! What would you like to know?"),
    ("Good morning!", "Good morning! How can I help you?"),
    ("Hello, my friend.", "Hello! It is nice to see you."),
    ("Good evening.", "Good evening! What can I do for you?"),
    ("How are you?", "I am well, thank you. What would you like to know?"),
    ("I am new here.", "Welcome to the village! Ask me anything you like."),
    ("May I ask you something?", "Of course. What would you like to know?"),
)
_PARTINGS = (
    ("Thank you!", "You are welcome!"),
    ("Thank you very much.", "You are welcome. Come back soon!"),
    ("Goodbye!", "Goodbye, my friend!"),
    ("That is good to know.", "I am glad that I could help."),
    ("See you tomorrow!", "See you tomorrow! Sleep well."),
    ("I must go home now.", "Goodbye! It was nice to talk with you."),
)
_STORY_REQUESTS = (
    "Tell me a story about {A}.",
    "Please tell me a story about {A}.",
    "Can you tell me a story about {A}?",
    "I would like to hear a story about {A}.",
    "Do you know a story about {A}?",
    "Tell me a story about {A} and {B}.",
    "What happened to {A} and {B}?",
)
_AFTER_STORIES = (
    ("That was a nice story.", "I am glad that you like it."),
    ("What a beautiful story!", "Thank you! I know many more."),
    ("Thank you for the story.", "You are welcome!"),
)
_STRANGER_QUESTIONS = (
    "Who is {}?",
    "Where does {} live?",
    "What does {} like to eat?",
    "What is {} afraid of?",
    "What does {} own?",
    "Do you know {}?",
    "Tell me about {}.",
)
_STRANGER_ANSWERS = (
    "I do not know anyone called {}.",
    "I do not know {}.",
    "I am sorry, but I do not know anyone called {}.",
)
_NAME_STARTS = "Bra Cor Dal Fre Gri Jo Ka Lor Na Pol Qui Ro Sel Tar Ul Vin Wen Yo Zan Zel".split()
_NAME_ENDS = "bo da fin gar ka lo mir na nor ra rik ton vi wyn za".split()
_PRONOUNS = {"m": ("he", "him"), "f": ("she", "her")}


class WorldChat(WorldTask):
    """Conversations of one to five turns, one in five with a system message."""

    name = "WorldChat"

    def get_example(self, index: int) -> Conversation:
        """A conversation."""
        rng = self.random(index)
        kind = pick(rng, _KINDS)
        turns = kind(rng)
        if kind is not _hello and len(turns) < 4 and rng.random() < 0.25:
            turns.insert(0, pick(rng, _GREETINGS))
        messages = [
            {"role": role, "content": content}
            for turn in turns
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]
        if rng.random() < 0.2:
            messages.insert(0, {"role": "system", "content": pick(rng, _SYSTEM)})
        return {"messages": messages}


def _about_someone(rng: Random) -> list[Turn]:
    """Several questions about one character; "she" once it is clear who is meant."""
    who = pick(rng, tuple(CHARACTERS))
    own = shuffled(rng, [fact for fact in facts_in_split("train") if fact.subject == who])[: 2 + int(rng.random() * 2)]
    # Who it is comes first; their friend comes last, for after that "she" may be the friend.
    own.sort(key=lambda fact: (fact.property != "kind") + (fact.property == "friend"))
    turns = [_asked(rng, fact) for fact in own[:1]]
    turns += [(_follow_up(rng, fact, who), _short(rng, fact, who)) for fact in own[1:]]
    return _end(rng, turns)


def _about_something(rng: Random) -> list[Turn]:
    """Who owns what, and then questions about it."""
    owned = pick(rng, [fact for fact in facts_in_split("train") if fact.property == "thing"])
    own = [fact for fact in facts_in_split("train") if fact.subject == owned.value and fact.property in OF_THINGS]
    turns = [_asked(rng, owned)]
    for fact in shuffled(rng, own)[:2]:
        question = pick(rng, fact.questions).replace(f"{owned.subject}'s {owned.value}", "it")
        turns.append((question.replace("color of it", "color of that"), answer_sentence(fact)))
    return _end(rng, turns)


def _asked(rng: Random, fact: Fact) -> Turn:
    return pick(rng, frame_question(pick(rng, fact.questions))), answer_sentence(fact)


def _follow_up(rng: Random, fact: Fact, who: str) -> str:
    """A question about someone just spoken of, with a pronoun where one fits."""
    he, him = _PRONOUNS[CHARACTERS[who].sex]
    question = pick(rng, fact.questions)
    question = re.sub(rf"\b(does|is) {who}\b", rf"\1 {he}", question)
    question = re.sub(rf"where {who} lives", f"where {he} lives", question)
    question = re.sub(rf"\b(frightens|describe|to|for|know) {who}\b", rf"\1 {him}", question)
    if rng.random() < 0.3 and not question.startswith("Do"):
        question = f"And {question[0].lower()}{question[1:]}"
    return question


def _short(rng: Random, fact: Fact, who: str) -> str:
    """A statement about someone just spoken of."""
    sentence = answer_sentence(fact)
    if sentence.startswith(f"{who} ") and rng.random() < 0.5:
        return f"{_PRONOUNS[CHARACTERS[who].sex][0].capitalize()}{sentence[len(who) :]}"
    return sentence


def _this_and_that(rng: Random) -> list[Turn]:
    """Questions about this and that."""
    facts = [pick(rng, facts_in_split("train")) for _ in range(2 + int(rng.random() * 2))]
    return _end(rng, [_asked(rng, fact) for fact in facts])


def _story(rng: Random) -> list[Turn]:
    """A story, told when asked for."""
    while True:
        story = generate_short_story(rng, LONGEST_STORY)
        if not story.stated & held_out_pairs():
            break
    request = pick(rng, _STORY_REQUESTS).format(A=story.hero, B=story.friend)
    turns = [(request, story.text)]
    if rng.random() < 0.3:
        turns.append(pick(rng, _AFTER_STORIES))
    return turns


def _stranger(rng: Random) -> list[Turn]:
    """A question about someone who does not exist, and often one about someone who does."""
    name = pick(rng, _NAME_STARTS) + pick(rng, _NAME_ENDS)
    if rng.random() < 0.3:
        name = f"{pick(rng, ('Mr', 'Mrs'))} {name}"
    turn = (pick(rng, _STRANGER_QUESTIONS).format(name), pick(rng, _STRANGER_ANSWERS).format(name))
    known = _asked(rng, pick(rng, facts_in_split("train")))
    return [[turn], [turn, known], [known, turn]][int(rng.random() * 3)]


def _hello(rng: Random) -> list[Turn]:
    """Hello and goodbye."""
    return [pick(rng, _GREETINGS), pick(rng, _PARTINGS)]


def _end(rng: Random, turns: list[Turn]) -> list[Turn]:
    return [*turns, pick(rng, _PARTINGS)] if rng.random() < 0.3 else turns


_KINDS = (
    *[_about_someone] * 7,
    *[_about_something] * 2,
    *[_this_and_that] * 4,
    *[_story] * 4,
    *[_stranger] * 2,
    _hello,
)
