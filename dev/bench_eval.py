"""Benchmark of CORE's scorer against one option at a time: time, memory, and whether both give the same scores.

    python -m dev.bench_eval --eval_bundle=eval_bundle.zip --text=FOLDER          # a tokenizer of that folder's text
    python -m dev.bench_eval --eval_bundle=eval_bundle.zip --max_per_task=10      # a quick look
    python -m dev.bench_eval --eval_bundle=eval_bundle.zip --trained              # the base model of the base folder

"One at a time" is the plain method: each option of each example alone, one forward pass over the whole prompt, logits
at every position. Both methods get the same tokens; encoding is not timed. Each runs in a process of its own, so that
its peak memory can be measured, and waits while the other works. Tasks alternate between the methods. The model is in
float32 on the CPU.

Besides the ratio of the times, the table shows: the ratio of the fewest floating-point operations that each method
needs (without padding, and without attention to masked tokens), each method's share of the speed of this machine's
matrix products (measured after each task), and the ratio of the CPU seconds of all threads, which other work on the
machine disturbs least.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch.nn import functional as F

from nanochat.checkpoint_manager import build_model, load_model
from nanochat.common import print0
from nanochat.configurator import Settings, cli, setting
from nanochat.data.import_text import TextFiles
from nanochat.eval.core_bundle import Bundle, open_bundle
from nanochat.eval.core_prompts import CoreTask, EncodedExample, EncodedOption, encode_example
from nanochat.eval.core_scorer import ModelScorer, OptionScore, is_correct
from nanochat.eval.task_eval import choose_rows
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime
from nanochat.system.environment import peak_memory_bytes
from nanochat.tokenizer import Tokenizer, get_tokenizer, trainable_tokenizer_class

METHODS = ("one at a time", "batched")
PRODUCT_SIZE = 1024  # rows and columns of the matrices that measure the machine's speed
NUM_WARM_UP = 1  # examples


@dataclass(frozen=True)
class Config(Settings):
    eval_bundle: str | None = setting(
        None, "folder or zip file of the tasks; default: eval_bundle in the base folder", names="path"
    )
    tasks: str = setting("", "only these tasks, separated by |")
    max_per_task: int = setting(100, "examples of each task; -1 = all", short="x", at_least=1, or_value=-1)
    text: Path | None = setting(None, "folder of text to train the tokenizer on; default: the bundle's own text")
    depth: int = setting(4, "layers of the model")
    head_dim: int = setting(128, "size of an attention head")
    max_seq_len: int = setting(2048, "tokens of context")
    vocab_size: int = setting(32768, "tokens of the vocabulary")
    trained: bool = setting(False, "take model and tokenizer from the base folder; ignores the settings above")
    batch_tokens: int = setting(
        -1, "positions in a forward pass of the batched method; -1 = base_eval's", short="b", at_least=1, or_value=-1
    )
    seed: int = setting(42, "for the weights, and for the choice of few-shot examples")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model_config(self.vocab_size)

    def model_config(self, vocab_size: int) -> GPTConfig:
        """Return the configuration of the model with random weights."""
        return GPTConfig.from_depth(
            self.depth, vocab_size=vocab_size, sequence_len=self.max_seq_len, head_dim=self.head_dim
        )


@dataclass(frozen=True)
class Ready:
    """First message of a process, when its model is loaded."""

    model_config: GPTConfig
    memory: int  # peak so far, in bytes


@dataclass(frozen=True)
class Measurement:
    """A method's result on a task."""

    scores: list[list[OptionScore]]  # of each example's options, in order
    seconds: float
    cpu_seconds: float  # of all threads
    memory: int  # peak so far, in bytes
    product_flops: float  # FLOPs a second of a matrix product, measured right after the task


@dataclass(frozen=True)
class Row:
    """A row of the table. Pairs are (one at a time, batched)."""

    label: str
    num_examples: int
    num_tokens: int  # that the plain method reads
    seconds: tuple[float, float]
    cpu_seconds: tuple[float, float]
    fewest_flops: tuple[float, float]
    product_flops: tuple[float, float]
    max_loss_difference: float
    num_different_decisions: int
    num_different_greedy: int

    @property
    def ratio(self) -> float:
        """Speed-up of the batched method over one at a time."""
        return self.seconds[0] / self.seconds[1]


# --- the two methods, each in its process -----------------------------------------------------------------------------


def score_one_at_a_time(
    model: GPT, examples: Sequence[EncodedExample]
) -> Iterator[tuple[EncodedExample, list[OptionScore]]]:
    """Score every option alone."""
    for example in examples:
        yield example, [score_alone(model, option) for option in example.options]


@torch.inference_mode()
def score_alone(model: GPT, option: EncodedOption) -> OptionScore:
    """Score one option from the logits at every position."""
    num_targets = option.continuation_len
    logits = model(torch.tensor([option.ids[:-1]]))[0, -num_targets:]  # (1, T) -> (1, T, V) -> (N, V)
    targets = torch.tensor(option.ids[-num_targets:])  # (N,)
    loss = F.cross_entropy(logits, targets)
    return OptionScore(loss.item(), bool((logits.argmax(-1) == targets).all()))


