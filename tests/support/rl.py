"""Small tasks with rewards, hand-made rollouts and a tiny model, for tests of reinforcement learning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat.checkpoint_manager import build_model, model_meta, open_checkpoint, save_checkpoint
from nanochat.engine import Completion
from nanochat.gpt import GPT, GPTConfig
from nanochat.rl.prompts import Prompt
from nanochat.rl.rollouts import RolloutGroup
from nanochat.rl.sft_mix import SFTRows
from nanochat.runtime import Runtime
from nanochat.tokenization.chat_format import Conversation
from tasks.common import Task, make_conversation, reference_text
from tests.support.models import random_model
from tests.support.talks import TOKENIZER

CPU = torch.device("cpu")
ONE_PROCESS = Runtime(rank=0, local_rank=0, world_size=1, device=CPU, compute_dtype=torch.float32, seed=0)
END = TOKENIZER.encode_special("<|assistant_end|>")
SHAPE = GPTConfig(sequence_len=32, vocab_size=265, n_layer=1, n_head=1, n_kv_head=1, n_embd=32)
NO_SFT_ROWS = SFTRows([], 0)

# --- tasks ------------------------------------------------------------------------------------------------------------


class QuestionTask(Task):
    """Questions and their answers; the reward of a completion is that of a function, and 1 is correct."""

    def __init__(
        self, questions: Sequence[str], answers: Sequence[str], reward: Callable[[Conversation, str], float]
    ) -> None:
        super().__init__()
        self.questions = questions
        self.answers = answers
        self.reward = reward  # type: ignore[method-assign]

    def num_examples(self) -> int:
        return len(self.questions)

    def get_example(self, index: int) -> Conversation:
        return make_conversation(self.questions[index], self.answers[index])

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return self.reward(conversation, completion) == 1


def reward_letter_and_end(conversation: Conversation, completion: str) -> float:
    """Half of the reward for the right first letter, the other half for the right answer, with nothing after it."""
    answer = reference_text(conversation)
    return 0.5 * completion.startswith(answer) + 0.5 * (completion == answer)


def reward_ascii(_: Conversation, completion: str) -> float:
    """1 for a completion that begins with a byte under 128: nearly every group has different rewards."""
    return float(completion[:1] < "\x80")


def reward_all_equally(_: Conversation, __: str) -> float:
    """0.1 for any completion: a number whose floating-point sums are not exact."""
    return 0.1


def bandit(reward: Callable[[Conversation, str], float] = reward_letter_and_end) -> QuestionTask:
    """Two questions, x with the answer b and y with the answer c."""
    return QuestionTask("xy", "bc", reward)


def numbers(count: int) -> QuestionTask:
    """The questions 0, 1, ... up to `count`, with empty answers."""
    return QuestionTask([str(index) for index in range(count)], [""] * count, reward_all_equally)


# --- rollouts ---------------------------------------------------------------------------------------------------------


def make_prompt(task_label: str, question: str, seed: int = 0) -> Prompt:
    conversation = make_conversation(question, "")
    return Prompt(task_label, conversation, TOKENIZER.render_for_completion(conversation), seed)


def make_group(task_label: str, question: str, completions: Sequence[tuple[str, float]]) -> RolloutGroup:
    """A group of (text, reward) pairs. In a text, a capital letter is a tool's output and a dot the end token.

    make_group("A", "1+1?", [("aX.", 1.0)])  ->  tokens [a, X, <|assistant_end|>], mask [1, 0, 1], reward 1
    """
    sampled = [
        Completion(
            tokens=[END if letter == "." else ord(letter) for letter in text],
            mask=[int(not letter.isupper()) for letter in text],
            has_ended=text.endswith("."),
        )
        for text, _ in completions
    ]
    return RolloutGroup(make_prompt(task_label, question), sampled, [reward for _, reward in completions])


# Completions of different lengths; tool output in the middle and at the end; equal completions; a group without a
# signal, whose tokens count; a completion that consists of tool output only, and an empty one.
GROUPS = [
    make_group("A", "one", [("ab.", 1.0), ("abXYcd.", 0.0), ("ab.", 1.0), ("efghij", 0.0), ("", 0.0)]),
    make_group("B", "a longer one", [("kk.", 1.0), ("l.", 1.0), ("mZ", 1.0)]),
    make_group("A", "?", [("n.", 0.25), ("opPPq.", 1.0), ("R", 0.5)]),
    make_group("B", "two", [("st.", -1.0), ("st.", -1.0), ("uvw.", 2.0)]),
]


# --- models and runs --------------------------------------------------------------------------------------------------


def tiny_model() -> GPT:
    return random_model(SHAPE.sequence_len, n_embd=SHAPE.n_embd)


def save_sft_model(base_dir: Path, **facts: Any) -> None:
    """Save a tokenizer and an untrained SFT checkpoint, which gives all tokens the same probability.

    `facts`: further members of its meta.json.
    """
    TOKENIZER.save(base_dir / "tokenizer")
    model = build_model(SHAPE, ONE_PROCESS)
    meta = model_meta(model, ONE_PROCESS, TOKENIZER) | {"data_hash": "", "settings": {}} | facts
    save_checkpoint(base_dir / "chatsft_checkpoints" / "d1", 7, model.state_dict(), {}, meta)


def load_rl_weights(base_dir: Path, step: int = -1) -> dict[str, Tensor]:
    return open_checkpoint(base_dir / "chatrl_checkpoints" / "d1", step).load_weights()


def are_equal(tensors: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    """A row of a history without what a clock has measured."""
    return {name: value for name, value in row.items() if not name.endswith("seconds")}
