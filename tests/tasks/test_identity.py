"""Identity: conversations from the templates, and a file that replaces them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nanochat.common import UserError
from nanochat.tokenization.chat_format import Conversation
from tasks.identity import ABILITIES, GREETINGS, PERSONA, SYSTEM_MESSAGE_PROB, TOPICS, Identity, generate_conversations


def contents(conversations: list[Conversation], role: str) -> list[str]:
    return [
        message["content"]
        for conversation in conversations
        for message in conversation["messages"]
        if message["role"] == role
    ]


def write_conversations(path: Path, conversations: list[Conversation]) -> Path:
    lines = [json.dumps(conversation["messages"]) + "\n" for conversation in conversations]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_conversations_depend_on_kind_and_seed_only() -> None:
    assert generate_conversations(50) == generate_conversations(50) == generate_conversations(100)[:50]
    assert generate_conversations(50) != generate_conversations(50, seed=1)
    assert generate_conversations(50) != generate_conversations(50, kind="web")
    with pytest.raises(UserError, match=r"no abilities of 'moon'.*world, web"):
        generate_conversations(1, kind="moon")


@pytest.mark.parametrize("kind", ABILITIES)
def test_every_template_is_used(kind: str) -> None:
    conversations = generate_conversations(1000, kind)
    answers = " ".join(contents(conversations, "assistant"))
    assert not re.search(r"[{}|]", answers), "every field is filled in"
    for value in (*PERSONA.values(), *ABILITIES[kind].values()):
        assert value in answers
    for greeting in GREETINGS:
        assert greeting.split("|")[1].format(**PERSONA) in answers
    asked = {question.lower().rstrip("?.!") for question in contents(conversations, "user")}
    for questions, _ in TOPICS.values():
        assert all(question.lower().rstrip("?.!") in asked for question in questions.split("|"))
    num_turns = [len(contents([conversation], "user")) for conversation in conversations]
    assert {1, 2, 3} <= set(num_turns)
    assert max(num_turns) <= 4
    assert len({json.dumps(conversation) for conversation in conversations}) > 500
    num_system = len(contents(conversations, "system"))
    assert 0.5 * SYSTEM_MESSAGE_PROB < num_system / 1000 < 1.5 * SYSTEM_MESSAGE_PROB


def test_another_name_is_used_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PERSONA, "name", "Zebulon")
    monkeypatch.setitem(PERSONA, "maker", "Ada and Bob")
    text = json.dumps(generate_conversations(300))
    assert "Zebulon" in text
    assert "Ada and Bob" in text
    assert "nanochat" not in text


def test_a_file_replaces_the_templates(base_dir: Path) -> None:
    assert len(Identity("all", size=30)) == 30
    assert len(Identity("train", size=40)) == 38
    write_conversations(base_dir / "identity_conversations.jsonl", generate_conversations(7))
    assert list(Identity("all", size=30)) == generate_conversations(7)
    other = write_conversations(base_dir / "other.jsonl", generate_conversations(5, seed=3))
    assert list(Identity("all", path=other)) == generate_conversations(5, seed=3)
