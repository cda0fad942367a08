"""CORE's prompts scored many at a time, and one at a time, in turn task by task in one run: time, memory, agreement.

    python -m dev.bench_eval --eval_bundle=../shared/data/eval_bundle.zip --text=../shared/data/text/textbooks
    python -m dev.bench_eval --eval_bundle=eval_bundle.zip --max_per_task=10      # a quick look
    python -m dev.bench_eval --eval_bundle=eval_bundle.zip --trained              # the base model of the base folder

One at a time is the plain way: each option of each example by itself, one forward pass over the whole prompt, logits at
every position. Both ways get the same tokens; tokenizing is not timed. Each has a process of its own, so that the peak
of its memory is its own, and waits while the other works. The model is float32 and on the CPU.

Beside the ratio of the times stands that of the arithmetic: of what each way must multiply at least, when padding costs
nothing and attention leaves out what no token sees. And how near that each way comes to this machine's matrix products,
measured after each task. The ratio of processor seconds, of all threads, is what a machine that does other things too
disturbs least.
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
from nanochat.common import UserError, print0
from nanochat.configurator import Settings, cli, setting
from nanochat.data.import_text import TextFiles
from nanochat.eval.core_bundle import Bundle, find_bundle, read_bundle
from nanochat.eval.core_prompts import CoreTask, EncodedExample, encode_example
from nanochat.eval.core_scorer import ModelScorer, OptionScore, is_correct
from nanochat.eval.task_eval import choose_rows
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime
from nanochat.system.environment import peak_memory_bytes
from nanochat.tokenizer import Tokenizer, get_tokenizer, trainable_tokenizer_class

WAYS = ("one at a time", "batched")
PRODUCT = 1024  # rows and columns of the matrices that tell what the machine can do
WARM_UP = 1  # examples


@dataclass(frozen=True)
class Config(Settings):
    eval_bundle: str | None = setting(None, "folder or zip file of the tasks; default: eval_bundle in the base folder")
    tasks: str = setting("", "only these, with | between them")
    max_per_task: int = setting(100, "examples of each task; -1 = all", short="x", at_least=1, also=-1)
    text: Path | None = setting(None, "folder of text to train the tokenizer on; default: the bundle's own text")
    depth: int = setting(4, "layers of the model")
    head_dim: int = setting(128, "size of an attention head")
    max_seq_len: int = setting(2048, "tokens of context")
    vocab_size: int = setting(32768, "tokens of the vocabulary")
    trained: bool = setting(
        False, "take model and tokenizer from the base folder; the settings above do not count then"
    )
    batch_tokens: int = setting(
        -1, "positions in a forward pass of the batched way; -1 = base_eval's", short="b", at_least=1, also=-1
    )
    seed: int = setting(42, "of the weights, and of the choice of solved examples in a prompt")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shape(self.vocab_size)

    def shape(self, vocab_size: int) -> GPTConfig:
        """The shape of a model with random weights."""
        return GPTConfig.from_depth(
            self.depth, vocab_size=vocab_size, sequence_len=self.max_seq_len, head_dim=self.head_dim
        )


@dataclass(frozen=True)
class Ready:
    """What a process says when its model is there: its shape, and memory so far in bytes."""

    shape: GPTConfig
    memory: int


@dataclass(frozen=True)
class Answer:
    """What a way makes of a task. `scores`: of each example's options, in order. `memory`: the peak so far, in bytes.

    `cpu_seconds`: of all threads. `product`: FLOPs a second of a matrix product, right after.
    """

    scores: list[list[OptionScore]]
    seconds: float
    cpu_seconds: float
    memory: int
    product: float


@dataclass(frozen=True)
class Row:
    """A task: seconds and fewest FLOPs of each way, and how far the two are apart."""

    label: str
    num: int
    tokens: int  # that the plain way reads
    seconds: tuple[float, float]
    cpu_seconds: tuple[float, float]
    flops: tuple[float, float]
    products: tuple[float, float]
    loss_difference: float
    other_decisions: int
    other_exact: int

    @property
    def ratio(self) -> float:
        """How many times faster the batched way is."""
        return self.seconds[0] / self.seconds[1]


# --- the two ways, each in its process --------------------------------------------------------------------------------


def one_at_a_time(model: GPT, prompts: Sequence[EncodedExample]) -> Iterator[tuple[EncodedExample, list[OptionScore]]]:
    """The plain way."""
    for prompt in prompts:
        yield prompt, [score_alone(model, ids, count) for ids, count in prompt.options]


@torch.inference_mode()
def score_alone(model: GPT, ids: list[int], count: int) -> OptionScore:
    """One option: logits at every position, of which the last `count` are looked at."""
    logits = model(torch.tensor([ids[:-1]]))[0, -count:]  # (1, T) -> (1, T, V) -> (N, V)
    wanted = torch.tensor(ids[-count:])
    loss = F.cross_entropy(logits, wanted)
    return OptionScore(loss.item(), bool((logits.argmax(-1) == wanted).all()))


def serve(way: str, config: Config, vocab_size: int, pipe: Connection) -> None:
    """A process: score the prompts that come, until None comes."""
    runtime = Runtime.start(config.seed, "cpu")
    model = load_model("base", runtime)[0] if config.trained else random_model(config.shape(vocab_size), runtime)
    model.compute_dtype = torch.float32  # whatever the machine is quick at
    batched = ModelScorer(model, config.batch_tokens)
    pipe.send(Ready(model.config, peak_memory_bytes()))
    while (prompts := pipe.recv()) is not None:
        start, cpu_start = time.perf_counter(), time.process_time()
        found = list(batched(prompts) if way == "batched" else one_at_a_time(model, prompts))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        scores = {prompt.index: scores for prompt, scores in found}
        in_order = [scores[place] for place in sorted(scores)]
        pipe.send(Answer(in_order, seconds, cpu_seconds, peak_memory_bytes(), product_flops()))


def random_model(shape: GPTConfig, runtime: Runtime) -> GPT:
    """A model whose every weight says something: at initialisation all logits are 0, and all options a draw."""
    model = build_model(shape, runtime)
    generator = torch.Generator().manual_seed(runtime.seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name != "embed.weight":
                param.copy_(torch.randn(param.shape, generator=generator) / param.shape[1] ** 0.5)
    return model


def product_flops() -> float:
    """FLOPs a second of a product of square matrices, the best of a few."""
    matrix = torch.ones(PRODUCT, PRODUCT)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        seconds.append(time.perf_counter() - start)
    return 2 * PRODUCT**3 / min(seconds)


# --- what must be done at least ---------------------------------------------------------------------------------------


def fewest_flops(prompts: Sequence[EncodedExample], shape: GPTConfig) -> tuple[float, float]:
    """FLOPs of the plain way, and where nothing is computed twice or unasked: products of matrices, without padding."""
    per_token = 2.0 * shape.n_layer * (10 + 2 * shape.n_kv_head / shape.n_head) * shape.n_embd**2
    per_pair = 4.0 * shape.n_layer * shape.n_embd  # a token that looks at a token
    per_logits = 2.0 * shape.n_embd * shape.padded_vocab_size

    def read(start: int, end: int) -> float:
        return (end - start) * per_token + per_pair * (end * (end + 1) - start * (start + 1)) / 2

    plain = batched = 0.0
    for prompt in prompts:
        batched += read(0, prompt.prefix_len)
        for ids, count in prompt.options:
            plain += read(0, len(ids) - 1) + (len(ids) - 1) * per_logits
            batched += read(prompt.prefix_len, len(ids) - 1) + count * per_logits
    return plain, batched


# --- both in turn -----------------------------------------------------------------------------------------------------


def make_tokenizer(config: Config, bundle: Bundle) -> Tokenizer:
    """That of the base folder, or one trained now."""
    if config.trained:
        return get_tokenizer()
    if config.text is not None:
        texts = TextFiles(config.text).split()[0]
    else:
        texts = (
            f"{head} {end}\n" for task in bundle.tasks for example in task.examples for head, end in example.options
        )
    return trainable_tokenizer_class().train_from_iterator(texts, config.vocab_size)


def measure(
    task: CoreTask,
    prompts: Sequence[EncodedExample],
    golds: Sequence[int],
    pipes: Sequence[Connection],
    shape: GPTConfig,
) -> tuple[Row, list[int]]:
    """Score a task both ways, one after the other; also each way's peak of memory."""
    answers = []
    for pipe in pipes:
        pipe.send(list(prompts))
        answers.append(receive(pipe))
    plain, batched = answers
    pairs = [
        pair for one, other in zip(plain.scores, batched.scores, strict=True) for pair in zip(one, other, strict=True)
    ]
    decisions = [
        [is_correct(task.task_type, s, gold) for s, gold in zip(a.scores, golds, strict=True)] for a in answers
    ]
    row = Row(
        label=task.label,
        num=len(prompts),
        tokens=sum(len(ids) - 1 for prompt in prompts for ids, _ in prompt.options),
        seconds=(plain.seconds, batched.seconds),
        cpu_seconds=(plain.cpu_seconds, batched.cpu_seconds),
        flops=fewest_flops(prompts, shape),
        products=(plain.product, batched.product),
        loss_difference=max(abs(one.loss - other.loss) for one, other in pairs),
        other_decisions=sum(one != other for one, other in zip(*decisions, strict=True)),
        other_exact=sum(one.is_greedy != other.is_greedy for one, other in pairs),
    )
    return row, [answer.memory for answer in answers]


