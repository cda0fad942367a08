"""CORE: a bundle and a model small enough to be reckoned by hand, any batches, and the real bundle guessed at."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from nanochat.checkpoint_manager import model_meta, run_dir, save_checkpoint
from nanochat.common import UserError
from nanochat.core_eval import core_metric, evaluate_task
from nanochat.data.shards import write_dataset
from nanochat.eval import core_scorer
from nanochat.eval.core_bundle import find_bundle, read_bundle
from nanochat.eval.core_prompts import TASK_TYPES, CoreExample, CoreTask, EncodedExample, encode_example
from nanochat.eval.core_scorer import ModelScorer, OptionScore, is_correct
from nanochat.eval.core_tables import core_name
from nanochat.eval.task_eval import choose_rows
from nanochat.eval.task_result import TaskResult
from nanochat.gpt import GPT, GPTConfig
from nanochat.reporting.schema import proportion
from nanochat.runtime import Runtime
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer
from nanochat.train import LoopState
from nanochat.training.events import core_events
from scripts import base_eval, base_train
from tests.support import bundles

ROOT = Path(__file__).resolve().parent.parent
RANKS = {bytes([b]): b for b in range(256)}
TOKENIZER = Tokenizer(SPLIT_PATTERN, RANKS, {name: 256 + i for i, name in enumerate(SPECIAL_TOKENS)})
BOS, VOCAB = TOKENIZER.get_bos_token_id(), TOKENIZER.get_vocab_size()  # one token a byte, and the special ones
RUNTIME = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 0)


def random_model(context: int = 96) -> GPT:
    """A model in which everything depends on everything before it."""
    gpt = GPT(GPTConfig(sequence_len=context, vocab_size=VOCAB, n_layer=2, n_head=2, n_kv_head=1, n_embd=16))
    gpt.init_weights()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for param in gpt.parameters():
            param.copy_(torch.randn(param.shape, generator=generator) / 2)
    return gpt


def pair_model(logits: Mapping[str, float], context: int = 64) -> GPT:
    """A model that looks at one token only: after "a" the logit of "b" is `logits["ab"]`, or else 0."""
    width = VOCAB + 1  # even
    gpt = GPT(GPTConfig(sequence_len=context, vocab_size=VOCAB, n_layer=1, n_head=1, n_kv_head=1, n_embd=width))
    gpt.init_weights()  # the block adds nothing, and the head says nothing
    with torch.no_grad():
        gpt.embed.weight.zero_()
        gpt.embed.weight[:VOCAB, :VOCAB] = torch.eye(VOCAB)  # the norm makes sqrt(width) of each 1
        for (before, after), logit in logits.items():
            gpt.head.weight[ord(after), ord(before)] = 15 * math.atanh(logit / 15) / math.sqrt(width)
    return gpt


# --- by hand ----------------------------------------------------------------------------------------------------------

LOGITS = {" a": 2.0, " c": 1.0, " o": 2.5, "cc": 5.0, "x ": 3.0, "L ": 1.0, "ok": 1.0}
NOTHING = math.log(VOCAB)  # the loss of any token after one that says nothing
SPACE = math.log(VOCAB - 3 + math.exp(2) + math.exp(1) + math.exp(2.5))  # the norm of what follows a space
C = math.log(VOCAB - 1 + math.exp(5))

HAND = {
    "choice": (
        "multiple_choice",
        [  # "Q ccc" costs more than "Q a" in all, and less by the token
            {"query": "Q", "choices": ["a", "ccc"], "gold": 1},
            {"query": "Q", "choices": ["ccc", "a"], "gold": 1},
            {"query": "Q", "choices": ["d", "e", "d"], "gold": 0},  # a tie: the first one is taken
            {"query": "Q", "choices": ["d", "e", "d"], "gold": 2},
        ],
        [True, False, True, False],
    ),
    "schema": (
        "schema",
        [
            {"context_options": ["ky", "kx"], "continuation": "k", "gold": 1},
            {"context_options": ["kx", "a longer one, y"], "continuation": "k", "gold": 1},
            {"context_options": ["y", "z"], "continuation": "k", "gold": 0},
        ],
        [True, False, True],
    ),
    "words": (
        "language_modeling",
        [
            {"context": "L", "continuation": "ok"},
            {"context": "L", "continuation": "oz"},
            {"context": "L", "continuation": "a"},  # likely after a space, but "o" is likelier
            {"context": "Lo", "continuation": "k"},  # the space after "o" is not what the model expects
        ],
        [True, False, False, False],
    ),
}


def write_bundle(folder: Path, num_fewshot: int = 0, delimiter: str = " ", missing: Sequence[str] = ()) -> Path:
    """The tasks of `HAND` as a bundle."""
    (folder / "eval_data" / "sub").mkdir(parents=True)
    lines = ["icl_tasks:"]
    for label in (*HAND, *missing):
        kind = HAND[label][0] if label in HAND else "schema"
        lines += [f"- label: {label}", f"  dataset_uri: sub/{label}.jsonl", "  num_fewshot:", f"  - {num_fewshot}"]
        lines += [f"  icl_task_type: {kind}", f"  continuation_delimiter: {json.dumps(delimiter)}"]
    (folder / "core.yaml").write_text("\n".join(lines), encoding="utf-8")
    for label, (_, rows, _) in HAND.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "eval_data" / "sub" / f"{label}.jsonl").write_text(text, encoding="utf-8")
    table = ["Eval Task,Random baseline,Note", "choice,40,x", "schema,50,", "words,0,", *(f"{m},25," for m in missing)]
    (folder / "eval_meta_data.csv").write_text("\n".join(table), encoding="utf-8")
    return folder


def test_by_hand(tmp_path: Path) -> None:
    """All three types, ties, and the mean over tokens: what is right, the centred accuracies, CORE and its error."""
    bundle = read_bundle(write_bundle(tmp_path / "bundle", missing=["coqa"]))
    scorer = ModelScorer(pair_model(LOGITS))
    results = [evaluate_task(task, scorer, TOKENIZER, 64, RUNTIME) for task in bundle.tasks]
    assert [result.correct for result in results] == [right for _, _, right in HAND.values()]
    assert [result.centred for result in results] == pytest.approx([0.1 / 0.6, 1 / 3, 0.25])
    assert [result.chance for result in results] == pytest.approx([(1 / 2 + 1 / 2 + 1 / 3 + 1 / 3) / 4, 0.5, 0])
    found, error, floor = core_metric(results)
    assert core_name(bundle) == "CORE over 3 of 4"
    assert found["value"] == pytest.approx((1 / 6 + 1 / 3 + 1 / 4) / 3)
    assert found["n"] == 11
    variances = [3 / 6 * 3 / 6 / 4 / 0.6**2, 3 / 5 * 2 / 5 / 3 / 0.5**2, 2 / 6 * 4 / 6 / 4]
    assert error == pytest.approx(math.sqrt(sum(variances)) / 3)
    assert found["interval"] == pytest.approx([found["value"] - 1.959964 * error, found["value"] + 1.959964 * error])
    assert floor == pytest.approx(((5 / 12 - 0.4) / 0.6 + 0 + 0) / 3)


def test_losses_by_hand() -> None:
    texts = [("Q", " a"), ("Q", " ccc"), ("x", " k")]
    [(_, scores)] = ModelScorer(pair_model(LOGITS))([encode_example(texts, TOKENIZER, 64, 0)])
    expected = [
        (NOTHING + SPACE - 2) / 2,
        (NOTHING + SPACE - 1 + 2 * (C - 5)) / 4,
        (math.log(VOCAB - 1 + math.exp(3)) - 3 + SPACE) / 2,
    ]
    assert [score.loss for score in scores] == pytest.approx(expected, abs=1e-4)
    assert 4 * expected[1] > 2 * expected[0]
    assert expected[1] < expected[0]


def test_few_shot_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The solved examples are others of the task, each at most once, in the form of the question, and stay the same."""
    bundle = read_bundle(write_bundle(tmp_path / "bundle", 2, "\nAnswer: "))
    assert capsys.readouterr().out == ""
    choice, schema, words = bundle.tasks
    heads = set()
    for seed in range(40):
        prompts = choice.prompts(0, seed)
        assert choice.prompts(0, seed) == prompts
        assert [end for _, end in prompts] == [" a", " ccc"]
        assert prompts[0][0] == prompts[1][0]
        heads.add(prompts[0][0])
    pairs = [("a", "d"), ("d", "a"), ("d", "d")]  # two of the others: their right answers are "a", "d" and "d"
    assert heads == {f"Q\nAnswer: {first}\nQ\nAnswer: {second}\nQ\nAnswer:" for first, second in pairs}
    first, second = (head for head, _ in schema.prompts(0, 42))
    assert (first[-10:], second[-10:]) == ("ky\nAnswer:", "kx\nAnswer:")
    assert first[:-10] == second[:-10]
    assert first[:-10] in {"a longer one, y\nAnswer: k\ny\nAnswer: k\n", "y\nAnswer: k\na longer one, y\nAnswer: k\n"}
    drawn = {words.prompts(0, seed)[0][0] for seed in range(40)}
    assert len(drawn) == 6  # two of three, in order
    assert all("L\nAnswer: ok\n" not in head for head in drawn)


