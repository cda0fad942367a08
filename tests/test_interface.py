"""The documented interface of nanochat-style projects: settings, calls and tasks under the names that people know."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nanochat.configurator import parse
from tests.support.bundles import write_bundle
from tests.support.talks import TOKENIZER, save_model

RATES = "embedding_lr unembedding_lr weight_decay matrix_lr"
SETTINGS = {
    "tok_train": "max_chars doc_cap vocab_size",
    "base_train": f"""run depth max_seq_len num_iterations target_flops target_param_data_ratio device_batch_size
        total_batch_size {RATES} grad_clip warmup_ratio warmdown_ratio final_lr_frac resume_from_step eval_every
        eval_tokens core_metric_every core_metric_max_per_task sample_every save_every model_tag""",
    "mid_train": f"""{RATES} init_lr_frac num_iterations max_seq_len device_batch_size total_batch_size eval_every
        eval_tokens model_tag run""",
    "chat_sft": f"source num_epochs num_iterations init_lr_frac {RATES} device_batch_size eval_every model_tag run",
    "chat_rl": f"""source num_samples examples_per_step max_new_tokens temperature top_k num_epochs init_lr_frac {RATES}
        device_batch_size eval_every eval_examples save_every run""",
    "chat_eval": """i/source a/task_name t/temperature m/max_new_tokens n/num_samples k/top_k b/batch_size g/model_tag
        s/step x/max_problems""",
    "chat_cli": "i/source g/model_tag p/prompt t/temperature k/top_k m/max_tokens",
    "chat_web": "i/source g/model_tag p/port t/temperature k/top_k m/max_tokens n/num_gpus host",
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings(name: str) -> None:
    """Each setting is a flag, with dashes and underscores alike, and its letter is the short form."""
    script = importlib.import_module(f"scripts.{name}")
    fields = {field.name: field for field in dataclasses.fields(script.Config)}
    for word in SETTINGS[name].split():
        short, _, long = word.rpartition("/")
        field = fields[long]
        value = _other_value(field)
        for flag in (f"--{long}", f"--{long.replace('_', '-')}", *([f"-{short}"] if short else [])):
            # chat_eval refuses several samples of greedy decoding: they would be equal.
            extra = ["--temperature=1"] if name == "chat_eval" and long == "num_samples" else []
            config = parse(script.Config, [flag, str(value), *extra])
            assert getattr(config, long) == value, flag


def _other_value(field: dataclasses.Field[Any]) -> Any:
    """A value that the setting allows and that is not its default."""
    if choices := field.metadata["choices"]:
        return next(choice for choice in choices if choice != field.default)
    special = {"device_batch_size": 2, "total_batch_size": 524288 * 2, "vocab_size": 300, "resume_from_step": 3}
    special |= {"depth": 4, "max_seq_len": 1024, "warmup_ratio": 0.1, "warmdown_ratio": 0.3, "final_lr_frac": 0.25}
    if field.name in special:
        return special[field.name]
    if isinstance(field.default, bool | int | float):
        return type(field.default)(abs(field.default) + 1)
    if field.name in ("task_name", "top_k", "max_tokens"):
        return "GSM8K" if field.name == "task_name" else 7
    return "name"


# --- calls ------------------------------------------------------------------------------------------------------------

USER = {"role": "user", "content": "Hello"}
CONVERSATION = {"messages": [USER, {"role": "assistant", "content": "Good morning!"}]}


@pytest.fixture
def sft_model(run_here: Path) -> Path:
    """A tokenizer and a tiny SFT checkpoint in the base folder."""
    save_model(run_here, "sft")
    return run_here


@pytest.mark.usefixtures("run_here")
def test_compute_init() -> None:
    from nanochat.common import compute_init

    ddp, ddp_rank, ddp_local_rank, ddp_world_size, device = compute_init()
    assert (ddp, ddp_rank, ddp_local_rank, ddp_world_size) == (False, 0, 0, 1)
    assert isinstance(device, torch.device)


@pytest.mark.usefixtures("sft_model")
def test_chat_with_a_checkpoint() -> None:
    from nanochat.checkpoint_manager import load_model
    from nanochat.common import compute_init
    from nanochat.engine import Engine

    *_, device = compute_init()
    model, tokenizer, meta = load_model("sft", device)
    assert meta["model_config"]["n_embd"] == 32
    engine = Engine(model, tokenizer)
    tokens = tokenizer.render_for_completion({"messages": [USER]})
    completions, masks = engine.generate_batch(tokens, num_samples=1, max_tokens=16, temperature=0.7)
    assert completions[0][: len(tokens)] == tokens
    assert len(masks[0]) == len(completions[0])
    assert isinstance(tokenizer.decode(completions[0]), str)
    steps = 0
    for token_column, token_masks in engine.generate(tokens, num_samples=2, max_tokens=16, temperature=0.7, top_k=50):
        assert len(token_column) == len(token_masks) == 2
        steps += 1
    assert 1 <= steps <= 16


@pytest.mark.usefixtures("sft_model")
def test_load_model() -> None:
    """By stage, device, phase, model tag and step; a model for training is in training mode."""
    from nanochat.checkpoint_manager import load_model

    model, _, _ = load_model("sft", torch.device("cpu"), phase="train", model_tag="d1", step=7)
    assert model.training
    model, _, _ = load_model("sft", torch.device("cpu"), "eval", model_tag=None, step=None)
    assert not model.training


def test_calculator() -> None:
    from nanochat.engine import use_calculator

    assert use_calculator("1 + 2 * 3") == 7
    assert isinstance(use_calculator("1 + 2 * 3"), int)
    assert use_calculator("1 / 4") == 0.25
    assert use_calculator("'strawberry'.count('r')") == 3
    assert use_calculator("the answer") is None


def test_kv_cache() -> None:
    from nanochat.engine import KVCache
    from nanochat.gpt import GPTConfig

    config = GPTConfig(sequence_len=64, vocab_size=300, n_layer=2, n_head=2, n_kv_head=2, n_embd=64)
    assert KVCache(config, 1, torch.float32, torch.device("cpu")).pos == 0


def test_train_a_tokenizer(tmp_path: Path) -> None:
    from nanochat.tokenizer import SPECIAL_TOKENS, HuggingFaceTokenizer, RustBPETokenizer

    assert "<|bos|>" in SPECIAL_TOKENS
    for tokenizer_class in (RustBPETokenizer, HuggingFaceTokenizer):
        tokenizer = tokenizer_class.train_from_iterator(text_iterator=iter(["some text"] * 100), vocab_size=275)
        folder = str(tmp_path / tokenizer_class.__name__) + "/"
        tokenizer.save(folder)
        loaded = tokenizer_class.from_directory(folder)
        assert isinstance(loaded, tokenizer_class)
        assert loaded.encode("some text") == tokenizer.encode("some text")


@pytest.mark.usefixtures("sft_model")
def test_use_a_tokenizer() -> None:
    from nanochat.tokenizer import get_tokenizer

    tokenizer = get_tokenizer()
    ids = tokenizer.encode("Hello", prepend="<|bos|>")
    assert ids[0] == tokenizer.get_bos_token_id()
    ids.append(tokenizer.encode_special("<|user_start|>"))
    assert tokenizer.decode(ids[1:-1]) == "Hello"
    ids, mask = tokenizer.render_conversation(CONVERSATION, max_tokens=2048)
    assert len(ids) == len(mask)
    assert "|" in tokenizer.visualize_tokenization(ids, mask)


@pytest.mark.usefixtures("sft_model")
def test_data_loader_and_bits_per_byte() -> None:
    from nanochat.data.shards import write_dataset
    from nanochat.dataloader import tokenizing_distributed_data_loader
    from nanochat.gpt import GPT, GPTConfig
    from nanochat.loss_eval import evaluate_bpb
    from nanochat.tokenizer import get_tokenizer

    tokenizer = get_tokenizer()
    texts = [f"{number} is a number." for number in range(50)]
    write_dataset(texts[:40], texts[40:], source="numbers")
    batches = tokenizing_distributed_data_loader(2, 16, "val", "cpu")
    inputs, targets = next(batches)
    assert inputs.shape == targets.shape == (2, 16)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert tokenizer.decode(inputs[0].tolist()).startswith("<|bos|>")
    for _ in range(40):  # more than the split has: the loader begins again
        next(batches)
    model = GPT(GPTConfig(sequence_len=16, vocab_size=265, n_layer=1, n_head=2, n_kv_head=2, n_embd=32))
    model.init_weights()
    token_bytes = torch.tensor(tokenizer.token_bytes())
    batches = tokenizing_distributed_data_loader(2, 16, "val", torch.device("cpu"))
    bpb = evaluate_bpb(model, batches, 3, token_bytes)
    batches = tokenizing_distributed_data_loader(2, 16, "val", torch.device("cpu"))
    nats = num_bytes = 0.0
    for _ in range(3):
        inputs, targets = next(batches)
        losses = model(inputs, targets, loss_reduction="none")
        counts = token_bytes[targets]
        nats += losses[counts > 0].double().sum().item()
        num_bytes += counts.sum().item()
    assert isinstance(bpb, float)
    assert bpb == pytest.approx(nats / num_bytes / torch.log(torch.tensor(2.0)).item(), rel=1e-6)


def test_core(sft_model: Path) -> None:
    """Accuracies and centred accuracies by task, and their mean, as base_eval has them."""
    from nanochat.checkpoint_manager import load_model
    from nanochat.core_eval import evaluate_model

    write_bundle(sft_model / "eval_bundle")
    device = torch.device("cpu")
    model, tokenizer, _ = load_model("sft", device)
    scores = evaluate_model(model, tokenizer, device, max_per_task=4)
    assert set(scores["results"]) == set(scores["centered_results"]) == {"choice", "schema", "words"}
    assert all(0 <= accuracy <= 1 for accuracy in scores["results"].values())
    centred = list(scores["centered_results"].values())
    assert scores["core_metric"] == pytest.approx(sum(centred) / len(centred))
    assert evaluate_model(model, tokenizer, device)["core_metric"] <= 1


def test_report(base_dir: Path) -> None:
    from nanochat.report import get_report

    get_report().log(section="My stage", data={"accuracy": 0.5, "settings": {"depth": 4}})
    section = json.loads((base_dir / "report" / "my_stage.json").read_text(encoding="utf-8"))
    assert section["metrics"] == {"accuracy": 0.5}
    text = get_report().generate().read_text(encoding="utf-8")
    assert "My stage" in text
    assert "accuracy" in text
    assert "depth" in text


def test_model() -> None:
    from nanochat.gpt import GPT, GPTConfig

    model = GPT(GPTConfig(sequence_len=64, vocab_size=300, n_layer=2, n_head=2, n_kv_head=2, n_embd=64))
    model.init_weights()
    optimizers = model.setup_optimizers(unembedding_lr=0.004, embedding_lr=0.2, matrix_lr=0.02, weight_decay=0.0)
    assert isinstance(optimizers, list)
    idx = torch.randint(300, (4, 17), generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(8):
        loss = model(idx[:, :-1], idx[:, 1:])
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    assert all(param.grad is None for param in model.parameters())
    moved = dict(model.named_parameters())
    assert all(moved[name].abs().sum() > 0 for name in moved)
    assert model(idx).shape == (4, 17, 300)
    ids = [1, 2, 3]
    assert len(list(model.generate(ids, max_tokens=8, temperature=0.0))) == 8
    assert model.estimate_flops() > 0


def test_optimizers_take_the_same_steps_as_training() -> None:
    """Both optimizers together give the weights of the training loop's one optimizer, without clipping."""
    from nanochat.gpt import GPT, GPTConfig
    from nanochat.optim import OptimSettings, build_optimizer
    from nanochat.runtime import Runtime

    def trained(use_list: bool) -> dict[str, torch.Tensor]:
        model = GPT(GPTConfig(sequence_len=16, vocab_size=64, n_layer=1, n_head=2, n_kv_head=2, n_embd=32))
        model.init_weights()
        rates = {"unembedding_lr": 0.004, "embedding_lr": 0.2, "matrix_lr": 0.02, "weight_decay": 0.01}
        runtime = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 42)
        whole = build_optimizer(model, runtime, OptimSettings(**rates, grad_clip=0.0))
        optimizers = model.setup_optimizers(**rates) if use_list else [whole]
        idx = torch.randint(64, (2, 17), generator=torch.Generator().manual_seed(2))
        for _ in range(3):
            model(idx[:, :-1], idx[:, 1:]).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        return {name: param.detach().clone() for name, param in model.named_parameters()}

    first, second = trained(use_list=True), trained(use_list=False)
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- tasks ------------------------------------------------------------------------------------------------------------


