"""Comparison of nanochat's CORE scores with those of lm_eval, an independent program, example by example.

    pip install '.[judge]'
    python -m dev.check_lm_eval --eval_bundle=eval_bundle.zip                    # the base model of the base folder
    python -m dev.check_lm_eval --eval_bundle=eval_bundle.zip -g d4 -s 400 --max_per_task=100
    python -m dev.check_lm_eval --eval_bundle=eval_bundle.zip --random_depth=4   # random weights: needs no checkpoint

The checkpoint is exported as scripts.export_hf does it, and loaded by transformers through lm_eval's HFLM, which gets
the same prompts as pairs of texts. lm_eval encodes some of them differently, for one of four reasons:

  border    lm_eval encodes context and continuation together, and takes the tokens after the context's; nanochat
            encodes them separately. The two differ where a token would span the border.
  newlines  In lm_eval white space at the end of the context belongs to the continuation; in nanochat only spaces do.
  special   In lm_eval the name of a special token in a text is that token; in nanochat it stays text.
  cut       Of a prompt that is too long lm_eval removes the first tokens, `<|bos|>` first, each option by itself;
            nanochat keeps `<|bos|>`, and removes the same number from all options of an example.

These examples are listed, and lm_eval scores them again from nanochat's tokens. Then losses may differ by rounding
only, and decisions only where the losses of two options are equal up to rounding. Any other difference is printed and
makes the exit code 1.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from nanochat.checkpoint_manager import build_model, load_model, model_meta, run_dir, save_checkpoint
from nanochat.common import UserError, base_dir, print0
from nanochat.configurator import Settings, cli, setting
from nanochat.eval.core_bundle import Bundle, open_bundle
from nanochat.eval.core_prompts import CoreTask, EncodedExample, EncodedOption, encode_example
from nanochat.eval.core_scorer import ModelScorer, OptionScore, is_correct
from nanochat.eval.task_eval import choose_rows
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime
from nanochat.tokenizer import Tokenizer, trainable_tokenizer_class
from scripts import export_hf

TASKS = "hellaswag_zeroshot|arc_easy|copa|winograd|winogrande|lambada_openai|bigbench_qa_wikidata|bigbench_operators"
ROUNDING = 1e-4  # nats per token: float32 sums in another order


class TokenPair(NamedTuple):
    """An option's tokens as lm_eval takes them."""

    context: list[int]  # with <|bos|>
    continuation: list[int]


class LogLikelihood(NamedTuple):
    """lm_eval's score of an option."""

    total: float  # sum over the continuation's tokens
    is_greedy: bool  # each token of the continuation is the most likely one


@dataclass(frozen=True)
class Config(Settings):
    eval_bundle: str | None = setting(
        None, "folder or zip file of the tasks; default: eval_bundle in the base folder", names="path"
    )
    tasks: str = setting(TASKS, "tasks to compare, separated by |; all = every task")
    max_per_task: int = setting(50, "examples of each task; -1 = all", short="x", at_least=1, or_value=-1)
    model_tag: str | None = setting(
        None, "checkpoint folder; default: that of the deepest base model", short="g", names="name"
    )
    step: int = setting(-1, "checkpoint; -1 = the last", short="s", at_least=0, or_value=-1)
    random_depth: int = setting(
        -1, "layers of a model with random weights to make instead; -1 = use a checkpoint", at_least=1, or_value=-1
    )
    max_seq_len: int = setting(1024, "tokens of the random model's context")
    vocab_size: int = setting(8192, "tokens of the random model's vocabulary, trained on the bundle's text")
    batch_size: int = setting(8, "prompts that lm_eval reads at once", short="b", at_least=1)
    seed: int = setting(42, "for the weights, and for the choice of few-shot examples")


class Judge(Protocol):
    """The part of lm_eval that is compared."""

    def encode_pair(self, context: str, continuation: str) -> TokenPair:
        """Return the tokens of two texts."""

    def score_texts(self, texts: Sequence[tuple[str, str]]) -> list[LogLikelihood]:
        """Score the continuation of each (context, continuation)."""

    def score_tokens(self, pairs: Sequence[TokenPair]) -> list[LogLikelihood]:
        """Score the continuation of each pair of tokens."""


