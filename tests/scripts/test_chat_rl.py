"""Reinforcement learning: a bandit, the gradient by hand, what carries none, many processes, resume, pass@k."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from nanochat.checkpoint_manager import build_model, load_model, model_meta, open_checkpoint, save_checkpoint
from nanochat.common import StoppedBySignal, UserError
from nanochat.configurator import parse
from nanochat.engine import Completion, Engine
from nanochat.gpt import GPT, GPTConfig
from nanochat.layers.sampling_params import SamplingParams
from nanochat.optim import Optimizer, build_optimizer
from nanochat.rl import loop, prompts
from nanochat.rl.loop import policy_gradient_step
from nanochat.rl.prompts import Prompt, PromptSampler, parse_task_weights
from nanochat.rl.rollouts import RolloutGroup, count_outcomes, rollout, rollout_batches
from nanochat.rl.sft_mix import SFTMix, SFTRows
from nanochat.runtime import Runtime
from nanochat.tokenization.chat_format import Conversation
from nanochat.train import Rates
from scripts.chat_rl import Config, main
from tasks.common import Task, make_conversation, reference_text
from tests.support.models import random_model
from tests.support.processes import Forker
from tests.support.talks import TOKENIZER

ROOT = Path(__file__).resolve().parents[2]
NOTHING = SFTRows([], 0)
CPU = torch.device("cpu")
ALONE = Runtime(rank=0, local_rank=0, world_size=1, device=CPU, compute_dtype=torch.float32, seed=0)
END = TOKENIZER.encode_special("<|assistant_end|>")
SHAPE = GPTConfig(sequence_len=32, vocab_size=265, n_layer=1, n_head=1, n_kv_head=1, n_embd=32)
RUN: dict[str, Any] = {
    "tasks": "Bandit",
    "device": "cpu",
    "examples_per_step": 4,
    "num_samples": 256,
    "max_new_tokens": 2,
    "num_iterations": 40,
    "init_lr_frac": 1.0,
    "warmdown_ratio": 0.2,
    "eval_every": -1,
    "eval_samples": 4,
    "device_batch_size": 256,
}


class Bandit(Task):
    """Questions whose right answers are known, x: b and y: c, and then an end. The letter alone is half the reward."""

    name = "Bandit"

    def num_examples(self) -> int:
        return 2

    def get_example(self, index: int) -> Conversation:
        return make_conversation("xy"[index], "bc"[index])

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return completion == reference_text(conversation)

    def reward(self, conversation: Conversation, completion: str) -> float:
        right = reference_text(conversation)
        return 0.5 * completion.startswith(right) + 0.5 * (completion == right)


class Halves(Bandit):
    """Right is what begins with a byte under 128: nearly every group has better and worse answers."""

    def evaluate(self, _: Conversation, completion: str) -> bool:
        return completion[:1] < "\x80"

    def reward(self, conversation: Conversation, completion: str) -> float:
        return float(self.evaluate(conversation, completion))


class Indifferent(Bandit):
    """Whatever is said is worth the same, a number that a sum of floats does not hit."""

    name = "Indifferent"

    def reward(self, _: Conversation, __: str) -> float:
        return 0.1


TASKS: dict[str, Callable[..., Task]] = {"Bandit": Bandit, "Indifferent": Indifferent}


def get_task(name: str, split: str, **rows: int) -> Task:
    assert split in ("train", "test")
    return TASKS[name](**rows)


def prepare(folder: Path) -> None:
    """A tokenizer and an sft checkpoint, which finds all tokens alike, in a base folder."""
    TOKENIZER.save(folder / "tokenizer")
    model = build_model(SHAPE, ALONE)
    meta = model_meta(model, ALONE, TOKENIZER) | {"data_hash": "", "settings": {}}
    save_checkpoint(folder / "chatsft_checkpoints" / "d1", 7, model.state_dict(), {}, meta)


@pytest.fixture
def run(run_here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Call the script, with other settings than RUN's where given."""
    prepare(run_here)
    monkeypatch.setattr(prompts, "get_task", get_task)
    return lambda **changes: main(Config(**{**RUN, **changes}))


def weights_of(folder: Path, step_number: int = -1) -> dict[str, Tensor]:
    return open_checkpoint(folder / "chatrl_checkpoints" / "d1", step_number).load_weights()