def test_too_few_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = read_bundle(write_bundle(tmp_path / "bundle", 3))
    assert capsys.readouterr().out == "schema: its prompts should have 3 examples, but only 2 others exist\n"
    assert [len(task.fewshot_examples(1, 42)) for task in bundle.tasks] == [3, 2, 3]


def test_spaces_belong_to_the_continuation() -> None:
    task = CoreTask("t", "multiple_choice", 0, " ", 0.0, (CoreExample((("Answer: ", "A"), ("Answer: ", "B"))),))
    assert task.prompts(0, 1) == [("Answer:", "  A"), ("Answer:", "  B")]


def test_cut_from_the_left_at_a_common_point() -> None:
    """Of a schema's options each loses as many tokens as the longest one has too many; the continuation is kept."""
    texts = [("0123456789", " ok"), ("01234567", " ok")]
    prompt = encode_example(texts, TOKENIZER, 9, 0)
    assert prompt.is_truncated
    assert prompt.max_input_len == 9
    assert prompt.options == [([BOS, *b"456789", *b" ok"], 3), ([BOS, *b"4567", *b" ok"], 3)]
    fits = encode_example(texts, TOKENIZER, 13, 0)
    assert (fits.is_truncated, fits.max_input_len) == (False, 13)
    assert fits.options[1] == ([BOS, *b"01234567", *b" ok"], 3)
    too_long = encode_example([("012", " 3456789"), ("012", " 3")], TOKENIZER, 5, 0)
    assert too_long.options == [([BOS, *b"56789"], 5), ([BOS, *b" 3"], 2)]