class LMEvalJudge:
    """lm_eval with an exported model on the CPU, in float32."""

    def __init__(self, folder: Path, context_len: int, batch_size: int) -> None:
        try:
            from lm_eval.models.huggingface import HFLM
        except ImportError as error:
            raise UserError(f"lm_eval cannot be imported ({error}): pip install '.[judge]'") from error
        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about every truncated prompt
        self.model = HFLM(
            pretrained=str(folder),
            device="cpu",
            dtype="float32",
            batch_size=batch_size,
            max_length=context_len,
            add_bos_token=True,
        )

    def encode_pair(self, context: str, continuation: str) -> TokenPair:
        context_ids, continuation_ids = self.model._encode_pair(context, continuation)
        return TokenPair(list(context_ids), list(continuation_ids))

    def score_texts(self, texts: Sequence[tuple[str, str]]) -> list[LogLikelihood]:
        from lm_eval.api.instance import Instance

        requests = [
            Instance(request_type="loglikelihood", doc={}, arguments=text, idx=index)
            for index, text in enumerate(texts)
        ]
        return [LogLikelihood(*score) for score in self.model.loglikelihood(requests, disable_tqdm=True)]

    def score_tokens(self, pairs: Sequence[TokenPair]) -> list[LogLikelihood]:
        requests = [((str(index), ""), *pair) for index, pair in enumerate(pairs)]
        return [LogLikelihood(*score) for score in self.model._loglikelihood_tokens(requests, disable_tqdm=True)]


# --- one example ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """An example in both programs. Pairs are (nanochat, lm_eval by text)."""

    index: int  # in the task
    reason: str  # of different tokens: border, newlines, special or cut; "" if they are the same
    detail: str  # the tokens around the border in both, if they differ
    correct: tuple[bool, bool]
    losses: tuple[list[float], list[float]]  # of each option
    # Given the same tokens:
    loss_difference: float  # the largest of all options
    is_same_decision: bool
    num_different_greedy: int  # options

    @property
    def is_explained(self) -> bool:
        """Given the same tokens, both programs agree up to rounding."""
        return self.loss_difference <= ROUNDING and self.is_same_decision and not self.num_different_greedy


def difference_reason(
    example: EncodedExample, pairs: Sequence[TokenPair], texts: Sequence[tuple[str, str]], context_len: int
) -> str:
    """Return the reason for which lm_eval's tokens differ, as listed at the top of this file; "" if they do not."""
    if example.is_truncated or any(len(pair.context) + len(pair.continuation) - 1 > context_len for pair in pairs):
        return "cut"
    if all(as_pair(option) == pair for option, pair in zip(example.options, pairs, strict=True)):
        return ""
    if any("<|" in context + continuation for context, continuation in texts):
        return "special"
    return "newlines" if any(context != context.rstrip() for context, _ in texts) else "border"


def as_pair(option: EncodedOption) -> TokenPair:
    """Return nanochat's tokens as lm_eval takes them."""
    return TokenPair(option.ids[: -option.continuation_len], option.ids[-option.continuation_len :])


def as_score(score: LogLikelihood, num_tokens: int) -> OptionScore:
    """Return lm_eval's score of a continuation of `num_tokens` tokens as nanochat's."""
    return OptionScore(-score.total / num_tokens, score.is_greedy)


def is_same_decision(
    task_type: str, gold: int, scores: Sequence[OptionScore], judge_scores: Sequence[OptionScore]
) -> bool:
    """Return True if both programs decide the same, or the two lowest losses are equal up to rounding."""
    if is_correct(task_type, scores, gold) == is_correct(task_type, judge_scores, gold):
        return True
    if task_type == "language_modeling":
        return False
    lowest, second = sorted(score.loss for score in scores)[:2]
    return second - lowest < 2 * ROUNDING


def show_difference(example: EncodedExample, pairs: Sequence[TokenPair], tokenizer: Tokenizer) -> str:
    """Return the tokens around the border, in both programs, of the first option whose tokens differ."""
    for option, pair in zip(example.options, pairs, strict=True):
        own_pair = as_pair(option)
        if own_pair != pair:
            return f"nanochat {show(own_pair, tokenizer)}   lm_eval {show(pair, tokenizer)}"
    return ""


def show(pair: TokenPair, tokenizer: Tokenizer) -> str:
    """Return up to three tokens before the border, `|`, and the first ones after it."""
    before = [repr(tokenizer.decode([token])) for token in pair.context[-3:]]
    after = [repr(tokenizer.decode([token])) for token in pair.continuation]
    return " ".join([*before, "|", *after][:12])


# --- a task -----------------------------------------------------------------------------------------------------------


