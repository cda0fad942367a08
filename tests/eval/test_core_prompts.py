"""CORE's prompts: few-shot examples, spaces at the border, categories, and truncation of ids."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.eval.core_bundle import read_bundle
from nanochat.eval.core_prompts import CoreExample, CoreTask, encode_example
from tests.support.bundles import write_hand_bundle
from tests.support.talks import BOS, TOKENIZER

CATEGORIES = ("history", "words", "history", "science", "words", "history")


def quiz(categories: tuple[str, ...] = CATEGORIES, num_fewshot: int = 1) -> CoreTask:
    """A task in which each context begins with its category."""
    examples = tuple(CoreExample(((f"{name} {i}", "x"),)) for i, name in enumerate(categories or CATEGORIES))
    return CoreTask("quiz", "language_modeling", num_fewshot, " ", 0.0, examples, categories)


def test_few_shot_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Few-shot examples are others of the task, without repetition, formatted like the question, and deterministic."""
    bundle = read_bundle(write_hand_bundle(tmp_path / "bundle", 2, "\nAnswer: "))
    assert capsys.readouterr().out == ""
    choice, schema, words = bundle.tasks
    contexts = set()
    for seed in range(40):
        prompts = choice.prompts(0, seed)
        assert choice.prompts(0, seed) == prompts
        assert [continuation for _, continuation in prompts] == [" a", " ccc"]
        assert prompts[0][0] == prompts[1][0]
        contexts.add(prompts[0][0])
    pairs = [("a", "d"), ("d", "a"), ("d", "d")]  # two of the three others, whose gold options are "a", "d" and "d"
    assert contexts == {f"Q\nAnswer: {first}\nQ\nAnswer: {second}\nQ\nAnswer:" for first, second in pairs}
    first, second = (context for context, _ in schema.prompts(0, 42))
    assert (first[-10:], second[-10:]) == ("ky\nAnswer:", "kx\nAnswer:")
    assert first[:-10] == second[:-10]
    assert first[:-10] in {"a longer one, y\nAnswer: k\ny\nAnswer: k\n", "y\nAnswer: k\na longer one, y\nAnswer: k\n"}
    contexts = {words.prompts(0, seed)[0][0] for seed in range(40)}
    assert len(contexts) == 6  # ordered pairs of three
    assert all("L\nAnswer: ok\n" not in context for context in contexts)


def test_too_few_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = read_bundle(write_hand_bundle(tmp_path / "bundle", 3))
    assert capsys.readouterr().out == "schema: its prompts should have 3 examples, but the task has only 2 others\n"
    assert [len(task.fewshot_examples(1, 42)) for task in bundle.tasks] == [3, 2, 3]


def test_spaces_belong_to_the_continuation() -> None:
    task = CoreTask("t", "multiple_choice", 0, " ", 0.0, (CoreExample((("Answer: ", "A"), ("Answer: ", "B"))),))
    assert task.prompts(0, 1) == [("Answer:", "  A"), ("Answer:", "  B")]


def test_few_shot_examples_are_of_the_category() -> None:
    """Over many seeds all others of the category, and never the question itself; at most as many as there are."""
    task = quiz()
    for index, name in enumerate(CATEGORIES):
        drawn = {example.options[0][0] for seed in range(60) for example in task.fewshot_examples(index, seed)}
        assert drawn == {f"{name} {other}" for other, same in enumerate(CATEGORIES) if same == name and other != index}
    assert task.max_fewshot == 0, "there is one question about science"
    assert [len(quiz(num_fewshot=9).fewshot_examples(index, 1)) for index in range(6)] == [2, 1, 2, 0, 1, 2]


def test_without_categories_nothing_changes() -> None:
    """One category for all examples gives the same few-shot examples, in the same order, as no categories."""
    plain = quiz((), 3)
    same = quiz(("all",) * 6, 3)
    assert plain.max_fewshot == same.max_fewshot == 5
    for index in range(6):
        numbers = [
            [example.options[0][0][-1] for example in task.fewshot_examples(index, 42)] for task in (plain, same)
        ]
        assert numbers[0] == numbers[1]


def test_all_options_lose_the_same_tokens() -> None:
    """Each option loses as many tokens after `<|bos|>` as the longest one has too many; the continuation is kept."""
    texts = [("0123456789", " ok"), ("01234567", " ok")]
    example = encode_example(texts, TOKENIZER, 9, 0)
    assert example.is_truncated
    assert example.max_input_len == 9
    assert example.options == [([BOS, *b"456789", *b" ok"], 3), ([BOS, *b"4567", *b" ok"], 3)]
    fits = encode_example(texts, TOKENIZER, 13, 0)
    assert (fits.is_truncated, fits.max_input_len) == (False, 13)
    assert fits.options[1] == ([BOS, *b"01234567", *b" ok"], 3)
    too_long = encode_example([("012", " 3456789"), ("012", " 3")], TOKENIZER, 5, 0)
    assert too_long.options == [([BOS, *b"56789"], 5), ([BOS, *b" 3"], 2)]
