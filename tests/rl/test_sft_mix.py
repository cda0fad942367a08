"""SFT rows of each step: in order, over and over, shared by the processes."""

from __future__ import annotations

from dataclasses import replace

from nanochat.rl.sft_mix import SFTMix, load_sft_mix
from tasks.common import Conversation, FreshRows, Task, TaskMixture, make_conversation
from tests.support.rl import NO_SFT_ROWS, ONE_PROCESS
from tests.support.talks import TOKENIZER


class CustomTalks(Task):
    """A task with these conversations."""

    def __init__(self, talks: list[Conversation]) -> None:
        super().__init__()
        self.talks = talks

    def num_examples(self) -> int:
        return len(self.talks)

    def get_example(self, index: int) -> Conversation:
        return self.talks[index]


def test_rows_of_a_step() -> None:
    conversations = [make_conversation("x", letter * 3) for letter in "abcde"]
    conversations.append(make_conversation("x" * 40, "b"))  # does not fit into 20 tokens
    mix = SFTMix(conversations, [], 4, TOKENIZER, 20)
    letters = [[chr(ids[-2]) for ids, _ in mix.rows_of_step(step, ONE_PROCESS).rows] for step in range(4)]
    assert letters == [["a", "b", "c", "d"], ["e", "a", "b"], ["c", "d", "e"], ["a", "b", "c", "d"]]

    ranks = [replace(ONE_PROCESS, rank=rank, world_size=2) for rank in range(2)]
    shares = [mix.rows_of_step(0, runtime) for runtime in ranks]
    whole = mix.rows_of_step(0, ONE_PROCESS)
    assert [share.num_tokens for share in shares] == [whole.num_tokens] * 2 == [16, 16]
    assert sorted(shares[0].rows + shares[1].rows) == sorted(whole.rows)


def test_fresh_rows() -> None:
    """A part of the mixture that has other rows in each pass has them here too."""
    letters = CustomTalks([make_conversation("x", letter * 3) for letter in "abcdefg"])
    mix = SFTMix(TaskMixture([FreshRows(letters, 3)]), [], 3, TOKENIZER, 20)
    steps = [{chr(ids[-2]) for ids, _ in mix.rows_of_step(step, ONE_PROCESS).rows} for step in range(3)]
    assert steps == [set("abc"), set("def"), set("gab")]


def test_no_sft_mix() -> None:
    mix = load_sft_mix(0, None, 42, TOKENIZER, 20)
    assert mix.rows_of_step(3, ONE_PROCESS) == NO_SFT_ROWS


def test_hash() -> None:
    conversations = [make_conversation("x", "a")]
    assert SFTMix(conversations, [], 4, TOKENIZER, 20).hash() != SFTMix(conversations, [], 5, TOKENIZER, 20).hash()