def test_cut_prompts_are_counted() -> None:
    """And scored: the model looks at one token, so that a cut changes nothing."""
    rows = tuple(CoreExample((("L" * length, "ok"),)) for length in (3, 60, 61, 62, 200))
    task = CoreTask("t", "language_modeling", 0, " ", 0.0, rows)
    result = evaluate_task(task, ModelScorer(pair_model(LOGITS)), TOKENIZER, 64, RUNTIME)
    assert (result.correct, result.num_cut) == ([True] * 5, 2)  # 61 letters, a space, "ok": <|bos|> and 63 are read


# --- any batch, any number of processes -------------------------------------------------------------------------------


def many_prompts(context: int) -> list[EncodedExample]:
    """Examples of all types and lengths, some too long, some with nothing in common but `<|bos|>`."""
    rng = random.Random(1)

    def text(most: int) -> str:
        return "".join(rng.choice("abc de") for _ in range(rng.randint(1, most)))

    found = []
    for place in range(30):
        head, end, count = text(context), text(9), rng.randint(1, 4)
        choices = [(head, text(20)) for _ in range(count)]
        schemas = [(head[: rng.randint(0, len(head))] + text(9), end) for _ in range(count)]
        found.append(encode_example(rng.choice([choices, schemas]), TOKENIZER, context, place))
    return found


