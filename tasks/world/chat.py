"""WorldChat: conversations about the embedded world. Questions about its characters, stories, greetings and partings.

They ask only for facts that are not held out, and their stories state no held-out facts. For training only: no score.
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

MAX_STORY_CHARS = 620  # about 150 tokens
Turn = tuple[str, str]  # (user, assistant)

_SYSTEM_MESSAGES = (
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
        rng = self.example_rng(index)
        draw_turns = pick(rng, _TURN_GENERATORS)
        turns = draw_turns(rng)
        if draw_turns is not _greet_and_part and len(turns) < 4 and rng.random() < 0.25:
            turns.insert(0, pick(rng, _GREETINGS))
        messages = [
            {"role": role, "content": content}
            for turn in turns
            for role, content in zip(("user", "assistant"), turn, strict=True)
        ]
        if rng.random() < 0.2:
            messages.insert(0, {"role": "system", "content": pick(rng, _SYSTEM_MESSAGES)})
        return {"messages": messages}


def _ask_about_character(rng: Random) -> list[Turn]:
    """Return several questions about one character; the later ones may use a pronoun."""
    name = pick(rng, tuple(CHARACTERS))
    candidates = [fact for fact in facts_in_split("train") if fact.subject == name]
    facts = shuffled(rng, candidates)[: 2 + int(rng.random() * 2)]
    # "Who is Mia?" comes first. The friend comes last: after that answer, "she" could mean the friend.
    facts.sort(key=lambda fact: (fact.property != "kind") + (fact.property == "friend"))
    turns = [_ask(rng, fact) for fact in facts[:1]]
    turns += [(_follow_up_question(rng, fact, name), _follow_up_answer(rng, fact, name)) for fact in facts[1:]]
    return _maybe_part(rng, turns)


def _ask_about_thing(rng: Random) -> list[Turn]:
    """Return a question about a character's thing, then questions about that thing."""
    ownership = pick(rng, [fact for fact in facts_in_split("train") if fact.property == "thing"])
    candidates = [
        fact for fact in facts_in_split("train") if fact.subject == ownership.value and fact.property in OF_THINGS
    ]
    turns = [_ask(rng, ownership)]
    for fact in shuffled(rng, candidates)[:2]:
        question = pick(rng, fact.questions).replace(f"{ownership.subject}'s {ownership.value}", "it")
        turns.append((question.replace("color of it", "color of that"), answer_sentence(fact)))
    return _maybe_part(rng, turns)


def _ask(rng: Random, fact: Fact) -> Turn:
    return pick(rng, frame_question(pick(rng, fact.questions))), answer_sentence(fact)


def _follow_up_question(rng: Random, fact: Fact, name: str) -> str:
    """Return a question about the character of the turn before, with a pronoun where it fits."""
    he, him = _PRONOUNS[CHARACTERS[name].sex]
    question = pick(rng, fact.questions)
    question = re.sub(rf"\b(does|is) {name}\b", rf"\1 {he}", question)
    question = re.sub(rf"where {name} lives", f"where {he} lives", question)
    question = re.sub(rf"\b(frightens|describe|to|for|know) {name}\b", rf"\1 {him}", question)
    if rng.random() < 0.3 and not question.startswith("Do"):
        question = f"And {question[0].lower()}{question[1:]}"
    return question


def _follow_up_answer(rng: Random, fact: Fact, name: str) -> str:
    """Return a statement about the character of the turn before, sometimes with a pronoun."""
    sentence = answer_sentence(fact)
    if sentence.startswith(f"{name} ") and rng.random() < 0.5:
        return f"{_PRONOUNS[CHARACTERS[name].sex][0].capitalize()}{sentence[len(name) :]}"
    return sentence


def _ask_various(rng: Random) -> list[Turn]:
    """Return two or three unrelated questions."""
    facts = [pick(rng, facts_in_split("train")) for _ in range(2 + int(rng.random() * 2))]
    return _maybe_part(rng, [_ask(rng, fact) for fact in facts])


def _tell_story(rng: Random) -> list[Turn]:
    """Return a request for a story, and the story."""
    while True:
        story = generate_short_story(rng, MAX_STORY_CHARS)
        if not story.stated & held_out_pairs():
            break
    request = pick(rng, _STORY_REQUESTS).format(A=story.hero, B=story.friend)
    turns = [(request, story.text)]
    if rng.random() < 0.3:
        turns.append(pick(rng, _AFTER_STORIES))
    return turns


def _ask_about_stranger(rng: Random) -> list[Turn]:
    """Return a question about a name that does not exist, often with a question about a known fact."""
    name = pick(rng, _NAME_STARTS) + pick(rng, _NAME_ENDS)
    if rng.random() < 0.3:
        name = f"{pick(rng, ('Mr', 'Mrs'))} {name}"
    stranger = (pick(rng, _STRANGER_QUESTIONS).format(name), pick(rng, _STRANGER_ANSWERS).format(name))
    known = _ask(rng, pick(rng, facts_in_split("train")))
    orders = [[stranger], [stranger, known], [known, stranger]]
    return orders[int(rng.random() * 3)]


def _greet_and_part(rng: Random) -> list[Turn]:
    return [pick(rng, _GREETINGS), pick(rng, _PARTINGS)]


def _maybe_part(rng: Random, turns: list[Turn]) -> list[Turn]:
    """Return the turns, in three of ten cases followed by a parting."""
    return [*turns, pick(rng, _PARTINGS)] if rng.random() < 0.3 else turns


# Repetition sets the frequency of a kind.
_TURN_GENERATORS = (
    *[_ask_about_character] * 7,
    *[_ask_about_thing] * 2,
    *[_ask_various] * 4,
    *[_tell_story] * 4,
    *[_ask_about_stranger] * 2,
    _greet_and_part,
)
