"""Scores of tasks: models whose answers are known, the real data, any batch size, one process and two."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from nanochat.checkpoint_manager import model_meta, run_dir, save_checkpoint
from nanochat.common import UserError
from nanochat.configurator import parse
from nanochat.data import storyworld
from nanochat.data.shards import write_dataset
from nanochat.engine import Completion, Engine
from nanochat.eval.task_eval import CHAT_CORE, chat_core, choose_rows, evaluate_chat_task, letter_ids
from nanochat.eval.task_result import TaskResult
from nanochat.gpt import GPT
from nanochat.layers.sampling_params import SamplingParams
from nanochat.reporting.schema import proportion
from nanochat.runtime import Runtime
from nanochat.tokenization.chat_format import Conversation
from scripts import chat_eval as script
from scripts.chat_eval import Config
from tasks.common import Task, make_conversation, make_multiple_choice
from tests.support.models import random_model
from tests.support.processes import Forker
from tests.support.talks import TOKENIZER

RUNTIME = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 0)


def model(context: int = 128, says: str | None = None) -> GPT:
    """A model with random weights; or one that finds a certain token likeliest, whatever stands before."""
    built = random_model(context, scale=1.0, n_head=2, n_kv_head=2)
    if says is not None:
        with torch.no_grad():
            for name, param in built.named_parameters():  # every position has the same state, and only one logit is > 0
                param.fill_(1.0 if name == "embed.weight" else 0.0)
            token = TOKENIZER.special_tokens.get(says, says.encode()[0])
            built.head.weight[token] = 1.0
    return built


class Listed(Task):
    """Conversations that were given; right is what is in `right` (default: what the conversation says)."""

    def __init__(self, conversations: Sequence[Conversation], right: str | None = None) -> None:
        super().__init__()
        self.conversations, self.right = list(conversations), right
        self.heard: list[tuple[str, str]] = []
        self.name = "Listed"
        self.eval_type = "categorical" if conversations and "letters" in conversations[0] else "generative"

    def num_examples(self) -> int:
        return len(self.conversations)

    def get_example(self, index: int) -> Conversation:
        return self.conversations[index]

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        self.heard.append((conversation["messages"][0]["content"], completion))
        return completion == (self.right or conversation["messages"][-1]["content"])


def choices(num: int, seed: int = 0) -> Listed:
    """Multiple choice with three to five letters, and questions of all lengths that fit."""
    rng = random.Random(seed)
    rows = []
    for i in range(num):
        options = ["yes", "no", "may", "be", "so"][: rng.randint(3, 5)]
        rows.append(make_multiple_choice(f"{i}" * rng.randint(1, 12), options, rng.randrange(len(options))))
    return Listed(rows)


def questions(num: int) -> Listed:
    return Listed([make_conversation("?" * (1 + 7 * i % 20), "BBBB") for i in range(num)])


GREEDY = SamplingParams(temperature=0.0, max_tokens=4)


def evaluate(
    task: Task,
    gpt: GPT,
    runtime: Runtime = RUNTIME,
    max_examples: int | None = None,
    batch_size: int = 8,
    max_tokens: int = 4,
) -> TaskResult:
    """Evaluate with greedy decoding."""
    params = replace(GREEDY, max_tokens=max_tokens)
    return evaluate_chat_task(task, Engine(gpt, TOKENIZER), params, runtime, max_examples, batch_size)


# --- by letters -------------------------------------------------------------------------------------------------------


def test_the_likeliest_of_a_problems_own_letters_is_chosen() -> None:
    """Against a pass over each whole prompt by itself."""
    task, gpt = choices(40), model()
    with torch.inference_mode():
        expected = []
        for conversation in task:
            ids = TOKENIZER.render_for_completion(conversation)
            logits: Tensor = gpt(torch.tensor([ids]))[0, -1]
            likeliest = max(conversation["letters"], key=lambda letter, row=logits: float(row[ord(letter)]))
            expected.append(int(likeliest == conversation["messages"][-1]["content"]))
    found = evaluate(task, gpt)
    assert found.num_correct == expected
    assert 5 < sum(expected) < 35
    letters = [len(conversation["letters"]) for conversation in task]
    assert set(letters) == {3, 4, 5}
    assert found.chance == pytest.approx(sum(1 / count for count in letters) / 40)


def test_a_letter_that_a_problem_does_not_have_cannot_be_chosen() -> None:
    """A model that wants to say E: where there is no E, the others are alike and the first is taken."""
    found = evaluate(choices(40), model(says="E"))
    answers = [c["messages"][-1]["content"] for c in choices(40)]
    assert found.num_correct == [
        int(answer == ("E" if "E" in c["letters"] else "A")) for answer, c in zip(answers, choices(40), strict=True)
    ]


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_the_batch_size_changes_nothing(batch_size: int) -> None:
    gpt = model()
    assert evaluate(choices(30), gpt, batch_size=batch_size).num_correct == evaluate(choices(30), gpt).num_correct
    texts: list[list[Any]] = []
    for size in (batch_size, 8):
        task = Listed([make_conversation("?" * i, "") for i in range(1, 12)])
        evaluate(task, gpt, batch_size=size)
        texts.append(sorted(task.heard))
    assert texts[0] == texts[1]
    assert len(texts[0]) == 11
    assert len({text for _, text in texts[0]}) > 3, "the answers differ, so a mix-up would be seen"


def test_random_weights_are_near_chance() -> None:
    found = evaluate(choices(600, seed=5), model())
    low, high = found.interval
    assert low - 0.05 < found.chance < high + 0.05


def test_letters_must_be_single_tokens() -> None:
    assert letter_ids(TOKENIZER, {"B", "A"}) == {"A": 65, "B": 66}
    task = Listed([{**make_conversation("1 or 10?", "10"), "letters": ("1", "10")}])
    with pytest.raises(UserError, match="'10' is 2 tokens"):
        evaluate(task, model())


# --- in writing -------------------------------------------------------------------------------------------------------


def test_what_is_written_is_scored() -> None:
    """BBBB: four tokens, of which there are no more; and answers that end at once are empty, without the end token."""
    found = evaluate(questions(5), model(says="B"))
    assert (found.num_correct, found.accuracy, found.num_examples) == ([1] * 5, 1.0, 5)
    assert found.chance == 0
    assert evaluate(questions(5), model(says="B"), max_tokens=3).num_correct == [0] * 5
    assert evaluate(Listed([make_conversation("?", "")] * 3), model(says="<|assistant_end|>")).num_correct == [1] * 3


class Scripted(Engine):
    """Gives prepared answers, in turn, to each prompt."""

    def __init__(self, answers: list[Completion]) -> None:
        super().__init__(model(), TOKENIZER)
        self.prepared = answers
        self.calls: list[dict[str, Any]] = []
        self.lengths: list[int] = []

    def generate_many(  # type: ignore[override]
        self, prompts: Sequence[list[int]], params: SamplingParams, *, batch_size: int
    ) -> list[list[Completion]]:
        self.lengths += map(len, prompts)
        self.calls.append({"prompts": len(prompts), "params": params, "batch_size": batch_size})
        return [[self.prepared.pop(0) for _ in range(params.num_samples)] for _ in prompts]


def written(text: str, has_ended: bool = True, forced: bool = False) -> Completion:
    ids = TOKENIZER.encode(text)
    if forced:
        ids = [TOKENIZER.encode_special("<|output_start|>"), *ids]
    end = [TOKENIZER.encode_special("<|assistant_end|>")] if has_ended else []
    return Completion(tokens=ids + end, mask=[int(not forced), *[1] * (len(ids) - 1 + len(end))], has_ended=has_ended)


def test_several_samples_and_calls() -> None:
    """A problem is solved by any of its samples; a call counts if the calculator gave a result."""
    sampled_by_the_model = replace(written("x", forced=True), mask=[1, 1, 1])
    prepared = [written("no"), written("yes"), written("yes"), written("yes", has_ended=False)]
    prepared += [written("no", forced=True), sampled_by_the_model, *[written("no")] * 4]
    engine = Scripted(prepared)
    task = Listed([make_conversation("?", "yes")] * 5)
    params = SamplingParams(temperature=0.5, top_k=9, max_tokens=7, num_samples=2)
    found = evaluate_chat_task(task, engine, params, RUNTIME, batch_size=4)
    assert found.num_correct == [1, 2, 0, 0, 0]
    assert found.correct == [True, True, False, False, False]
    assert (found.accuracy, found.num_examples, found.num_samples) == (0.4, 5, 2)
    assert (found.num_tool_calls, found.tool_share) == (1, 0.1)
    assert found.interval == tuple(proportion(2, 5)["interval"])
    assert [call["prompts"] for call in engine.calls] == [2, 2, 1], "four answers at once"
    assert len({call["params"].seed for call in engine.calls}) == 3, "no two draw the same numbers"
    for call in engine.calls:
        assert (replace(call["params"], seed=42), call["batch_size"]) == (params, 4)


def test_long_prompts_lose_their_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """By letters the prompt may fill the context; an answer in writing keeps what it needs, up to a quarter."""
    prompts: list[list[int]] = []
    long, short = make_multiple_choice("z" * 300, ["a", "b"], 0), make_multiple_choice("z", ["a", "b"], 0)
    whole = TOKENIZER.render_for_completion(long)

    def hidden_states(_: GPT, ids: Tensor) -> Tensor:
        prompts.extend(ids.tolist())
        return torch.zeros(*ids.shape, 16)

    monkeypatch.setattr(GPT, "hidden_states", hidden_states)
    found = evaluate(Listed([long, short]), model(), batch_size=1)
    assert found.num_cut == 1
    assert prompts[1] == [whole[0], *whole[-127:]]
    monkeypatch.undo()
    for max_tokens, room in ((4, 4), (1000, 32)):
        engine = Scripted([written("")] * 3)
        task = Listed([make_conversation("z" * count, "yes") for count in (1, 128 - room - 4, 128 - room - 3)])
        cut = evaluate_chat_task(task, engine, replace(GREEDY, max_tokens=max_tokens), RUNTIME)
        assert engine.lengths == [5, 128 - room, 128 - room]
        assert cut.num_cut == 1


# --- which problems ---------------------------------------------------------------------------------------------------


def test_fewer_problems_come_from_everywhere() -> None:
    """One of each section of the rows, and as many of every kind where kinds take turns."""
    for length, most in ((1000, 333), (1000, 300), (1172, 1171), (7, 3), (5, 1)):
        rows = list(choose_rows(length, most))
        assert len(set(rows)) == most
        assert [row for row in rows if not 0 <= row < length] == []
        assert all(abs(row - (i + 0.5) * length / most) <= length / most + 1 for i, row in enumerate(rows))
        assert rows == list(choose_rows(length, most))
    assert all(80 < sum(row % 3 == kind for row in choose_rows(1000, 333)) < 142 for kind in range(3))
    assert list(choose_rows(5, 7)) == list(choose_rows(5, 5)) == list(choose_rows(5, None)) == list(range(5))


def test_the_hash_is_of_the_problems() -> None:
    gpt, other = model(), model(says="B")
    first = evaluate(choices(20), gpt)
    assert first.examples_hash == evaluate(choices(20), other).examples_hash
    assert first.examples_hash != evaluate(choices(20, seed=1), gpt).examples_hash
    assert first.examples_hash != evaluate(choices(20), gpt, max_examples=19).examples_hash
    assert evaluate(choices(20), gpt, max_examples=7).num_examples == 7


def test_a_task_without_problems() -> None:
    for task in (Listed([]), choices(0)):
        found = evaluate(task, model())
        assert (found.num_examples, found.accuracy, found.interval, found.tool_share) == (0, 0.0, (0.0, 1.0), 0.0)


# --- ChatCORE ---------------------------------------------------------------------------------------------------------


def scored(name: str, solved: int, num: int, chance: float) -> TaskResult:
    right = [1] * solved + [0] * (num - solved)
    return TaskResult(name, right, chance, baseline=chance, num_cut=0, examples_hash="", seconds=0.0)


def test_chat_core_is_the_mean_of_six_centred_accuracies() -> None:
    chances = (0.25, 0.25, 0.25, 0.0, 0.0, 0.0)
    scores = [scored(name, 55, 100, chance) for name, chance in zip(CHAT_CORE, chances, strict=True)]
    name, metric = chat_core([*scores, scored("Facts", 1, 100, 0.0)])
    assert (name, metric["n"]) == ("ChatCORE", 600)
    assert metric["value"] == pytest.approx((3 * 0.4 + 3 * 0.55) / 6)
    assert metric["interval"][0] < metric["value"] < metric["interval"][1]
    name, metric = chat_core(scores[:2])
    assert (name, metric["value"]) == ("mean of centred accuracies over 2 tasks", pytest.approx(0.4))
    low, high = proportion(55, 100)["interval"]
    assert chat_core(scores[:1])[1]["interval"] == pytest.approx([(low - 0.25) / 0.75, (high - 0.25) / 0.75])


# --- two processes ----------------------------------------------------------------------------------------------------


def facts(runtime: Runtime) -> list[dict[str, Any]]:
    """Scores of tasks with an odd number of problems, and with one, of which the second process has none."""
    tasks = (choices(7), choices(1), questions(5))
    found = [
        evaluate(task, model(says=None if task.eval_type == "categorical" else "B"), runtime=runtime) for task in tasks
    ]
    return [{**vars(one), "seconds": 0} for one in found]


def test_two_processes_equal_one(forker: Forker, tmp_path: Path) -> None:
    forker.together(write_facts, tmp_path, NANOCHAT_DTYPE="float32")
    found = [json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    assert found[0] == found[1] == facts(RUNTIME)


def write_facts(folder: Path) -> None:
    """What one of the processes does."""
    runtime = Runtime.start(device="cpu")
    (folder / f"{runtime.rank}.json").write_text(json.dumps(facts(runtime)), encoding="utf-8")
    runtime.finish()


# --- the script -------------------------------------------------------------------------------------------------------


def save(stage: str, gpt: GPT) -> None:
    """A checkpoint of a stage in the base folder."""
    TOKENIZER.save(run_dir(stage, "").parent / "tokenizer")
    save_checkpoint(run_dir(stage, "d1"), 5, gpt.state_dict(), {}, model_meta(gpt, RUNTIME, TOKENIZER))


@pytest.mark.shared_data
def test_a_model_that_prefers_b_scores_the_share_of_b(
    run_here: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ARC and MMLU from the data on the disk to the report, against a count of the answers in that data."""
    hub = shared_data / "hub"
    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(hub))
    save("sft", model(context=512, says="B"))
    monkeypatch.setattr(script, "QUESTIONS", ("?" * 600, "?" * 600))  # too long to be asked: that is no failure
    found = script.main(Config(tasks="ARC-Easy|arc-challenge|MMLU", max_problems=200, device="cpu"))
    assert [one.name for one in found] == ["ARC-Easy", "ARC-Challenge", "MMLU"]
    for one, files in zip(found, ("ai2_arc/ARC-Easy", "ai2_arc/ARC-Challenge", "mmlu/all"), strict=True):
        answers: list[Any] = []
        for path in sorted(hub.glob(f"*/{files}/test*.parquet")):
            answers += pq.read_table(path).column("answerKey" if "arc" in files else "answer").to_pylist()
        is_b = [answer in ("B", "2", 1) for answer in answers]
        assert len(is_b) > 1000
        rows = choose_rows(len(is_b), 200)
        assert one.correct == [is_b[row] for row in rows]
        assert 0.24 < one.chance < 0.26
    section = json.loads((run_here / "report" / "chat_eval_sft.json").read_text(encoding="utf-8"))
    assert section["metrics"]["MMLU"] == found[2].metric
    assert section["headline"] == ["ARC-Easy", "ARC-Challenge", "MMLU", "mean of centred accuracies over 3 tasks"]
    assert section["samples"] == []
    assert any("prompts were too long" in note for note in section["notes"])


