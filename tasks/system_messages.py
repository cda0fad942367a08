"""System messages for conversations that have none, so that a model has seen some: general ones, which fit any answer,
and some that ask for the length the answers have."""

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

SHORT_ANSWER, LONG_ANSWER = 120, 1000  # characters of every answer


def add_system_message(conversation: Conversation, generator: random.Random, share: float) -> Conversation:
    """The conversation, with a fitting system message in `share` of the cases; one that has its own keeps it."""
    messages = conversation["messages"]
    if generator.random() >= share or messages[0]["role"] == "system":
        return conversation
    lengths = [len(str(message["content"])) for message in messages if message["role"] == "assistant"]
    fitting = list(GENERAL)
    if lengths and max(lengths) <= SHORT_ANSWER:
        fitting += SHORT
    if lengths and min(lengths) >= LONG_ANSWER:
        fitting += LONG
    return {**conversation, "messages": [{"role": "system", "content": generator.choice(fitting)}, *messages]}
