"""CORE's tasks as prompts: from a row of the bundle to the texts and the token ids of its options.

Every example becomes one or more options, each a (context, continuation). A model gives each option a score: the mean
loss of the continuation's tokens, and whether greedy decoding would write the continuation. The three types of task:

    multiple_choice    one context, several continuations; correct if the gold option has the lowest loss
        row       {"query": "Ice is", "choices": ["cold", "hot"], "gold": 0}
        options   ("Ice is", " cold"), ("Ice is", " hot")
        scores    loss 1.2, loss 3.4  ->  option 0 is the lowest: correct

    schema             several contexts, one continuation; correct if the gold option has the lowest loss
        row       {"context_options": ["Ann thanked Bob because Ann", "Ann thanked Bob because Bob"],
                   "continuation": "had helped", "gold": 1}
        options   ("Ann thanked Bob because Ann", " had helped"), ("Ann thanked Bob because Bob", " had helped")
        scores    loss 2.5, loss 2.1  ->  option 1 is the lowest: correct

    language_modeling  one option; correct if each token of the continuation is the most likely one
        row       {"context": "To be or not to", "continuation": "be"}
        options   ("To be or not to", " be")
        scores    is_greedy True  ->  correct

`CoreTask.prompts` makes the texts, `encode_example` the ids, `nanochat.eval.core_scorer` the scores.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from nanochat.tokenization.encoders import TextEncoder, encode_continuation

TASK_TYPES = ("multiple_choice", "schema", "language_modeling")
EXAMPLE_DELIMITER = "\n"  # between the examples of a few-shot prompt


@dataclass(frozen=True)
class CoreExample:
    """One row of a task: options as (context, continuation), and the index of the correct one.

    In multiple choice the options differ in their continuations, in a schema in their contexts. In language modeling
    there is one option.
    """

    options: tuple[tuple[str, str], ...]
    gold: int = 0


@dataclass(frozen=True)
class CoreTask:
    """A task of the bundle. `baseline`: the accuracy that counts as 0 on the centred scale.

    `categories`: one for each example, or empty. Where there are categories, the few-shot examples of a prompt are of
    the category of its question. Each example counts once, whatever its category, so the accuracy is a proportion.
    """

    label: str
    task_type: str  # one of TASK_TYPES
    num_fewshot: int
    continuation_delimiter: str  # between a context and its continuation
    baseline: float
    examples: tuple[CoreExample, ...]
    categories: tuple[str, ...] = ()

    @cached_property
    def _indices_by_category(self) -> dict[str, list[int]]:
        indices: dict[str, list[int]] = {}
        for index, category in enumerate(self.categories):
            indices.setdefault(category, []).append(index)
        return indices

    def fewshot_examples(self, index: int, seed: int) -> list[CoreExample]:
        """Return the solved examples that precede example `index`; the same ones for the same seed.

        They are drawn without replacement from the other examples of the task, or of its category.
        """
        group: Sequence[int] = range(len(self.examples))
        if self.categories:
            group = self._indices_by_category[self.categories[index]]
        position = group.index(index)
        num_others = len(group) - 1
        rng = random.Random(f"{seed} {self.label} {index}")
        chosen = rng.sample(range(num_others), min(self.num_fewshot, num_others))
        return [self.examples[group[other + (other >= position)]] for other in chosen]  # skips `position`

    @property
    def max_fewshot(self) -> int:
        """The number of few-shot examples that every prompt of the task can have."""
        sizes = map(len, self._indices_by_category.values())
        return min(sizes, default=len(self.examples)) - 1

    def prompts(self, index: int, seed: int) -> list[tuple[str, str]]:
        """Return (text before the continuation, continuation) of each option of example `index`.

        Spaces between the two belong to the continuation: tokens are words with the space before them.

        >>> ice = CoreExample((("Ice is", "cold"), ("Ice is", "hot")), gold=0)
        >>> fire = CoreExample((("Fire is", "cold"), ("Fire is", "hot")), gold=1)
        >>> task = CoreTask("t", "multiple_choice", 1, " ", 0.0, (ice, fire))
        >>> for prompt in task.prompts(0, seed=42):
        ...     print(prompt)
        ('Fire is hot\\nIce is', ' cold')
        ('Fire is hot\\nIce is', ' hot')
        """
        solved = [example.options[example.gold] for example in self.fewshot_examples(index, seed)]
        delimiter = self.continuation_delimiter
        fewshot = "".join(f"{context}{delimiter}{continuation}{EXAMPLE_DELIMITER}" for context, continuation in solved)
        prompts = []
        for context, continuation in self.examples[index].options:
            before = f"{fewshot}{context}{delimiter}"
            stripped = before.rstrip(" ")
            prompts.append((stripped, before[len(stripped) :] + continuation))
        return prompts

    @property
    def guess_probabilities(self) -> list[float]:
        """The probability of each example that a guess is correct; 0 in language modeling."""
        if self.task_type == "language_modeling":
            return [0.0] * len(self.examples)
        return [1 / len(example.options) for example in self.examples]


class EncodedOption(NamedTuple):
    """Token ids of an option. The last `continuation_len` of them are the continuation."""

    ids: list[int]
    continuation_len: int


@dataclass
class EncodedExample:
    """An example as token ids. `index`: its position among all examples that are scored."""

    index: int
    options: list[EncodedOption]
    is_truncated: bool  # tokens were removed to fit into the context

    @cached_property
    def prefix_len(self) -> int:
        """Number of tokens that all options begin with, at most up to the last one before a continuation.

        The last token before a continuation is left out because its output predicts the continuation's first token.
        A single option shares nothing: 0.

        >>> options = [EncodedOption([1, 2, 3, 4, 5], 1), EncodedOption([1, 2, 3, 4, 6, 7], 2)]
        >>> EncodedExample(0, options, False).prefix_len
        3
        """
        if len(self.options) == 1:
            return 0
        contexts = [ids[: len(ids) - continuation_len - 1] for ids, continuation_len in self.options]
        for position, tokens in enumerate(zip(*contexts, strict=False)):
            if len(set(tokens)) > 1:
                return position
        return min(map(len, contexts))

    @property
    def max_input_len(self) -> int:
        """Number of tokens that the model reads of the longest option: all but the last, which is only predicted."""
        return max(len(ids) for ids, _ in self.options) - 1


def encode_example(
    texts: Sequence[tuple[str, str]], tokenizer: TextEncoder, context_len: int, index: int
) -> EncodedExample:
    """Encode an example's (context, continuation) texts, each after `<|bos|>`.

    If the longest option has more than `context_len` tokens to read, every option loses the same number of tokens
    after `<|bos|>`, so that what options share stays shared. A continuation that does not fit by itself keeps its end.

    >>> from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer
    >>> special = {name: 256 + i for i, name in enumerate(SPECIAL_TOKENS)}
    >>> byte_tokens = Tokenizer(SPLIT_PATTERN, {bytes([byte]): byte for byte in range(256)}, special)
    >>> encode_example([("A", " b"), ("A", " c")], byte_tokens, context_len=9, index=0).options
    [EncodedOption(ids=[256, 65, 32, 98], continuation_len=2), EncodedOption(ids=[256, 65, 32, 99], continuation_len=2)]
    """
    contexts = list(dict.fromkeys(context for context, _ in texts))  # equal ones are encoded once
    encoded = dict(zip(contexts, tokenizer.encode(contexts), strict=True))
    pairs = [encode_continuation(tokenizer, context, encoded[context], continuation) for context, continuation in texts]
    # Read: <|bos|> and all ids but the last one, which is only predicted.
    num_excess = max(len(context_ids) + len(continuation_ids) for context_ids, continuation_ids in pairs) - context_len
    options = []
    for context_ids, continuation_ids in pairs:
        continuation_ids = continuation_ids[-context_len:]
        ids = [tokenizer.get_bos_token_id(), *context_ids[max(0, num_excess) :], *continuation_ids]
        options.append(EncodedOption(ids, len(continuation_ids)))
    return EncodedExample(index, options, num_excess > 0)