def compare_task(
    task: CoreTask, model: GPT, tokenizer: Tokenizer, judge: Judge, max_examples: int | None, seed: int
) -> list[Comparison]:
    """Score the examples of a task with both programs."""
    context_len = model.config.sequence_len
    indices = choose_rows(len(task.examples), max_examples)
    texts = [task.prompts(index, seed) for index in indices]
    examples = [encode_example(options, tokenizer, context_len, position) for position, options in enumerate(texts)]
    scores = {example.index: option_scores for example, option_scores in ModelScorer(model)(examples)}
    pairs = [[judge.encode_pair(*text) for text in options] for options in texts]
    # lm_eval stops at a continuation that is longer than the context.
    fits = [all(len(pair.continuation) <= context_len for pair in option_pairs) for option_pairs in pairs]
    by_text = iter(
        judge.score_texts([text for options, fit in zip(texts, fits, strict=True) if fit for text in options])
    )
    reasons = [difference_reason(*arguments, context_len) for arguments in zip(examples, pairs, texts, strict=True)]
    different = [example for example, reason in zip(examples, reasons, strict=True) if reason]
    by_tokens = iter(judge.score_tokens([as_pair(option) for example in different for option in example.options]))
    comparisons = []
    for example, option_pairs, fit, reason in zip(examples, pairs, fits, reasons, strict=True):
        text_scores: list[OptionScore] = []
        if fit:
            text_scores = [as_score(next(by_text), len(pair.continuation)) for pair in option_pairs]
        token_scores = text_scores
        if reason:
            token_scores = [as_score(next(by_tokens), option.continuation_len) for option in example.options]
        comparisons.append(
            _compare_example(
                task,
                index=indices[example.index],
                reason=reason,
                detail=show_difference(example, option_pairs, tokenizer) if reason not in ("", "cut") else "",
                scores=scores[example.index],
                text_scores=text_scores or token_scores,
                token_scores=token_scores,
            )
        )
    return comparisons


def _compare_example(
    task: CoreTask,
    index: int,
    reason: str,
    detail: str,
    scores: Sequence[OptionScore],
    text_scores: Sequence[OptionScore],
    token_scores: Sequence[OptionScore],
) -> Comparison:
    """Compare nanochat's scores with lm_eval's from texts, and from the same tokens."""
    gold = task.examples[index].gold
    pairs = list(zip(scores, token_scores, strict=True))
    return Comparison(
        index=index,
        reason=reason,
        detail=detail,
        correct=(is_correct(task.task_type, scores, gold), is_correct(task.task_type, text_scores, gold)),
        losses=([score.loss for score in scores], [score.loss for score in text_scores]),
        loss_difference=max(abs(a.loss - b.loss) for a, b in pairs),
        is_same_decision=is_same_decision(task.task_type, gold, scores, token_scores),
        num_different_greedy=sum(a.is_greedy != b.is_greedy for a, b in pairs),
    )


# --- the command ------------------------------------------------------------------------------------------------------


@contextmanager
def base_folder(config: Config, bundle: Bundle) -> Iterator[None]:
    """Keep the base folder; with `random_depth`, use a temporary one with such a model inside the block."""
    if config.random_depth == -1:
        yield
        return
    before = os.environ.get("NANOCHAT_BASE_DIR")
    with tempfile.TemporaryDirectory(prefix="check_lm_eval") as folder:
        os.environ["NANOCHAT_BASE_DIR"] = folder
        try:
            save_random_model(config, bundle)
            yield
        finally:
            os.environ.pop("NANOCHAT_BASE_DIR")
            if before is not None:
                os.environ["NANOCHAT_BASE_DIR"] = before


def save_random_model(config: Config, bundle: Bundle) -> None:
    """Save a tokenizer and a base checkpoint with random weights in the base folder."""
    tokenizer = trainable_tokenizer_class().train_from_iterator(bundle.texts(), config.vocab_size)
    tokenizer.save(base_dir() / "tokenizer")
    model_config = GPTConfig.from_depth(
        config.random_depth, vocab_size=tokenizer.get_vocab_size(), sequence_len=config.max_seq_len
    )
    runtime = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, config.seed)
    model = build_model(model_config, runtime)
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name != "embed.weight":  # initial weights are partly 0, and would give all options equal losses
                param.copy_(torch.randn(param.shape, generator=generator) / param.shape[1] ** 0.5)
    tag = f"d{config.random_depth}"
    save_checkpoint(run_dir("base", tag), 0, model.state_dict(), {}, model_meta(model, runtime, tokenizer))