# --- runs -------------------------------------------------------------------------------------------------------------


def test_finds_the_right_policy(run: Callable[..., Any], run_here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From one answer in 265 x 265 to nearly all: the letter by the question, and the end token, sampled as well."""
    state = run(eval_every=40, eval_samples=16)
    measured = [(row["step"], row["Bandit pass@1"]) for row in state.history if "Bandit pass@1" in row]
    assert [number for number, _ in measured] == [0, 40]
    assert measured[0][1] < 0.05
    assert measured[1][1] > 0.95
    model = load_model("rl", ALONE)[0]
    prompt = TOKENIZER.render_for_completion(make_conversation("y", ""))
    assert list(model.generate(prompt, 2, temperature=0)) == [ord("c"), END]
    section = json.loads((run_here / "report" / "chat_rl.json").read_text(encoding="utf-8"))
    assert section["model"] == "rl"
    assert section["metrics"]["Bandit pass@1"]["value"] == measured[1][1]
    assert section["metrics"]["Bandit pass@1"]["n"] == 2
    assert len(section["curves"]["Bandit"]["x"]) == 40
    assert section["notes"]
    assert "Bandit: pass@1" in capsys.readouterr().out


SHORT = {"num_samples": 8, "num_iterations": 6, "warmdown_ratio": 1.0, "eval_samples": 2}


@pytest.mark.parametrize("how", ["at a step of its own", "by a signal"])
def test_resume_is_exact(run: Callable[..., Any], run_here: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """6 steps = 3 steps, a checkpoint, and 3 more: weights, optimizer and history, to the last bit."""
    monkeypatch.setitem(TASKS, "Bandit", Halves)
    whole = run(**SHORT, eval_every=2, save_every=3)
    weights, first = weights_of(run_here), weights_of(run_here, 3)
    optimizer = open_checkpoint(run_here / "chatrl_checkpoints" / "d1").load_optimizer_state()
    assert any((weights[name] != first[name]).any() for name in weights)
    if how == "by a signal":
        plain = loop.policy_gradient_step

        def signalled(*args: Any, **options: Any) -> Any:
            if len(steps) == 2:
                signal.raise_signal(signal.SIGINT)
            steps.append(1)
            return plain(*args, **options)

        steps: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(loop, "policy_gradient_step", signalled)
            with pytest.raises(StoppedBySignal, match=r"step 3 of 6.*chat_rl .*--resume"):
                run(**SHORT, eval_every=2)
        again = run(**SHORT, eval_every=2, resume=True)
    else:
        again = run(**SHORT, eval_every=2, resume_from_step=3)
    assert same(weights_of(run_here), weights)
    assert same(open_checkpoint(run_here / "chatrl_checkpoints" / "d1").load_optimizer_state(), optimizer)
    assert [without_times(row) for row in again.history] == [without_times(row) for row in whole.history]


def without_times(row: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if not name.endswith("seconds")}


def same(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(torch.equal(some[name], others[name]) for name in some)


def test_other_problems_are_no_way_to_resume(run: Callable[..., Any]) -> None:
    run(**SHORT | {"num_iterations": 1})
    with pytest.raises(UserError, match="other data"):
        run(**SHORT, tasks="Bandit|Indifferent", resume=True)


def test_nothing_to_choose_nothing_learnt(run: Callable[..., Any], run_here: Path) -> None:
    """All rewards equal: not a weight moves, and no figure is NaN."""
    state = run(**SHORT, tasks="Indifferent")
    before = open_checkpoint(run_here / "chatsft_checkpoints" / "d1").load_weights()
    assert same(weights_of(run_here), before)
    steps = [row for row in state.history if "reward" in row]
    assert len(steps) == 6
    assert all(value == value for row in steps for value in row.values())
    assert {(row["signal"], row["grad_norm"]) for row in steps} == {(0, 0)}


def test_momentum_waits_for_a_signal() -> None:
    """Momentum from earlier steps does not move them either."""
    model = tiny_model()
    optimizer = build_optimizer(model, ALONE)
    rates = Rates(1.0, 0.9)
    policy_gradient_step(model, optimizer, GROUPS, NOTHING, rates, lambda: 0, ["A", "B"], 4)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    metrics, _ = policy_gradient_step(model, optimizer, [GROUPS[1]], NOTHING, rates, lambda: 0, ["A", "B"], 4)
    assert same(dict(model.state_dict()), before)
    assert metrics["signal"] == 0


# --- the gradient -----------------------------------------------------------------------------------------------------


def group_of(task: str, prompt: str, answers: Sequence[tuple[str, float]]) -> RolloutGroup:
    """`answers`: what was said, and its reward. A capital letter comes from the tool; a dot is the end token."""
    rl_prompt = Prompt(
        task, make_conversation(prompt, ""), TOKENIZER.render_for_completion(make_conversation(prompt, "")), 0
    )
    written = [
        Completion(
            [END if c == "." else ord(c) for c in text], [int(not c.isupper()) for c in text], text.endswith(".")
        )
        for text, _ in answers
    ]
    return RolloutGroup(rl_prompt, written, [reward for _, reward in answers])


# Different lengths; tool output in the middle and at the end; twice the same answer; a group without a signal, whose
# tokens count; an answer that only the tool has written; an answer that says nothing.
GROUPS = [
    group_of("A", "one", [("ab.", 1.0), ("abXYcd.", 0.0), ("ab.", 1.0), ("efghij", 0.0), ("", 0.0)]),
    group_of("B", "a longer one", [("kk.", 1.0), ("l.", 1.0), ("mZ", 1.0)]),
    group_of("A", "?", [("n.", 0.25), ("opPPq.", 1.0), ("R", 0.5)]),
    group_of("B", "two", [("st.", -1.0), ("st.", -1.0), ("uvw.", 2.0)]),
]


def tiny_model() -> GPT:
    return random_model(SHAPE.sequence_len, n_embd=SHAPE.n_embd)


def gradient_by_hand(model: GPT, groups: Sequence[RolloutGroup]) -> dict[str, Tensor]:
    """The formula, an answer and a token at a time: -sum of (reward - mean) x log p / number of sampled tokens."""
    total, count = torch.zeros(()), 0
    for group in groups:
        mean = sum(group.rewards) / len(group.rewards)
        for answer, reward in zip(group.completions, group.rewards, strict=True):
            for i, (token, mask) in enumerate(zip(answer.tokens, answer.mask, strict=True)):
                if mask:
                    before = torch.tensor([group.prompt.token_ids + answer.tokens[:i]])
                    total = total - (reward - mean) * torch.log_softmax(model(before)[0, -1], dim=-1)[token]
                    count += 1
    names, params = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(total / count, params), strict=True))


def gradient_of_step(
    model: GPT, groups: Sequence[RolloutGroup], batch_size: int, worked: SFTRows = NOTHING
) -> dict[str, Tensor]:
    """What `step` hands to the optimizer."""
    optimizer, seen = build_optimizer(model, ALONE), {}

    def spy(*_: float) -> Tensor:
        seen.update({name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None})
        return torch.zeros(())

    optimizer.step = spy  # type: ignore[method-assign,assignment]
    policy_gradient_step(model, optimizer, groups, worked, Rates(1.0, 0.9), lambda: 0, ["A", "B"], batch_size)
    return seen


@pytest.mark.parametrize("batch_size", [1, 3, 6, 100])  # 11 different answers: 11, 4, 2 and 1 micro-batches
def test_the_gradient_is_the_formula(batch_size: int) -> None:
    model = tiny_model()
    expected = gradient_by_hand(model, GROUPS)
    found = gradient_of_step(model, GROUPS, batch_size)
    assert found.keys() == expected.keys()
    for name in expected:
        assert expected[name].abs().max() > 1e-4
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_worked_conversations_add_their_mean_loss(batch_size: int) -> None:
    model = tiny_model()
    conversations = [
        make_conversation("x", "bbbb"),
        make_conversation("y", [{"type": "python", "text": "1"}, {"type": "text", "text": "c"}]),
    ]
    rows = [TOKENIZER.render_conversation(conversation) for conversation in conversations]
    total, count = torch.zeros(()), 0
    for ids, mask in rows:
        for place in range(1, len(ids)):
            if mask[place]:
                total = total - torch.log_softmax(model(torch.tensor([ids[:place]]))[0, -1], dim=-1)[ids[place]]
                count += 1
    names, params = zip(*model.named_parameters(), strict=True)
    supervised = dict(zip(names, torch.autograd.grad(total / count, params), strict=True))
    expected = gradient_by_hand(model, GROUPS)
    found = gradient_of_step(model, GROUPS, batch_size, SFTRows(rows, count))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name] + supervised[name], rtol=1e-4, atol=1e-7)


def test_what_is_replayed_in_a_step() -> None:
    conversations = [make_conversation("x", letter * 3) for letter in "abcde"] + [
        make_conversation("x" * 40, "b")
    ]  # the last does not fit
    replay = SFTMix(conversations, [], 4, TOKENIZER, 20)
    said = [[chr(ids[-2]) for ids, _ in replay.rows_of_step(number, ALONE).rows] for number in range(4)]
    assert said == [["a", "b", "c", "d"], ["e", "a", "b"], ["c", "d", "e"], ["a", "b", "c", "d"]]
    ranks = [replace(ALONE, rank=rank, world_size=2) for rank in range(2)]
    shares = [replay.rows_of_step(0, runtime) for runtime in ranks]
    whole = replay.rows_of_step(0, ALONE)
    assert [share.num_tokens for share in shares] == [whole.num_tokens] * 2 == [16, 16]
    assert sorted(shares[0].rows + shares[1].rows) == sorted(whole.rows)
    assert SFTMix([], [], 0, TOKENIZER, 20).rows_of_step(3, ALONE) == NOTHING
    assert replay.hash() != SFTMix(conversations, [], 5, TOKENIZER, 20).hash()


def test_groups_without_a_signal_count() -> None:
    """Their tokens are among those that the sum is divided by; leaving them out would be a longer step."""
    model = tiny_model()
    whole, part = (gradient_of_step(model, groups, 4)["head.weight"] for groups in (GROUPS, GROUPS[:1]))
    sampled = [sum(sum(answer.mask) for answer in group.completions) for group in GROUPS]
    assert sampled == [17, 6, 6, 10]
    alone = gradient_of_step(model, [GROUPS[0], GROUPS[1]], 4)["head.weight"]
    torch.testing.assert_close(alone * (17 + 6), part * 17, rtol=1e-4, atol=1e-7)
    assert not torch.allclose(whole, part)


def test_what_is_trained_on() -> None:
    """Every target, by name: what was sampled, the end included; not the prompt, the tool's output, or padding."""
    (batch,) = rollout_batches([group_of("A", "hi", [("abXYc.", 1.0), ("d.", 0.0)])], [], 0.0, 4, CPU)
    prompt = [TOKENIZER.encode_special(name) for name in ("<|bos|>", "<|user_start|>", "<|user_end|>")]
    start = TOKENIZER.encode_special("<|assistant_start|>")
    inputs = [*prompt[:2], ord("h"), ord("i"), prompt[2], start]
    assert batch.inputs.tolist() == [
        [*inputs, ord("d"), 0, 0, 0, 0],
        [*inputs, *map(ord, "abXYc")],
    ]
    assert batch.targets.tolist() == [
        [-1] * 5 + [ord("d"), END, -1, -1, -1, -1],
        [-1] * 5 + [ord("a"), ord("b"), -1, -1, ord("c"), END],
    ]
    assert batch.advantages.tolist() == [-0.5, 0.5]


def test_prompt_and_tool_carry_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the logits: 0 wherever the next token is not the model's, and not 0 wherever it is."""
    model, logits = tiny_model(), []

    def keep(hidden: Tensor) -> Tensor:
        logits.append(GPT.logits(model, hidden))
        logits[-1].retain_grad()
        return logits[-1]

    monkeypatch.setattr(model, "logits", keep)
    group = group_of("A", "hi", [("abXYc.", 1.0), ("d.", 0.0)])
    gradient_of_step(model, [group], 1)
    sizes = [part.grad.abs().sum(-1).flatten() for part in logits if part.grad is not None]
    trained = [[5, 6], [5, 6, 9, 10]]  # positions before the sampled tokens; the prompt has 6
    assert [torch.nonzero(size).flatten().tolist() for size in sizes] == trained


def test_none_is_lost() -> None:
    """Answers that divide neither by the micro-batch nor by what the engine writes at once: all are trained on."""
    engine = Engine(tiny_model(), TOKENIZER)
    problems = [
        Prompt("A", make_conversation(q, ""), TOKENIZER.render_for_completion(make_conversation(q, "")), i)
        for i, q in enumerate("abc")
    ]
    groups = rollout(
        engine, problems, SamplingParams(num_samples=5, max_tokens=4), lambda _, text: len(text) + 1.0, batch_size=7
    )
    assert [group.prompt for group in groups] == problems
    assert [len(group.completions) for group in groups] == [5, 5, 5]
    assert [len(set(map(str, group.completions))) for group in groups] == [5, 5, 5]
    groups = [RolloutGroup(group.prompt, group.completions, [1.0, 0, 0, 0, 0]) for group in groups]
    for batch_size in (1, 4, 15, 16):
        batches = list(rollout_batches(groups, [], 0.0, batch_size, CPU))
        assert sum(batch.num_completions.sum().item() for batch in batches) == 15
        assert sum((batch.targets != -1).sum().item() for batch in batches) == sum(
            sum(answer.mask) for group in groups for answer in group.completions
        )


def test_answers_do_not_depend_on_what_is_asked_beside_them() -> None:
    engine = Engine(tiny_model(), TOKENIZER)
    params = SamplingParams(num_samples=3, max_tokens=6)
    problems = PromptSampler({"Bandit": Bandit()}, {"Bandit": 1.0}, TOKENIZER, seed=5).prompts_of_step(2, 7, ALONE)
    together = rollout(engine, problems, params, lambda *_: 0.0, batch_size=4)
    assert [rollout(engine, [problem], params, lambda *_: 0.0, batch_size=4)[0] for problem in problems] == together
    assert together[0].completions != together[2].completions  # the same question at another place


def test_a_problem_that_fills_the_context(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine(tiny_model(), TOKENIZER)
    problems = [
        Prompt("A", make_conversation(q, ""), TOKENIZER.render_for_completion(make_conversation(q, "")), 0)
        for q in ("x" * 40, "y")
    ]
    groups = rollout(engine, problems, SamplingParams(num_samples=2, max_tokens=3), lambda *_: 1.0)
    assert [len(group.completions) for group in groups] == [0, 2]
    assert "A has 44 tokens, the context 32" in capsys.readouterr().out
    assert count_outcomes(groups, ["A"], ALONE)["completions"] == 2
    assert not list(rollout_batches(groups, [], 0.0, 2, CPU))


# --- problems ---------------------------------------------------------------------------------------------------------


class Numbers(Bandit):
    """As many questions as it is told to have."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def num_examples(self) -> int:
        return self.count

    def get_example(self, index: int) -> Conversation:
        return make_conversation(str(index), "")


def questions(problems: Sequence[Prompt]) -> list[tuple[str, str]]:
    return [(problem.task_label, problem.conversation["messages"][0]["content"]) for problem in problems]


def test_problems_of_a_step() -> None:
    """Their weights hold in every step; each row once an epoch, in another order; no matter who asks, and when."""

    def made(seed: int = 1) -> PromptSampler:
        tasks = {"A": Numbers(6), "B": Numbers(5)}
        return PromptSampler(tasks, {"A": 0.75, "B": 0.25}, TOKENIZER, seed)

    problems = made()
    steps = [problems.prompts_of_step(number, 8, ALONE) for number in range(5)]
    for asked in steps:
        assert Counter(problem.task_label for problem in asked) == {"A": 6, "B": 2}
    epochs = [[row for task, row in questions(asked) if task == "A"] for asked in steps]
    assert all(sorted(epoch) == list("012345") for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1
    flat = [row for asked in steps for task, row in questions(asked) if task == "B"]
    assert sorted(flat[:5]) == sorted(flat[5:]) == list("01234")
    assert len({problem.seed for asked in steps for problem in asked}) == 40
    assert made().prompts_of_step(4, 8, ALONE) == steps[4]
    assert made(seed=2).prompts_of_step(4, 8, ALONE) != steps[4]
    ranks = [Runtime(rank, rank, 3, CPU, torch.float32, 0) for rank in range(3)]
    shares = [made().prompts_of_step(3, 8, runtime) for runtime in ranks]
    assert [shares[i % 3][i // 3] for i in range(8)] == steps[3]


def test_a_task_without_problems() -> None:
    with pytest.raises(UserError, match="A has no examples"):
        PromptSampler({"A": Numbers(0)}, {"A": 1.0}, TOKENIZER, 0)


@pytest.mark.parametrize(
    ("text", "weights"),
    [("A", {"A": 1.0}), ("A:3|B", {"A": 0.75, "B": 0.25}), (" A:0.5 | B:0.5 ", {"A": 0.5, "B": 0.5})],
)
def test_weights(text: str, weights: dict[str, float]) -> None:
    assert parse_task_weights(text) == weights


def test_options_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, dict[str, Any]]] = []
    monkeypatch.setattr(prompts, "get_task", lambda name, split, **options: asked.append((name, split, options)))
    prompts.open_task("Hard(shape=pair_2_1, seed=3)", "test", stop=5)
    prompts.open_task("Hard", "train")
    assert asked == [("Hard", "test", {"shape": "pair_2_1", "seed": 3, "stop": 5}), ("Hard", "train", {})]


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--num_samples=1", "num_samples is 1: it must be at least 2"),
        ("--examples_per_step=0", "examples_per_step is 0"),
        ("--eval_samples=0", "eval_samples is 0"),
        ("--top_k=0", "top_k is 0"),
        ("--temperature=0", "temperature is 0.0"),
        ("--init_lr_frac=inf", "init_lr_frac is inf"),
        ("--matrix_lr=-1", "matrix_lr is -1.0"),
        ("--warmdown_ratio=2", "warmdown_ratio is 2.0"),
        ("--save_every=0", "save_every is 0"),
        ("--source=base", "base"),
        ("--source_step=-2", "source_step is -2"),
        ("--tasks=GSM8K:none", "'GSM8K:none' is not NAME, NAME:WEIGHT"),
        ("--tasks=GSM8K:0", "'GSM8K:0' is not"),
        ("--tasks=A|A", "each once"),
        ("--tasks=A||B", "'' is not NAME"),
        ("--tasks=A(b=1", "'A(b=1' is not NAME"),
    ],
)
def test_refused(flag: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        parse(Config, [flag])


def test_without_a_model(base_dir: Path) -> None:
    TOKENIZER.save(base_dir / "tokenizer")
    with pytest.raises(UserError, match=r"no sft checkpoint in .*: run that stage first"):
        main(Config())


# --- several processes ------------------------------------------------------------------------------------------------


def one_process(folder: Path) -> None:
    """Two steps of a run with four problems: what the optimizer is to step by, and where the weights end."""
    plain, gradients = Optimizer.step, []

    def spy(self: Optimizer, *args: float) -> Tensor:
        mean = {name: param.grad.clone() for name, param in model_of(self) if param.grad is not None}
        if self.runtime.world_size > 1:
            for gradient in mean.values():
                dist.all_reduce(gradient)
                gradient /= self.runtime.world_size
        gradients.append(mean)
        return plain(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Optimizer, "step", spy)
        patch.setattr(prompts, "get_task", lambda *_, **__: Halves())
        state = main(
            Config(**{**RUN, "num_samples": 5, "num_iterations": 2, "max_new_tokens": 4, "examples_per_step": 3})
        )
    if int(os.environ.get("RANK", "0")) == 0:
        history = [without_times(row) for row in state.history]
        torch.save({"gradients": gradients, "history": history}, folder / "result.pt")


def model_of(optimizer: Optimizer) -> list[tuple[str, torch.nn.Parameter]]:
    return [pair for bucket in optimizer.buckets for pair in zip(bucket.names, bucket.params, strict=True)]


def test_two_processes_take_the_same_step(forker: Forker, run_here: Path, tmp_path: Path) -> None:
    """Three problems on two processes: the same answers, gradients to rounding, and the same figures."""
    prepare(run_here)
    forker.together(one_process, tmp_path)
    two = torch.load(tmp_path / "result.pt", weights_only=True)
    prepare(run_here)
    one_process(tmp_path)
    one = torch.load(tmp_path / "result.pt", weights_only=True)
    assert len(one["gradients"]) == 2
    for mine, theirs in zip(one["gradients"], two["gradients"], strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(theirs[name], mine[name], rtol=1e-4, atol=1e-6)
    steps = [[row for row in run["history"] if "reward" in row] for run in (one, two)]
    assert len(steps[0]) == 2
    for mine, theirs in zip(*steps, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-4)