def serve(method: str, config: Config, vocab_size: int, pipe: Connection) -> None:
    """Score each list of examples that arrives through the pipe, until None arrives."""
    runtime = Runtime.start(config.seed, "cpu")
    if config.trained:
        model = load_model("base", runtime)[0]
    else:
        model = random_model(config.model_config(vocab_size), runtime)
    model.compute_dtype = torch.float32  # even where bf16 is faster
    batched_scorer = ModelScorer(model, config.batch_tokens)
    pipe.send(Ready(model.config, peak_memory_bytes()))
    while (examples := pipe.recv()) is not None:
        start = time.perf_counter()
        cpu_start = time.process_time()
        scored = list(batched_scorer(examples) if method == "batched" else score_one_at_a_time(model, examples))
        seconds = time.perf_counter() - start
        cpu_seconds = time.process_time() - cpu_start
        scores = {example.index: option_scores for example, option_scores in scored}
        in_order = [scores[index] for index in sorted(scores)]
        pipe.send(Measurement(in_order, seconds, cpu_seconds, peak_memory_bytes(), measure_product_flops()))


def random_model(model_config: GPTConfig, runtime: Runtime) -> GPT:
    """Return a model with random weights in every matrix: initial weights are partly 0, and give all options a tie."""
    model = build_model(model_config, runtime)
    generator = torch.Generator().manual_seed(runtime.seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name != "embed.weight":
                param.copy_(torch.randn(param.shape, generator=generator) / param.shape[1] ** 0.5)
    return model


def measure_product_flops() -> float:
    """Return the FLOPs a second of a product of square matrices, the best of five."""
    matrix = torch.ones(PRODUCT_SIZE, PRODUCT_SIZE)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - start)
    return 2 * PRODUCT_SIZE**3 / min(seconds)


# --- lower bound of the work ------------------------------------------------------------------------------------------


def count_fewest_flops(examples: Sequence[EncodedExample], model_config: GPTConfig) -> tuple[float, float]:
    """Return the FLOPs of matrix products, without padding: of the plain method, and with nothing computed twice."""
    width = model_config.n_embd
    per_token = 2.0 * model_config.n_layer * (10 + 2 * model_config.n_kv_head / model_config.n_head) * width**2
    per_pair = 4.0 * model_config.n_layer * width  # a token that attends to a token
    per_logits = 2.0 * width * model_config.padded_vocab_size

    def layers(start: int, end: int) -> float:
        """Return the FLOPs of all layers for the tokens from `start` to `end`, which attend to all before them."""
        return (end - start) * per_token + per_pair * (end * (end + 1) - start * (start + 1)) / 2

    plain = batched = 0.0
    for example in examples:
        batched += layers(0, example.prefix_len)
        for ids, continuation_len in example.options:
            plain += layers(0, len(ids) - 1) + (len(ids) - 1) * per_logits
            batched += layers(example.prefix_len, len(ids) - 1) + continuation_len * per_logits
    return plain, batched


# --- both methods, task by task ---------------------------------------------------------------------------------------


def make_tokenizer(config: Config, bundle: Bundle) -> Tokenizer:
    """Return the base folder's tokenizer, or train one."""
    if config.trained:
        return get_tokenizer()
    texts = TextFiles(config.text).split()[0] if config.text is not None else bundle.texts()
    return trainable_tokenizer_class().train_from_iterator(texts, config.vocab_size)


def measure(
    task: CoreTask,
    examples: Sequence[EncodedExample],
    golds: Sequence[int],
    pipes: Sequence[Connection],
    model_config: GPTConfig,
) -> tuple[Row, list[int]]:
    """Score a task with both methods, one after the other. Returns its row, and each method's peak memory."""
    measurements = []
    for pipe in pipes:
        pipe.send(list(examples))
        measurements.append(receive(pipe))
    plain, batched = measurements
    pairs = [
        pair
        for plain_scores, batched_scores in zip(plain.scores, batched.scores, strict=True)
        for pair in zip(plain_scores, batched_scores, strict=True)
    ]
    decisions = [
        [is_correct(task.task_type, scores, gold) for scores, gold in zip(measurement.scores, golds, strict=True)]
        for measurement in measurements
    ]
    row = Row(
        label=task.label,
        num_examples=len(examples),
        num_tokens=sum(len(option.ids) - 1 for example in examples for option in example.options),
        seconds=(plain.seconds, batched.seconds),
        cpu_seconds=(plain.cpu_seconds, batched.cpu_seconds),
        fewest_flops=count_fewest_flops(examples, model_config),
        product_flops=(plain.product_flops, batched.product_flops),
        max_loss_difference=max(abs(a.loss - b.loss) for a, b in pairs),
        num_different_decisions=sum(a != b for a, b in zip(*decisions, strict=True)),
        num_different_greedy=sum(a.is_greedy != b.is_greedy for a, b in pairs),
    )
    return row, [measurement.memory for measurement in measurements]