@pytest.mark.shared_data
def test_mixture_of_tasks(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.arc import ARC
    from tasks.common import TaskMixture, TaskSequence
    from tasks.customjson import CustomJSON
    from tasks.gsm8k import GSM8K
    from tasks.mmlu import MMLU
    from tasks.smoltalk import SmolTalk
    from tasks.spellingbee import SimpleSpelling, SpellingBee

    monkeypatch.setenv("NANOCHAT_HUB_DIR", str(shared_data / "hub"))
    mine = tmp_path / "mine.jsonl"
    mine.write_text(json.dumps(CONVERSATION) + "\n", encoding="utf-8")
    parts = [
        ARC(subset="ARC-Easy", split="train"),
        ARC(subset="ARC-Challenge", split="train"),
        GSM8K(subset="main", split="train"),
        MMLU(subset="auxiliary_train", split="train"),
        SmolTalk(split="train", stop=10_000),
        CustomJSON(filepath=str(mine)),
        SimpleSpelling(size=300, split="train"),
        SpellingBee(size=300, split="train"),
    ]
    train = TaskMixture(parts)
    assert len(train) == sum(map(len, parts)) == len(TaskSequence(parts))
    for index in range(0, len(train), len(train) // 50):
        ids, mask = TOKENIZER.render_conversation(train[index])
        assert len(ids) == len(mask)


MY_TASK = """
from tasks.common import Task

class MyTask(Task):
    def __init__(self, split, **kwargs):
        super().__init__(**kwargs)
    @property
    def eval_type(self):
        return "generative"
    def num_examples(self):
        return 3
    def get_example(self, index):
        return {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]}
    def evaluate(self, conversation, completion):
        return "4" in completion
"""


@pytest.fixture
def my_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module `tasks.my_task` with a task of the user's own."""
    import tasks

    (tmp_path / "my_task.py").write_text(MY_TASK, encoding="utf-8")
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    yield importlib.import_module("tasks.my_task")
    import sys

    del sys.modules["tasks.my_task"]
    if hasattr(tasks, "my_task"):
        delattr(tasks, "my_task")


def test_a_task_of_the_users_own(my_task: ModuleType) -> None:
    from tasks.common import TaskMixture

    task = my_task.MyTask(split="train", start=1)
    assert len(task) == 2
    assert len(TaskMixture([task, my_task.MyTask("test")])) == 5
    assert task.evaluate(task[0], "It is 4.")
    assert task.reward(task[0], "It is 5.") == 0.0


@pytest.mark.usefixtures("my_task")
def test_chat_eval_takes_it(sft_model: Path) -> None:
    from scripts import chat_eval

    flags = ["-i", "sft", "-a", "my_task:MyTask", "-m", "8", "--device=cpu"]
    [result] = chat_eval.main(parse(chat_eval.Config, flags))
    assert result.name == "my_task:MyTask"
    assert result.num_examples == 3
    assert any((sft_model / "chat_eval").rglob("*"))


@pytest.mark.usefixtures("my_task", "sft_model")
def test_a_mixture_file_takes_it(tmp_path: Path) -> None:
    from scripts import chat_sft
    from tests.support.talks import write_mixture

    save_model(tmp_path / "nanochat", "mid")
    path = write_mixture(tmp_path / "mixture.toml", "task = 'my_task:MyTask'")
    flags = [f"--mixture={path}", "--device=cpu", "--total_batch_size=128", "--device_batch_size=1", "--compile=off"]
    state = chat_sft.main(parse(chat_sft.Config, [*flags, "--num_iterations=2"]))
    assert state.step == 2