def format_row(task: CoreTask, comparisons: Sequence[Comparison]) -> str:
    """Return a task's row of the table."""
    same = [comparison for comparison in comparisons if not comparison.reason]
    different = [comparison for comparison in comparisons if comparison.reason]
    counts = Counter(comparison.reason for comparison in different)
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items()) or "-"
    num_agree = sum(comparison.correct[0] == comparison.correct[1] for comparison in comparisons)
    return (
        f"{task.label:32} {task.task_type:17} {len(comparisons):4} {num_agree:8} {len(same):11} "
        f"{_format_agreement(same)}   {reasons:22} {_format_agreement(different)}"
    )


def _format_agreement(comparisons: Sequence[Comparison]) -> str:
    """Return how many decisions agree given the same tokens, and the largest difference of a loss."""
    num_agree = sum(comparison.is_same_decision for comparison in comparisons)
    largest = max((comparison.loss_difference for comparison in comparisons), default=0.0)
    return f"{num_agree:6} {largest:9.1e}"


def list_unexplained(label: str, comparisons: Sequence[Comparison]) -> list[str]:
    """Return a line for each example that differs by more than rounding although the tokens are the same."""
    return [
        f"{label} {comparison.index}: with the same tokens losses differ by {comparison.loss_difference:.1e}, "
        f"decisions {'agree' if comparison.is_same_decision else 'differ'}, {comparison.num_different_greedy} options "
        "are the most likely in one program only"
        for comparison in comparisons
        if not comparison.is_explained
    ]


def explain(label: str, comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Yield a line for each decision that differs by text, and one example for each reason of different tokens."""
    shown = set()
    for comparison in comparisons:
        title = f"{label} {comparison.index}"
        correct, judge_correct = comparison.correct
        if correct != judge_correct:
            losses, judge_losses = (", ".join(f"{loss:.4f}" for loss in losses) for losses in comparison.losses)
            reason = comparison.reason or "losses equal up to rounding"
            yield f"{title}: nanochat {correct} ({losses}), lm_eval {judge_correct} ({judge_losses}): {reason}"
        if comparison.detail and comparison.reason not in shown:
            shown.add(comparison.reason)
            yield f"{title}: {comparison.reason}: {comparison.detail}"


def main(config: Config, make_judge: Callable[[Path, int, int], Judge] = LMEvalJudge) -> dict[str, list[Comparison]]:
    """Export, score with both programs, print. Returns the comparisons by task. Exit code 1 if one is unexplained."""
    bundle = open_bundle(config.eval_bundle)
    tasks = list(bundle.tasks) if config.tasks == "all" else bundle.select(config.tasks.split("|"))
    with base_folder(config, bundle), tempfile.TemporaryDirectory(prefix="check_lm_eval") as scratch:
        folder = Path(scratch) / "model"
        export_hf.main(export_hf.Config(out=folder, model_tag=config.model_tag, step=config.step))
        runtime = Runtime.start(config.seed, "cpu")
        model, tokenizer, _ = load_model("base", runtime, model_tag=config.model_tag, step=config.step)
        model.compute_dtype = torch.float32
        judge = make_judge(folder, model.config.sequence_len, config.batch_size)
        return compare(tasks, model, tokenizer, judge, config)


def compare(
    tasks: Sequence[CoreTask], model: GPT, tokenizer: Tokenizer, judge: Judge, config: Config
) -> dict[str, list[Comparison]]:
    """Compare one task after the other and print the table."""
    print0(
        f"{'task':32} {'type':17} {'n':>4} {'agree':>8} {'same tokens':>11} {'agree':>6} {'loss diff':>9}   "
        f"{'other tokens':22} {'agree, given the same':>16}"
    )
    max_examples = None if config.max_per_task == -1 else config.max_per_task
    comparisons: dict[str, list[Comparison]] = {}
    explanations: list[str] = []
    unexplained: list[str] = []
    for task in tasks:
        comparisons[task.label] = compare_task(task, model, tokenizer, judge, max_examples, config.seed)
        print0(format_row(task, comparisons[task.label]))
        explanations += explain(task.label, comparisons[task.label])
        unexplained += list_unexplained(task.label, comparisons[task.label])
    print0(*explanations, sep="\n")
    if unexplained:
        print0("Without an explanation:", *unexplained, sep="\n")
        sys.exit(1)
    print0("No difference remains: with the same tokens all decisions agree, and losses up to rounding.")
    return comparisons


if __name__ == "__main__":
    cli(Config, main, __doc__)
