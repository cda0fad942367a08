"""Evaluation of chat tasks: models with known answers, any batch size, cut prompts, one process and two."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.common import UserError
from nanochat.engine import Completion, Engine
from nanochat.eval.task_eval import CHAT_CORE, chat_core, choose_rows, evaluate_chat_task, letter_ids
from nanochat.eval.task_result import TaskResult
from nanochat.gpt import GPT
from nanochat.layers.sampling_params import SamplingParams
from nanochat.reporting.schema import proportion
from nanochat.runtime import Runtime
from nanochat.tokenization.chat_format import Conversation
from tasks.common import Task, make_conversation, make_multiple_choice
from tests.support.generation_paths import DECODE_BATCH, use_path
from tests.support.models import constant_model, random_model
from tests.support.precision import recorded_precision
from tests.support.processes import Forker
from tests.support.talks import TOKENIZER

RUNTIME = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 0)


def make_model() -> GPT:
    """A model with random weights."""
    return random_model(128, scale=1.0, n_head=2, n_kv_head=2)


def model_that_says(character: str) -> GPT:
    """A model that generates one character without end."""
    return constant_model(128, ord(character))


class ListTask(Task):
    """A task of given conversations. A completion is correct if it is the last message; `completions` collects all."""

    def __init__(self, conversations: Sequence[Conversation]) -> None:
        super().__init__()
        self.conversations = list(conversations)
        self.completions: list[tuple[str, str]] = []  # first message, completion
        self.name = "ListTask"
        self.eval_type = "categorical" if conversations and "letters" in conversations[0] else "generative"

    def num_examples(self) -> int:
        return len(self.conversations)

    def get_example(self, index: int) -> Conversation:
        return self.conversations[index]

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        self.completions.append((conversation["messages"][0]["content"], completion))
        return completion == conversation["messages"][-1]["content"]


def choice_task(num: int, seed: int = 0) -> ListTask:
    """A task of multiple-choice questions of different lengths, each with three to five letters."""
    rng = random.Random(seed)
    rows = []
    for i in range(num):
        options = ["yes", "no", "may", "be", "so"][: rng.randint(3, 5)]
        rows.append(make_multiple_choice(f"{i}" * rng.randint(1, 12), options, rng.randrange(len(options))))
    return ListTask(rows)


def question_task(num: int) -> ListTask:
    """A task of questions of different lengths, whose answers are all BBBB."""
    return ListTask([make_conversation("?" * (1 + 7 * i % 20), "BBBB") for i in range(num)])


GREEDY = SamplingParams(temperature=0.0, max_tokens=4)


def evaluate(
    task: Task,
    model: GPT,
    runtime: Runtime = RUNTIME,
    max_examples: int | None = None,
    batch_size: int = 8,
    max_tokens: int = 4,
) -> TaskResult:
    """Evaluate with greedy decoding."""
    params = replace(GREEDY, max_tokens=max_tokens)
    return evaluate_chat_task(task, Engine(model, TOKENIZER), params, runtime, max_examples, batch_size)


# --- categorical tasks ------------------------------------------------------------------------------------------------


def test_the_most_likely_of_the_problems_letters_is_chosen() -> None:
    """Compared with a forward pass over each prompt alone."""
    task = choice_task(40)
    model = make_model()
    with torch.inference_mode():
        expected = []
        for conversation in task:
            ids = TOKENIZER.render_for_completion(conversation)
            logits: Tensor = model(torch.tensor([ids]))[0, -1]
            best = max(conversation["letters"], key=lambda letter, row=logits: float(row[ord(letter)]))
            expected.append(int(best == conversation["messages"][-1]["content"]))
    result = evaluate(task, model)
    assert result.num_correct == expected
    assert 5 < sum(expected) < 35
    letters = [len(conversation["letters"]) for conversation in task]
    assert set(letters) == {3, 4, 5}
    assert result.chance == pytest.approx(sum(1 / count for count in letters) / 40)


def test_letters_are_compared_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in TF32. Generation, which compares no losses, is left as it is."""
    use_path(DECODE_BATCH, monkeypatch)
    with recorded_precision() as precisions:
        evaluate(choice_task(10), make_model())
    assert precisions == {"highest"}
    with recorded_precision() as precisions:
        evaluate(question_task(2), make_model())
    assert precisions == {"high"}