@pytest.mark.parametrize("batch_tokens", [1, 300, 2000, 100000])
def test_batches_do_not_matter(batch_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are those of the whole sequence read at once, alone, without a cache; so is what is likeliest."""
    gpt = random_model()
    prompts = many_prompts(96)
    assert {prompt.is_truncated for prompt in prompts} == {True, False}
    assert any(prompt.prefix_len > 1 for prompt in prompts)
    monkeypatch.setattr(core_scorer, "HEAD_ROWS", 7)
    places = []
    for prompt, scores in ModelScorer(gpt, batch_tokens)(prompts):
        places.append(prompt.index)
        for (ids, count), score in zip(prompt.options, scores, strict=True):
            with torch.no_grad():
                logs = gpt(torch.tensor([ids[:-1]]))[0, -count:].log_softmax(-1)
            wanted = torch.tensor(ids[-count:])
            assert score.loss == pytest.approx(-logs[range(count), wanted].mean().item(), abs=1e-5)
            assert score.is_greedy == bool((logs.argmax(-1) == wanted).all())
    assert sorted(places) == list(range(30))


def test_of_equally_likely_tokens_the_first_is_the_likeliest() -> None:
    """So a model that says nothing writes no text exactly."""
    gpt = pair_model({" o": 2.0, " p": 2.0})
    for end, exact in (("\0", True), ("\0\0", True), ("\1", False), (" o", False), ("\0 ", False)):
        [(_, [score])] = ModelScorer(gpt)([encode_example([("x", end)], TOKENIZER, 64, 0)])
        assert score.is_greedy == exact
    [(_, [first, second])] = ModelScorer(gpt)([encode_example([("x ", "o"), ("x ", "p")], TOKENIZER, 64, 0)])
    assert (first.is_greedy, second.is_greedy) == (True, False)
    assert first.loss == second.loss


def test_a_batch_is_no_larger_than_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    gpt, read = random_model(), GPT.hidden_states
    monkeypatch.setattr(
        GPT, "hidden_states", lambda self, idx, cache=None: seen.append(idx.shape) or read(self, idx, cache)
    )
    list(ModelScorer(gpt, 2000)(many_prompts(96)))
    assert max(rows * columns for rows, columns in seen) <= 2000
    assert len(seen) < 30


def test_processes_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each scores its own examples, and the sum is everybody's; so is a choice of examples."""
    rng = random.Random(5)
    rows = tuple(CoreExample(tuple((f"q{n}", rng.choice("abcde") * 2) for _ in range(3)), n % 3) for n in range(11))
    task = CoreTask("t", "multiple_choice", 1, " ", 0.25, rows)
    scorer = ModelScorer(random_model())
    whole = evaluate_task(task, scorer, TOKENIZER, 96, RUNTIME)
    some = evaluate_task(task, scorer, TOKENIZER, 96, RUNTIME, max_examples=4)
    assert 0 < sum(whole.correct) < 11
    assert some.num_examples == 4
    assert some.examples_hash != whole.examples_hash
    monkeypatch.setattr(dist, "all_reduce", lambda _: None)
    parts = [
        evaluate_task(task, scorer, TOKENIZER, 96, replace(RUNTIME, rank=rank, world_size=2)).correct for rank in (0, 1)
    ]
    assert not any(parts[0][1::2])
    assert [a or b for a, b in zip(*parts, strict=True)] == whole.correct


def found_by(runtime: Runtime) -> list[dict[str, Any]]:
    """Results of tasks of all types, with an odd number of examples and with one: the second process has none then."""
    rng = random.Random(7)

    def text(most: int) -> str:
        return "".join(rng.choice("abc de") for _ in range(rng.randint(1, most))) + "."

    choices = [CoreExample(tuple((f"q{n}", text(9)) for _ in range(3)), n % 3) for n in range(9)]
    schemas = [CoreExample(tuple((text(120), f"e{n}") for _ in range(2)), n % 2) for n in range(7)]
    words = [CoreExample(((f"{n}L", "ok" if n % 3 else "oz"),)) for n in range(5)]
    scorers = (ModelScorer(random_model(), 300), ModelScorer(random_model(), 300), ModelScorer(pair_model(LOGITS)))
    found = []
    for kind, rows, scorer in zip(TASK_TYPES, (choices, schemas, words), scorers, strict=True):
        for some in (rows, rows[:1]):
            task = CoreTask(kind, kind, 2, " ", 0.25, tuple(some))
            found.append(vars(evaluate_task(task, scorer, TOKENIZER, 64, runtime)))
    return [{**one, "seconds": 0} for one in found]


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Real ones, which must wait for each other and add up what each has found."""
    command = [sys.executable, "-W", "error", str(Path(__file__).resolve())]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen([*command, str(rank), "2", str(tmp_path)], env=env, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    try:
        errors = [process.communicate(timeout=120)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert not any(process.returncode for process in processes), "\n".join(errors)
    found = [json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]
    assert found[0] == found[1] == found_by(RUNTIME)
    assert [len(one["num_correct"]) for one in found[0]] == [9, 1, 7, 1, 5, 1]
    assert all(True in one["num_correct"] and False in one["num_correct"] for one in found[0][::2])
    assert found[0][2]["num_cut"] > 1


def _process(rank: int, world_size: int, folder: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    found = found_by(replace(RUNTIME, rank=rank, world_size=world_size))
    (folder / f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    dist.destroy_process_group()


def test_ties_are_broken_by_order_not_by_rounding() -> None:
    scores = [OptionScore(1.0 + 1e-7, False), OptionScore(1.0, False), OptionScore(0.9, True)]
    assert is_correct("schema", scores[:2], 0)
    assert is_correct("multiple_choice", scores, 2)
    assert not is_correct("language_modeling", scores, 0)


# --- the real bundle --------------------------------------------------------------------------------------------------


@pytest.mark.shared_data
def test_guessing_gets_the_floor(shared_data: Path) -> None:
    """Scores at random: CORE within three standard errors of what the numbers of options imply, over 21 of 22."""
    bundle = read_bundle(shared_data / "eval_bundle.zip")
    assert core_name(bundle) == "CORE over 21 of 22"
    assert bundle.missing == ("coqa",)
    guesses = [
        (sum(task.guess_probabilities) / len(task.examples) - task.baseline) / (1 - task.baseline)
        for task in bundle.tasks
    ]
    assert sum(guesses) / 21 == pytest.approx(-0.0272, abs=1e-4)
    rng = random.Random(1)

    def guess(prompts: Sequence[EncodedExample]) -> Iterator[tuple[EncodedExample, list[OptionScore]]]:
        for prompt in prompts:
            yield prompt, [OptionScore(rng.random(), False) for _ in prompt.options]

    zero_shot = [replace(task, num_fewshot=0) for task in bundle.tasks]  # the prompts are not read
    results = [evaluate_task(task, guess, TOKENIZER, 2048, RUNTIME, max_examples=200) for task in zero_shot]
    found, error, floor = core_metric(results)
    variances = []
    for task, result in zip(zero_shot, results, strict=True):
        chances = [task.guess_probabilities[row] for row in choose_rows(len(task.examples), 200)]
        assert result.chance == pytest.approx(math.fsum(chances) / len(chances))
        variance = math.fsum(p * (1 - p) for p in chances) / result.num_examples**2
        variances.append(variance / (1 - result.baseline) ** 2)
    assert error == pytest.approx(math.sqrt(sum(variances)) / 21, rel=0.15)
    assert abs(found["value"] - floor) < 3 * math.sqrt(sum(variances)) / 21
    assert floor == pytest.approx(-0.0272, abs=2e-3)


# --- what is wrong with a bundle --------------------------------------------------------------------------------------


def change(name: str, old: str, new: str) -> Callable[[Path], None]:
    """Replaces a text in a file of the bundle."""

    def edit(folder: Path) -> None:
        path = folder / name
        content = path.read_bytes()
        assert old.encode() in content
        path.write_bytes(content.replace(old.encode(), new.encode("latin-1"), 1))

    return edit


CHOICE = "eval_data/sub/choice.jsonl"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (change(CHOICE, '{"query": "Q", "choices": ["ccc"', '{"query": "Q" "choices": ["ccc"'), [CHOICE, "line 2:"]),
        (change(CHOICE, '"gold": 0', '"gold": 3'), [CHOICE, "line 3: gold is 3", "0 to 2"]),
        (change(CHOICE, '"gold": 0', '"gold": true'), [CHOICE, "line 3: gold is True"]),
        (change(CHOICE, '"a", "ccc"', '"a"'), [CHOICE, "line 1: choices must be a list of two"]),
        (change(CHOICE, '"query"', '"question"'), [CHOICE, "line 1: query must be a text"]),
        (change(CHOICE, "ccc", "c\xffc"), [CHOICE, "line 1: not UTF-8"]),
        (change(CHOICE, "ccc", r"c\ud83d"), [CHOICE, "line 1: ", "surrogates not allowed"]),
        (change("core.yaml", '" "', r'"\ud83d"'), ["core.yaml, line 7: not YAML", "surrogates not allowed"]),
        (change("eval_data/sub/words.jsonl", '"ok"', '""'), ["words.jsonl", "line 1: continuation must be a text"]),
        (change("eval_data/sub/schema.jsonl", "context_options", "x"), ["schema.jsonl", "line 1: context_options"]),
        (lambda folder: (folder / CHOICE).write_bytes(b"\n[1]\n"), [CHOICE, "line 2: a line must be a JSON object"]),
        (lambda folder: (folder / CHOICE).write_bytes(b""), [CHOICE, "no examples"]),
        (lambda folder: (folder / "core.yaml").unlink(), ["core.yaml is missing"]),
        (lambda folder: (folder / "eval_meta_data.csv").unlink(), ["eval_meta_data.csv is missing"]),
        (lambda folder: shutil.rmtree(folder / "eval_data"), ["none of the tasks in core.yaml"]),
        (change("core.yaml", "  dataset_uri: sub/schema", "  dataset_uri: [sub/schema"), ["core.yaml, line", "YAML"]),
        (change("core.yaml", "type: schema", "type: scheme"), ["core.yaml, line 8: icl_task_type is 'scheme'"]),
        (change("core.yaml", "  - 0", "  - many"), ["core.yaml, line 2: num_fewshot is ['many']"]),
        (change("core.yaml", "label: schema", "label: choice"), ["core.yaml, line 8", "choice is listed twice"]),
        (change("core.yaml", "icl_tasks", "tasks"), ["core.yaml, line 1: icl_tasks"]),
        (change("eval_meta_data.csv", "schema,50,", "schema,fifty,"), ["eval_meta_data.csv, line 3", "fifty"]),
        (change("eval_meta_data.csv", "schema,50,", "schema,100,"), ["eval_meta_data.csv, line 3", "100.0 percent"]),
        (
            change("eval_meta_data.csv", "schema,50,", "scheme,50,"),
            ["core.yaml, line 8", "no line for the task schema"],
        ),
        (change("eval_meta_data.csv", "Random", "Wild"), ["eval_meta_data.csv, line 1", "'Random baseline'"]),
        (change("eval_meta_data.csv", "Random", '"' + "x" * 200_000), ["eval_meta_data.csv, line 1", "field limit"]),
        (lambda folder: (folder / "eval_meta_data.csv").write_bytes(b""), ["eval_meta_data.csv, line 1: the columns"]),
        (change("core.yaml", "  - 0", "  - 0\n  added: 2024-13-45"), ["core.yaml, line 6: not YAML (month must be"]),
        (change("core.yaml", "  - 0", "  - !!bool x"), ["core.yaml, line 5: not YAML"]),
        (change("core.yaml", "  - 0", "  - " + "[" * 3000), ["core.yaml, line 5: not YAML", "recursion"]),
        (change("core.yaml", "  - 0", "  - \0"), ["core.yaml, line 5: not YAML", "special characters"]),
    ],
)
def test_a_bad_bundle(tmp_path: Path, spoil: Callable[[Path], Any], words: list[str]) -> None:
    folder = write_bundle(tmp_path / "bundle")
    read_bundle(folder)
    spoil(folder)
    with pytest.raises(UserError) as caught:
        read_bundle(folder)
    assert [word for word in words if word not in str(caught.value)] == []


def test_a_zip_file_is_like_its_folder(tmp_path: Path) -> None:
    """Also with one folder around everything; a damaged one is refused."""
    tasks = read_bundle(write_bundle(tmp_path / "in" / "eval_bundle")).tasks
    for root in (tmp_path / "in", tmp_path / "in" / "eval_bundle"):
        path = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", root))
        assert read_bundle(path).tasks == tasks
    content = path.read_bytes()
    place = content.index(b"eval_data/sub/words.jsonl") + 40
    for damaged in (content[:-30], content[:place] + b"\0\0\0\0" + content[place + 4 :], b"no zip file"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"packed\.zip"):
            read_bundle(path)


def test_a_flipped_bit_is_no_traceback(tmp_path: Path) -> None:
    """Any bit of a packed bundle: it is read, or a UserError says in one line that it is not."""
    rows = {"a": ("language_modeling", [{"context": "a", "continuation": "b"}])}
    path = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", bundles.write_bundle(tmp_path / "in", rows)))
    content = path.read_bytes()
    said = []
    for bit in range(0, 8 * len(content), 3):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            read_bundle(path)
        except UserError as error:
            said.append(str(error))
    assert len(said) > len(content)
    assert not any("\n" in text for text in said)


# --- the scripts ------------------------------------------------------------------------------------------------------


def save(gpt: GPT) -> None:
    """A base checkpoint in the base folder."""
    TOKENIZER.save(run_dir("base", "").parent / "tokenizer")
    save_checkpoint(run_dir("base", "d1"), 5, gpt.state_dict(), {}, model_meta(gpt, RUNTIME, TOKENIZER))


def test_base_eval(run_here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the bundle to the table, the CSV and the report's section."""
    save(pair_model(LOGITS))
    write_bundle(run_here / "eval_bundle", missing=["coqa"])
    results = base_eval.main(base_eval.Config(device="cpu"))
    assert [result.correct for result in results] == [right for _, _, right in HAND.values()]
    said = capsys.readouterr().out
    assert "CORE over 3 of 4: 0.2500, standard error" in said
    assert "guessing alone gives 0.0093" in said
    assert "which the score leaves out: coqa" in said
    rows = (run_here / "base_eval" / "d1_000005.csv").read_text(encoding="utf-8").splitlines()
    assert rows[1].split(",")[0::7] == ["choice", "0.166667"]
    assert rows[4].split(",")[0::7] == ["CORE over 3 of 4", "0.25"]
    section = json.loads((run_here / "report" / "base_eval.json").read_text(encoding="utf-8"))
    assert section["metrics"]["schema"] == {**proportion(2, 3), "chance": 0.5}
    assert section["metrics"]["CORE over 3 of 4"]["value"] == pytest.approx(0.25)
    assert section["answers"]["choice"]["correct"] == "1010"
    assert (section["model"], section["checkpoint"]) == ("base", "d1:5")
    limited = base_eval.main(base_eval.Config(device="cpu", max_per_task=2))
    assert [result.num_examples for result in limited] == [2, 2, 2]


@pytest.mark.usefixtures("run_here")
def test_without_a_bundle(base_dir: Path) -> None:
    assert find_bundle() is None
    with pytest.raises(UserError, match=r"no evaluation bundle at .*eval_bundle: put a folder"):
        base_eval.main(base_eval.Config(device="cpu"))
    with pytest.raises(UserError, match="no evaluation bundle at absent"):
        base_eval.main(base_eval.Config(device="cpu", eval_bundle="absent"))
    with pytest.raises(UserError, match=r"no evaluation bundle at x.*File name too long"):
        find_bundle("x" * 300)
    (base_dir / "eval_bundle.zip").touch()
    assert find_bundle() == base_dir / "eval_bundle.zip"


def test_in_a_training_run(run_here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On the way and at the end, with a bundle; one line says that there is none; -1 says nothing."""
    TOKENIZER.save(run_here / "tokenizer")
    write_dataset(["some text " * 9] * 9, ["some text"], source="folder")
    config = base_train.Config(
        depth=1,
        head_dim=32,
        max_seq_len=64,
        total_batch_size=128,
        num_iterations=3,
        eval_tokens=64,
        sample_every=-1,
        core_metric_every=2,
        device="cpu",
    )
    state = base_train.main(config)
    assert capsys.readouterr().out.count(f"No evaluation bundle at {run_here / 'eval_bundle'}: CORE") == 1
    assert not any("core" in row for row in state.history)
    base_train.main(replace(config, core_metric_every=-1))
    assert "CORE" not in capsys.readouterr().out
    write_bundle(run_here / "eval_bundle")
    state = base_train.main(config)
    assert [row["step"] for row in state.history if "core" in row] == [2, 3]
    assert "CORE: " in capsys.readouterr().out


def test_a_model_without_a_finite_loss(run_here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """base_eval says so and ends; a training run says so and goes on."""
    gpt = pair_model(LOGITS)
    with torch.no_grad():
        gpt.head.weight[ord("a"), ord(" ")] = torch.nan  # after a space all probabilities are NaN
    save(gpt)
    path = write_bundle(run_here / "eval_bundle")
    message = "choice: the loss is not finite on 4 of 4 examples: evaluate an earlier checkpoint"
    with pytest.raises(UserError, match=message):
        base_eval.main(base_eval.Config(device="cpu"))
    [event] = core_events(1, -1, gpt, TOKENIZER, RUNTIME)
    capsys.readouterr()
    assert event.run(LoopState(step=1)) == {}
    assert capsys.readouterr().out.startswith(f"CORE is not measured: {message}")

    def one_in_two(prompts: Sequence[EncodedExample]) -> Iterator[tuple[EncodedExample, list[OptionScore]]]:
        for prompt in prompts:
            yield prompt, [OptionScore((1.0, math.inf)[prompt.index % 2], True)]

    with pytest.raises(UserError, match="words: the loss is not finite on 2 of 4"):
        evaluate_task(read_bundle(path).tasks[2], one_in_two, TOKENIZER, 64, RUNTIME)


def test_refused_settings() -> None:
    for wrong in ({"max_per_task": 0}, {"batch_tokens": 0}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is 0"):
            base_eval.Config(**wrong)


def test_standard_error_of_a_mean() -> None:
    """One task, right 3 of 4 times, on a scale of a half: p = 4 / 6 in sqrt(p (1 - p) / 4) / 0.5; and at the ends."""
    found, error, floor = core_metric([TaskResult("t", [1, 1, 1, 0], 0.5, 0.5, 0, "", 0.0)])
    assert (found["value"], floor) == (0.5, 0.0)
    assert error == pytest.approx(0.4714045)
    for right in (False, True):  # of one example nothing is known but the most that it can be, and that it is not 0
        assert core_metric([TaskResult("t", [int(right)], 0.0, 0.0, 0, "", 0.0)])[1] == pytest.approx(math.sqrt(2) / 3)
    assert core_metric([TaskResult("t", [0] * 98, 0.0, 0.0, 0, "", 0.0)])[1] == pytest.approx(math.sqrt(0.99 / 9800))


@pytest.mark.parametrize("num", [1, 2, 20])
def test_the_interval_holds_with_few_examples(num: int) -> None:
    """In about 95 of 100 draws of so many examples from each of 21 tasks, as hard as the bundle's are."""
    rng = random.Random(num)
    tasks = [(0.02, 0.0)] * 6 + [(0.3, 0.25)] * 7 + [(0.52, 0.5)] * 8  # how often right, baseline
    truth = math.fsum((p - baseline) / (1 - baseline) for p, baseline in tasks) / 21
    holds = 0
    for _ in range(800):
        drawn = [TaskResult("t", [int(rng.random() < p) for _ in range(num)], 0.0, b, 0, "", 0.0) for p, b in tasks]
        low, high = core_metric(drawn)[0]["interval"]
        holds += low <= truth <= high
    assert 0.93 < holds / 800 < 0.97


if __name__ == "__main__":
    _process(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