def receive(pipe: Connection) -> Answer:
    """A process's answer. Raises RuntimeError if it has died."""
    try:
        answer: Answer = pipe.recv()
    except EOFError as error:
        raise RuntimeError("the process that scores has ended, see above") from error
    return answer


def total(rows: Sequence[Row]) -> Row:
    """All tasks as one."""

    def add(name: str) -> tuple[float, float]:
        first, second = zip(*(getattr(row, name) for row in rows), strict=True)
        return sum(first), sum(second)

    works = [[row.seconds[way] * row.products[way] for row in rows] for way in (0, 1)]  # what a machine could have done
    seconds = add("seconds")
    return Row(
        label="all",
        num=sum(row.num for row in rows),
        tokens=sum(row.tokens for row in rows),
        seconds=seconds,
        cpu_seconds=add("cpu_seconds"),
        flops=add("flops"),
        products=(sum(works[0]) / seconds[0], sum(works[1]) / seconds[1]),
        loss_difference=max(row.loss_difference for row in rows),
        other_decisions=sum(row.other_decisions for row in rows),
        other_exact=sum(row.other_exact for row in rows),
    )


TITLE = (
    f"{'task':32} {'n':>5} {'tokens':>10} {'one, s':>9} {'batch, s':>8} {'ratio':>6} {'of CPU':>6} "
    f"{'arithmetic':>10} {'of products':>13} {'loss diff':>9} {'decisions':>9} {'exact':>6}"
)


