"""WorldChat: strangers, system messages, numbers of turns, stories."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from nanochat.common import UserError
from nanochat.data.storyworld.world import CHARACTERS
from tasks.world.chat import MAX_STORY_CHARS
from tasks.world.common import facts_in_split
from tests.support.world_tasks import CHAT_TASK, HELD_OUT_FACTS, chat_conversations, contents, past_sentences


@pytest.mark.slow
def test_answers_admit_not_to_know_strangers() -> None:
    with_strangers = [row for row in chat_conversations() if "do not know" in json.dumps(row["messages"])]
    assert 0.02 < len(with_strangers) / len(chat_conversations()) < 0.15
    for row in with_strangers:
        for answer in contents(row, "assistant"):
            if match := re.search(r"do not know (?:anyone called )?(\w+ )?(\w+)\.", answer):
                title, name = match[1] or "", match[2]
                assert name not in CHARACTERS
                assert f"{title}{name}" in " ".join(contents(row, "user"))


def test_some_conversations_have_a_system_message_and_many_have_several_turns() -> None:
    conversations = chat_conversations()
    num_system = sum(row["messages"][0]["role"] == "system" for row in conversations)
    num_turns = Counter(len(contents(row, "user")) for row in conversations)
    assert 0.1 < num_system / len(conversations) < 0.3
    assert set(num_turns) >= {1, 2, 3, 4}
    assert max(num_turns) <= 5


def test_conversations_have_no_score() -> None:
    with pytest.raises(UserError, match="WorldChat has no score"):
        CHAT_TASK.evaluate(chat_conversations()[0], "")


def test_stories_state_no_held_out_fact() -> None:
    stories = [answer for row in chat_conversations() for answer in contents(row, "assistant") if "\n\n" in answer]
    assert len(stories) > 200
    assert max(map(len, stories)) <= MAX_STORY_CHARS
    text = "\n".join(stories)
    assert not [fact for fact in HELD_OUT_FACTS if any(sentence in text for sentence in past_sentences(fact))]
    assert sum(any(sentence in text for sentence in past_sentences(fact)) for fact in facts_in_split("train")) > 10