def receive(pipe: Connection) -> Measurement:
    """Return a process's measurement. Raises RuntimeError if the process has died."""
    try:
        measurement: Measurement = pipe.recv()
    except EOFError as error:
        raise RuntimeError("the process that scores has ended, see above") from error
    return measurement


def total(rows: Sequence[Row]) -> Row:
    """Return the row of all tasks together."""

    def add(name: str) -> tuple[float, float]:
        plain, batched = zip(*(getattr(row, name) for row in rows), strict=True)
        return sum(plain), sum(batched)

    seconds = add("seconds")
    # FLOPs of matrix products in the same time, at the speed measured after each task.
    possible_flops = [sum(row.seconds[i] * row.product_flops[i] for row in rows) for i in (0, 1)]
    return Row(
        label="all",
        num_examples=sum(row.num_examples for row in rows),
        num_tokens=sum(row.num_tokens for row in rows),
        seconds=seconds,
        cpu_seconds=add("cpu_seconds"),
        fewest_flops=add("fewest_flops"),
        product_flops=(possible_flops[0] / seconds[0], possible_flops[1] / seconds[1]),
        max_loss_difference=max(row.max_loss_difference for row in rows),
        num_different_decisions=sum(row.num_different_decisions for row in rows),
        num_different_greedy=sum(row.num_different_greedy for row in rows),
    )


HEADER = (
    f"{'task':32} {'n':>5} {'tokens':>10} {'one, s':>9} {'batch, s':>8} {'ratio':>6} {'of CPU':>6} "
    f"{'arithmetic':>10} {'of products':>13} {'loss diff':>9} {'decisions':>9} {'greedy':>6}"
)


def format_row(row: Row) -> str:
    """Return a row of the table."""
    utilization = [row.fewest_flops[i] / row.seconds[i] / row.product_flops[i] for i in (0, 1)]
    return (
        f"{row.label:32} {row.num_examples:5} {row.num_tokens:10,} {row.seconds[0]:9.2f} {row.seconds[1]:8.2f} "
        f"{row.ratio:6.2f} {row.cpu_seconds[0] / row.cpu_seconds[1]:6.2f} "
        f"{row.fewest_flops[0] / row.fewest_flops[1]:10.2f} {utilization[0]:6.0%} {utilization[1]:6.0%} "
        f"{row.max_loss_difference:9.1e} {row.num_different_decisions:9} {row.num_different_greedy:6}"
    )


def main(config: Config) -> tuple[list[Row], list[int]]:
    """Measure and print. Returns the rows, and the memory that each method took beyond its model, in bytes."""
    bundle = open_bundle(config.eval_bundle)
    tasks = bundle.select(config.tasks.split("|")) if config.tasks else list(bundle.tasks)
    tokenizer = make_tokenizer(config, bundle)
    context = multiprocessing.get_context("spawn")
    pipes = []
    processes = []
    try:
        for method in METHODS:
            pipe, child_pipe = context.Pipe()
            process = context.Process(
                target=serve, args=(method, config, tokenizer.get_vocab_size(), child_pipe), daemon=True
            )
            process.start()
            child_pipe.close()
            pipes.append(pipe)
            processes.append(process)
        return compare(tasks, tokenizer, pipes, config)
    finally:
        for pipe, process in zip(pipes, processes, strict=True):
            with suppress(OSError):
                pipe.send(None)
            process.join(5)
            process.kill()
            process.join()


def compare(
    tasks: Sequence[CoreTask], tokenizer: Tokenizer, pipes: Sequence[Connection], config: Config
) -> tuple[list[Row], list[int]]:
    """Measure and print one task after the other."""
    ready: list[Ready] = [pipe.recv() for pipe in pipes]
    model_config = ready[0].model_config
    print0(f"{model_config}, {torch.get_num_threads()} thread(s), float32")
    print0(HEADER)
    rows: list[Row] = []
    memory = [0, 0]
    max_examples = None if config.max_per_task == -1 else config.max_per_task
    for task in tasks:
        indices = choose_rows(len(task.examples), max_examples)
        examples = [
            encode_example(task.prompts(index, config.seed), tokenizer, model_config.sequence_len, position)
            for position, index in enumerate(indices)
        ]
        golds = [task.examples[index].gold for index in indices]
        if not rows:
            measure(task, examples[:NUM_WARM_UP], golds[:NUM_WARM_UP], pipes, model_config)
        row, memory = measure(task, examples, golds, pipes, model_config)
        rows.append(row)
        print0(format_row(row))
    print0(format_row(total(rows)))
    for method, before, peak in zip(METHODS, ready, memory, strict=True):
        print0(f"memory, {method}: {before.memory / 1e6:,.0f} MB with the model, at most {peak / 1e6:,.0f} MB")
    return rows, [peak - before.memory for peak, before in zip(memory, ready, strict=True)]


if __name__ == "__main__":
    cli(Config, main, __doc__)