def test_the_embedded_world(run_here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its tasks are the default where it is the data; the report and the file with the results."""
    write_dataset(
        *(list(islice(storyworld.generate_stories(split, 1), 2)) for split in ("train", "val")), source="storyworld"
    )
    save("mid", model(context=128, says="C"))
    found = script.main(Config(source="mid", max_problems=12, batch_size=16, max_new_tokens=6, device="cpu"))
    out = capsys.readouterr().out
    assert [one.name for one in found] == list(script.WORLD)
    choice = next(one for one in found if one.name == "FactChoice")
    assert choice.accuracy == sum(c["messages"][-1]["content"] == "C" for c in _rows("FactChoice", 12)) / 12
    section = json.loads((run_here / "report" / "chat_eval_mid.json").read_text(encoding="utf-8"))
    assert (section["model"], section["checkpoint"]) == ("mid", "d1:5")
    assert section["answers"]["FactChoice"] == {"problems": choice.examples_hash, "correct": choice.answers["correct"]}
    assert section["metrics"]["FactChoice"] == choice.metric
    saved = json.loads((run_here / "chat_eval" / "mid_d1.json").read_text(encoding="utf-8"))
    assert saved == section["answers"]
    [sample] = section["samples"]
    assert sample["messages"][0] == {"role": "user", "content": "Hello! Who are you?"}
    assert {m["content"] for m in sample["messages"][1::2]} == {"CCCCCC"}
    assert len(sample["messages"]) > 2
    lines = out.splitlines()
    assert sum(line.startswith(f"{name} ") for line in lines for name in script.WORLD) == 6
    assert "mean of centred accuracies over 6 tasks" in section["metrics"]
    assert any(line.startswith("mean of centred accuracies over 6 tasks: ") for line in lines)


def _rows(name: str, most: int) -> list[Conversation]:
    task = script.open_task(name)
    return [task[row] for row in choose_rows(len(task), most)]


def test_several_samples_are_another_measure(run_here: Path) -> None:
    save("rl", model(context=128, says="C"))
    config = Config(source="rl", tasks="SpellingBee", max_problems=3, num_samples=2, temperature=1.0, max_new_tokens=2)
    [found] = script.main(config)
    assert (found.name, found.num_samples) == ("SpellingBee pass@2", 2)
    assert "SpellingBee pass@2" in json.loads((run_here / "chat_eval" / "rl_d1.json").read_text(encoding="utf-8"))


def test_without_the_worlds_data_the_tasks_are_chat_cores(base_dir: Path) -> None:
    assert script.names_of(Config()) == list(CHAT_CORE)
    assert script.names_of(Config(tasks="MMLU | gsm8k|MMLU")) == ["MMLU", "GSM8K"]
    assert not list(base_dir.iterdir())


def test_quoted_and_unquoted_words_are_apart() -> None:
    quoted, unquoted = (
        [c["messages"][0]["content"] for c in islice(script.open_task(f"SpellingBee-{kind}"), 50)]
        for kind in ("quoted", "unquoted")
    )
    assert all("'" in text or '"' in text for text in quoted)
    assert not any('"' in text for text in unquoted)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["-a", "GSM8"], "no task 'GSM8'"),
        (["-a", ""], "no task ''"),
        (["-a", "GSM8K|"], "no task ''"),
        (["-x", "0"], "max_problems is 0"),
        (["-b", "0"], "batch_size is 0"),
        (["-m", "0"], "max_new_tokens is 0"),
        (["-n", "0"], "num_samples is 0"),
        (["-n", "2"], "at temperature 0"),
        (["-t", "-1"], "temperature is -1"),
        (["-k", "0"], "top_k is 0"),
        (["-i", "chat"], "one of base, mid, sft, rl"),
    ],
)
def test_a_bad_command_line(words: list[str], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        parse(Config, words)


def test_a_task_to_learn_from_has_no_score(base_dir: Path) -> None:
    with pytest.raises(UserError, match="WorldChat is to learn from"):
        script.main(Config(tasks="WorldChat", device="cpu"))
    assert not list(base_dir.iterdir())