def line(row: Row) -> str:
    """A row of the table."""
    share = [row.flops[way] / row.seconds[way] / row.products[way] for way in (0, 1)]
    return (
        f"{row.label:32} {row.num:5} {row.tokens:10,} {row.seconds[0]:9.2f} {row.seconds[1]:8.2f} {row.ratio:6.2f} "
        f"{row.cpu_seconds[0] / row.cpu_seconds[1]:6.2f} {row.flops[0] / row.flops[1]:10.2f} "
        f"{share[0]:6.0%} {share[1]:6.0%} {row.loss_difference:9.1e} {row.other_decisions:9} {row.other_exact:6}"
    )


def main(config: Config) -> tuple[list[Row], list[int]]:
    """Measure, print; return the rows and what memory each way took beyond its model, in bytes."""
    path = find_bundle(config.eval_bundle)
    if path is None:
        raise UserError("no evaluation bundle there: say with --eval_bundle where it is")
    bundle = read_bundle(path)
    wanted = config.tasks.split("|") if config.tasks else [task.label for task in bundle.tasks]
    if unknown := set(wanted) - {task.label for task in bundle.tasks}:
        raise UserError(f"the bundle has no task {', '.join(sorted(unknown))}")
    tokenizer = make_tokenizer(config, bundle)
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for way in WAYS:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(way, config, tokenizer.get_vocab_size(), theirs), daemon=True)
            process.start()
            theirs.close()
            pipes.append(ours)
            processes.append(process)
        return compare([task for task in bundle.tasks if task.label in wanted], tokenizer, pipes, config)
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
    """Measure one task after the other, and print."""
    ready: list[Ready] = [pipe.recv() for pipe in pipes]
    shape = ready[0].shape
    print0(f"{shape}, {torch.get_num_threads()} thread(s), float32")
    print0(TITLE)
    rows: list[Row] = []
    memory = [0, 0]
    for task in tasks:
        chosen = choose_rows(len(task.examples), None if config.max_per_task == -1 else config.max_per_task)
        prompts = [
            encode_example(task.prompts(index, config.seed), tokenizer, shape.sequence_len, place)
            for place, index in enumerate(chosen)
        ]
        golds = [task.examples[index].gold for index in chosen]
        if not rows:
            measure(task, prompts[:WARM_UP], golds[:WARM_UP], pipes, shape)
        row, memory = measure(task, prompts, golds, pipes, shape)
        rows.append(row)
        print0(line(row))
    print0(line(total(rows)))
    extra = [peak - before.memory for peak, before in zip(memory, ready, strict=True)]
    for way, before, peak in zip(WAYS, ready, memory, strict=True):
        print0(f"memory, {way}: {before.memory / 1e6:,.0f} MB with the model, at most {peak / 1e6:,.0f} MB")
    return rows, extra


if __name__ == "__main__":
    cli(Config, main, __doc__)
