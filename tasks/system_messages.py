"""System messages for conversations that have none: general ones, and ones that match the length of the answers."""

from __future__ import annotations

import random

from nanochat.tokenization.chat_format import Conversation

GENERAL = """
You are a helpful assistant.
You are a friendly assistant who answers truthfully.
You are a chat assistant. Be helpful and polite.
Help the user as well as you can.
Answer the user's questions.
Use plain words.
Be kind and clear.
You talk with people and help them.
""".strip().split("\n")

SHORT = """
Answer briefly.
Keep your answers short.
Be brief and to the point.
You are an assistant of few words.
""".strip().split("\n")

LONG = """
Answer in detail.
Give full explanations.
Take your time and explain well.
You are an assistant who answers at length.
""".strip().split("\n")

MAX_SHORT_ANSWER = 120  # characters: a SHORT message may be added if every answer has at most this many
MIN_LONG_ANSWER = 1000  # characters: a LONG message may be added if every answer has at least this many


def add_system_message(conversation: Conversation, rng: random.Random, probability: float) -> Conversation:
    """Return the conversation, with a fitting system message added with `probability` if it has none."""
    messages = conversation["messages"]
    if rng.random() >= probability or messages[0]["role"] == "system":
        return conversation
    lengths = [len(str(message["content"])) for message in messages if message["role"] == "assistant"]
    candidates = list(GENERAL)
    if lengths and max(lengths) <= MAX_SHORT_ANSWER:
        candidates += SHORT
    if lengths and min(lengths) >= MIN_LONG_ANSWER:
        candidates += LONG
    return {**conversation, "messages": [{"role": "system", "content": rng.choice(candidates)}, *messages]}