def test_a_letter_that_the_problem_does_not_have_is_never_chosen() -> None:
    """A model that prefers E: in a problem without E the other letters are equally likely, and the first is chosen."""
    result = evaluate(choice_task(40), model_that_says("E"))
    answers = [c["messages"][-1]["content"] for c in choice_task(40)]
    assert result.num_correct == [
        int(answer == ("E" if "E" in c["letters"] else "A")) for answer, c in zip(answers, choice_task(40), strict=True)
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    model = make_model()
    expected = evaluate(choice_task(30), model).num_correct
    assert evaluate(choice_task(30), model, batch_size=batch_size).num_correct == expected
    texts: list[list[Any]] = []
    for size in (batch_size, 8):
        task = ListTask([make_conversation("?" * i, "") for i in range(1, 12)])
        evaluate(task, model, batch_size=size)
        texts.append(sorted(task.completions))
    assert texts[0] == texts[1]
    assert len(texts[0]) == 11
    assert len({text for _, text in texts[0]}) > 3, "the answers differ, so a mix-up would be seen"


def test_random_weights_are_near_chance() -> None:
    result = evaluate(choice_task(600, seed=5), make_model())
    low, high = result.interval
    assert low - 0.05 < result.chance < high + 0.05


def test_a_letter_must_be_a_single_token() -> None:
    assert letter_ids(TOKENIZER, {"B", "A"}) == {"A": 65, "B": 66}
    task = ListTask([{**make_conversation("1 or 10?", "10"), "letters": ("1", "10")}])
    with pytest.raises(UserError, match="'10' is 2 tokens"):
        evaluate(task, make_model())


# --- generative tasks -------------------------------------------------------------------------------------------------


def test_completions_are_make_result() -> None:
    """Up to `max_tokens`, and without the end token: a completion that ends at once is empty."""
    result = evaluate(question_task(5), model_that_says("B"))
    assert (result.num_correct, result.accuracy, result.num_examples) == ([1] * 5, 1.0, 5)
    assert result.chance == 0
    assert evaluate(question_task(5), model_that_says("B"), max_tokens=3).num_correct == [0] * 5
    assert (
        evaluate(
            ListTask([make_conversation("?", "")] * 3),
            constant_model(128, TOKENIZER.encode_special("<|assistant_end|>")),
        ).num_correct
        == [1] * 3
    )


class PreparedEngine(Engine):
    """An engine that returns prepared completions, in turn. `calls` has the settings of each call."""

    def __init__(self, completions: list[Completion]) -> None:
        super().__init__(make_model(), TOKENIZER)
        self.prepared = completions
        self.calls: list[dict[str, Any]] = []
        self.prompt_lens: list[int] = []

    def generate_many(  # type: ignore[override]
        self, prompts: Sequence[list[int]], params: SamplingParams, *, batch_size: int
    ) -> list[list[Completion]]:
        self.prompt_lens += map(len, prompts)
        self.calls.append({"prompts": len(prompts), "params": params, "batch_size": batch_size})
        return [[self.prepared.pop(0) for _ in range(params.num_samples)] for _ in prompts]


def make_completion(text: str, has_ended: bool = True, is_tool_output: bool = False) -> Completion:
    """A completion of this text, which can begin with a token that the tool forced."""
    ids = TOKENIZER.encode(text)
    if is_tool_output:
        ids = [TOKENIZER.encode_special("<|output_start|>"), *ids]
    end = [TOKENIZER.encode_special("<|assistant_end|>")] if has_ended else []
    return Completion(
        tokens=ids + end, mask=[int(not is_tool_output), *[1] * (len(ids) - 1 + len(end))], has_ended=has_ended
    )


def test_samples_and_tool_calls_are_counted() -> None:
    """A problem is solved by any of its samples. A tool call counts if its result was forced, not if it was sampled."""
    sampled_output = replace(make_completion("x", is_tool_output=True), mask=[1, 1, 1])
    prepared = [
        make_completion("no"),
        make_completion("yes"),
        make_completion("yes"),
        make_completion("yes", has_ended=False),
    ]
    prepared += [make_completion("no", is_tool_output=True), sampled_output, *[make_completion("no")] * 4]
    engine = PreparedEngine(prepared)
    task = ListTask([make_conversation("?", "yes")] * 5)
    params = SamplingParams(temperature=0.5, top_k=9, max_tokens=7, num_samples=2)
    result = evaluate_chat_task(task, engine, params, RUNTIME, batch_size=4)
    assert result.num_correct == [1, 2, 0, 0, 0]
    assert result.correct == [True, True, False, False, False]
    assert (result.accuracy, result.num_examples, result.num_samples) == (0.4, 5, 2)
    assert (result.num_tool_calls, result.tool_share) == (1, 0.1)
    assert result.interval == tuple(proportion(2, 5)["interval"])
    assert [call["prompts"] for call in engine.calls] == [2, 2, 1], "four completions at once"
    assert len({call["params"].seed for call in engine.calls}) == 3, "each batch has its own seed"
    for call in engine.calls:
        assert (replace(call["params"], seed=42), call["batch_size"]) == (params, 4)


def test_long_prompts_lose_their_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A categorical prompt may fill the context; a generative one leaves `max_tokens`, up to a quarter of it."""
    prompts: list[list[int]] = []
    long = make_multiple_choice("z" * 300, ["a", "b"], 0)
    short = make_multiple_choice("z", ["a", "b"], 0)
    whole = TOKENIZER.render_for_completion(long)

    def hidden_states(_: GPT, ids: Tensor) -> Tensor:
        prompts.extend(ids.tolist())
        return torch.zeros(*ids.shape, 16)

    monkeypatch.setattr(GPT, "hidden_states", hidden_states)
    result = evaluate(ListTask([long, short]), make_model(), batch_size=1)
    assert result.num_cut == 1
    assert prompts[1] == [whole[0], *whole[-127:]]
    monkeypatch.undo()
    for max_tokens, reserved in ((4, 4), (1000, 32)):
        engine = PreparedEngine([make_completion("")] * 3)
        task = ListTask(
            [make_conversation("z" * count, "yes") for count in (1, 128 - reserved - 4, 128 - reserved - 3)]
        )
        cut = evaluate_chat_task(task, engine, replace(GREEDY, max_tokens=max_tokens), RUNTIME)
        assert engine.prompt_lens == [5, 128 - reserved, 128 - reserved]
        assert cut.num_cut == 1


# --- choice of examples -----------------------------------------------------------------------------------------------


def test_chosen_rows_are_spread_evenly() -> None:
    """One from each section of the rows, and of kinds that alternate about as many of each."""
    for num_rows, max_rows in ((1000, 333), (1000, 300), (1172, 1171), (7, 3), (5, 1)):
        rows = list(choose_rows(num_rows, max_rows))
        assert len(set(rows)) == max_rows
        assert [row for row in rows if not 0 <= row < num_rows] == []
        assert all(abs(row - (i + 0.5) * num_rows / max_rows) <= num_rows / max_rows + 1 for i, row in enumerate(rows))
        assert rows == list(choose_rows(num_rows, max_rows))
    assert all(80 < sum(row % 3 == kind for row in choose_rows(1000, 333)) < 142 for kind in range(3))
    assert list(choose_rows(5, 7)) == list(choose_rows(5, 5)) == list(choose_rows(5, None)) == list(range(5))


def test_the_hash_identifies_the_examples() -> None:
    model, other = make_model(), model_that_says("B")
    first = evaluate(choice_task(20), model)
    assert first.examples_hash == evaluate(choice_task(20), other).examples_hash
    assert first.examples_hash != evaluate(choice_task(20, seed=1), model).examples_hash
    assert first.examples_hash != evaluate(choice_task(20), model, max_examples=19).examples_hash
    assert evaluate(choice_task(20), model, max_examples=7).num_examples == 7


def test_a_task_without_problems() -> None:
    for task in (ListTask([]), choice_task(0)):
        result = evaluate(task, make_model())
        assert (result.num_examples, result.accuracy, result.interval, result.tool_share) == (0, 0.0, (0.0, 1.0), 0.0)


# --- ChatCORE ---------------------------------------------------------------------------------------------------------


def make_result(name: str, num_solved: int, num_examples: int, chance: float) -> TaskResult:
    num_correct = [1] * num_solved + [0] * (num_examples - num_solved)
    return TaskResult(name, num_correct, chance, baseline=chance, num_cut=0, examples_hash="", seconds=0.0)


def test_chat_core_is_the_mean_of_six_centred_accuracies() -> None:
    chances = (0.25, 0.25, 0.25, 0.0, 0.0, 0.0)
    results = [make_result(name, 55, 100, chance) for name, chance in zip(CHAT_CORE, chances, strict=True)]
    name, metric = chat_core([*results, make_result("Facts", 1, 100, 0.0)])
    assert (name, metric["n"]) == ("ChatCORE", 600)
    assert metric["value"] == pytest.approx((3 * 0.4 + 3 * 0.55) / 6)
    assert metric["interval"][0] < metric["value"] < metric["interval"][1]
    name, metric = chat_core(results[:2])
    assert (name, metric["value"]) == ("mean of centred accuracies over 2 tasks", pytest.approx(0.4))
    low, high = proportion(55, 100)["interval"]
    assert chat_core(results[:1])[1]["interval"] == pytest.approx([(low - 0.25) / 0.75, (high - 0.25) / 0.75])


# --- two processes ----------------------------------------------------------------------------------------------------


def evaluate_odd_sizes(runtime: Runtime) -> list[dict[str, Any]]:
    """Results of tasks with an odd number of examples, and with one example: the second process then has none."""
    results = [
        evaluate(choice_task(7), make_model(), runtime),
        evaluate(choice_task(1), make_model(), runtime),
        evaluate(question_task(5), model_that_says("B"), runtime),
    ]
    return [{**vars(result), "seconds": 0} for result in results]


@pytest.mark.slow
def test_two_processes_equal_one(forker: Forker, tmp_path: Path) -> None:
    forker.run_ranks(write_results, tmp_path, NANOCHAT_DTYPE="float32")
    results = [json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    assert results[0] == results[1] == evaluate_odd_sizes(RUNTIME)


def write_results(folder: Path) -> None:
    """Evaluate in one of the processes."""
    runtime = Runtime.start(device="cpu")
    (folder / f"{runtime.rank}.json").write_text(json.dumps(evaluate_odd_sizes(runtime)), encoding="utf-8")
    runtime.finish()
