"""Our CORE code beside an independent judge, lm_eval, on one checkpoint and the same prompts, example by example.

    pip install '.[judge]'
    python -m dev.check_lm_eval --eval_bundle=../shared/data/eval_bundle.zip     # the base model of the base folder
    python -m dev.check_lm_eval --eval_bundle=eval_bundle.zip -g d4 -s 400 --max_per_task=100
    python -m dev.check_lm_eval --eval_bundle=eval_bundle.zip --random_depth=4   # random weights, nothing else needed

The checkpoint is exported as scripts.export_hf does it and loaded by transformers through lm_eval's own HFLM, which
gets our prompts as pairs of texts. Four things it does in its own way, so that some examples get other tokens:

  border    It encodes context and continuation together and takes what follows the context's tokens; we encode them
            apart. The two differ where a token would reach over the border.
  newlines  White space at the end of the context belongs to the continuation there; here only spaces do.
  special   The name of a special token in a text is that token there; here it stays text.
  cut       A prompt that is too long loses its first tokens there, `<|bos|>` first, each option for itself; here
            `<|bos|>` stays, and all options of an example lose the same.

These examples are named, and given to it again with our tokens: then no difference may remain but rounding, and which
of two options that differ by no more than rounding comes first. If one does, the command says so and fails.
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
from typing import Any

import torch

from nanochat.checkpoint_manager import build_model, load_model, model_meta, run_dir, save_checkpoint
from nanochat.common import UserError, print0
from nanochat.configurator import Settings, cli, setting
from nanochat.eval.core_bundle import Bundle, find_bundle, read_bundle
from nanochat.eval.core_prompts import CoreTask, EncodedExample, encode_example
from nanochat.eval.core_scorer import ModelScorer, OptionScore, is_correct
from nanochat.eval.task_eval import choose_rows
from nanochat.gpt import GPT, GPTConfig
from nanochat.runtime import Runtime
from nanochat.tokenizer import Tokenizer, trainable_tokenizer_class
from scripts import export_hf

TASKS = "hellaswag_zeroshot|arc_easy|copa|winograd|winogrande|lambada_openai|bigbench_qa_wikidata|bigbench_operators"
ROUNDING = 1e-4  # nats a token: float32, in two programs that sum up in another order

Pair = tuple[list[int], list[int]]  # ids of a context, with <|bos|>, and of its continuation


@dataclass(frozen=True)
class Config(Settings):
    eval_bundle: str | None = setting(None, "folder or zip file of the tasks; default: eval_bundle in the base folder")
    tasks: str = setting(TASKS, "which of them, with | between; all = every one")
    max_per_task: int = setting(50, "examples of each task; -1 = all", short="x", at_least=1, also=-1)
    model_tag: str | None = setting(None, "checkpoint folder; default: that of the deepest base model", short="g")
    step: int = setting(-1, "checkpoint; -1 = the last", short="s", at_least=0, also=-1)
    random_depth: int = setting(
        -1, "make a model of so many layers with random weights instead; -1 = do not", at_least=1, also=-1
    )
    max_seq_len: int = setting(1024, "tokens of its context")
    vocab_size: int = setting(8192, "tokens of its vocabulary, trained on the bundle's text")
    batch_size: int = setting(8, "prompts that lm_eval reads at once", short="b", at_least=1)
    seed: int = setting(42, "of the weights, and of the choice of solved examples in a prompt")


class Judge:
    """lm_eval's model, as little of it as is needed."""

    def __init__(self, folder: Path, context: int, batch_size: int) -> None:
        try:
            from lm_eval.models.huggingface import HFLM
        except ImportError as error:
            raise UserError(f"lm_eval cannot be imported ({error}): pip install '.[judge]'") from error
        logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it tells of every prompt that is cut: we count them
        self.model = HFLM(
            pretrained=str(folder),
            device="cpu",
            dtype="float32",
            batch_size=batch_size,
            max_length=context,
            add_bos_token=True,
        )

    def pair(self, context: str, continuation: str) -> Pair:
        """The tokens that it makes of two texts."""
        first, second = self.model._encode_pair(context, continuation)
        return list(first), list(second)

    def score_texts(self, texts: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): the sum of log likelihoods, and whether each token is the likeliest."""
        from lm_eval.api.instance import Instance

        asked = [
            Instance(request_type="loglikelihood", doc={}, arguments=text, idx=place)
            for place, text in enumerate(texts)
        ]
        found: list[tuple[float, bool]] = self.model.loglikelihood(asked, disable_tqdm=True)
        return found

    def score_tokens(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        """The same for tokens."""
        asked = [((str(place), ""), *pair) for place, pair in enumerate(pairs)]
        found: list[tuple[float, bool]] = self.model._loglikelihood_tokens(asked, disable_tqdm=True)
        return found


# --- one example ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """An example in both. `why`: how their tokens differ from ours, "" where they do not; `detail` shows them."""

    place: int
    why: str
    detail: str
    right: tuple[bool, bool]  # ours, theirs by text
    losses: tuple[list[float], list[float]]  # of each option, by text
    difference: float  # the largest of a loss, given the same tokens
    is_same: bool  # the decision, given the same tokens
    exact_differ: int  # options, given the same tokens


def why_other(prompt: EncodedExample, pairs: Sequence[Pair], texts: Sequence[tuple[str, str]], context: int) -> str:
    """Which point of the list at the top of this file gives an example other tokens than ours; "" if none does."""
    if prompt.is_truncated or any(len(head) + len(end) - 1 > context for head, end in pairs):
        return "cut"
    if all(ours_of(option) == pair for option, pair in zip(prompt.options, pairs, strict=True)):
        return ""
    if any("<|" in head + end for head, end in texts):
        return "special"
    return "newlines" if any(head != head.rstrip() for head, _ in texts) else "border"


def ours_of(option: tuple[list[int], int]) -> Pair:
    """An option's tokens as lm_eval takes them."""
    ids, count = option
    return ids[:-count], ids[-count:]


def as_scores(found: Sequence[tuple[float, bool]], counts: Sequence[int]) -> list[OptionScore]:
    """Sums of log likelihoods over so many tokens as our scores."""
    return [OptionScore(-total / count, exact) for (total, exact), count in zip(found, counts, strict=True)]


def agree(kind: str, gold: int, ours: Sequence[OptionScore], theirs: Sequence[OptionScore]) -> bool:
    """Whether both decide alike; in a draw within rounding both are right."""
    if is_correct(kind, ours, gold) == is_correct(kind, theirs, gold):
        return True
    if kind == "language_modeling":
        return False
    best = sorted(score.loss for score in ours)[:2]
    return best[1] - best[0] < 2 * ROUNDING


def show(pair: Pair, tokenizer: Tokenizer, start: int) -> str:
    """The tokens around the border, from `start` of the continuation's first one on."""
    ids = [*pair[0][start:], -1, *pair[1]]
    return " ".join("|" if i == -1 else repr(tokenizer.decode([i])) for i in ids[:12])


# --- a task -----------------------------------------------------------------------------------------------------------


def judge_task(
    task: CoreTask, model: GPT, tokenizer: Tokenizer, judge: Judge, most: int | None, seed: int
) -> list[Verdict]:
    """Score a task's examples with both."""
    context = model.config.sequence_len
    rows = choose_rows(len(task.examples), most)
    texts = [task.prompts(row, seed) for row in rows]
    prompts = [encode_example(text, tokenizer, context, place) for place, text in enumerate(texts)]
    ours = {prompt.index: scores for prompt, scores in ModelScorer(model)(prompts)}
    pairs = [[judge.pair(*text) for text in options] for options in texts]
    can_read = [all(len(end) <= context for _, end in their) for their in pairs]  # it cuts no continuation, and stops
    asked = [text for options, fits in zip(texts, can_read, strict=True) if fits for text in options]
    by_text = iter(judge.score_texts(asked))
    why = [why_other(*each, context) for each in zip(prompts, pairs, texts, strict=True)]
    again = [prompt for prompt, reason in zip(prompts, why, strict=True) if reason]
    by_tokens = iter(judge.score_tokens([ours_of(option) for prompt in again for option in prompt.options]))
    found = []
    for prompt, their, fits, reason, row in zip(prompts, pairs, can_read, why, rows, strict=True):
        same = text_scores = as_scores([next(by_text) for _ in their if fits], [len(end) for _, end in their if fits])
        if reason:
            same = as_scores([next(by_tokens) for _ in prompt.options], [count for _, count in prompt.options])
            text_scores = text_scores or same
        scores, gold = ours[prompt.index], task.examples[row].gold
        found.append(
            Verdict(
                place=row,
                why=reason,
                detail=difference_of(prompt, their, tokenizer) if reason not in ("", "cut") else "",
                right=(is_correct(task.task_type, scores, gold), is_correct(task.task_type, text_scores, gold)),
                losses=([score.loss for score in scores], [score.loss for score in text_scores]),
                difference=max(abs(one.loss - other.loss) for one, other in zip(scores, same, strict=True)),
                is_same=agree(task.task_type, gold, scores, same),
                exact_differ=sum(one.is_greedy != other.is_greedy for one, other in zip(scores, same, strict=True)),
            )
        )
    return found


def difference_of(prompt: EncodedExample, pairs: Sequence[Pair], tokenizer: Tokenizer) -> str:
    """The first option whose tokens differ, ours and theirs around the border."""
    for option, pair in zip(prompt.options, pairs, strict=True):
        ours = ours_of(option)
        if ours != pair:
            return f"ours {show(ours, tokenizer, -3)}   theirs {show(pair, tokenizer, -3)}"
    return ""


# --- the command ------------------------------------------------------------------------------------------------------


@contextmanager
def base_folder(config: Config, bundle: Bundle) -> Iterator[None]:
    """The base folder as it is; or, for random weights, another one with such a model, for as long as this lasts."""
    if config.random_depth == -1:
        yield
        return
    before = os.environ.get("NANOCHAT_BASE_DIR")
    with tempfile.TemporaryDirectory(prefix="check_lm_eval") as folder:
        os.environ["NANOCHAT_BASE_DIR"] = folder
        try:
            save_random(config, bundle)
            yield
        finally:
            os.environ.pop("NANOCHAT_BASE_DIR")
            if before is not None:
                os.environ["NANOCHAT_BASE_DIR"] = before


def save_random(config: Config, bundle: Bundle) -> None:
    """A tokenizer and a base checkpoint with random weights, in the base folder."""
    options = (pair for task in bundle.tasks for example in task.examples for pair in example.options)
    texts = (f"{context} {continuation}\n" for context, continuation in options)
    tokenizer = trainable_tokenizer_class().train_from_iterator(texts, config.vocab_size)
    tokenizer.save(run_dir("base", "").parent / "tokenizer")
    shape = GPTConfig.from_depth(
        config.random_depth, vocab_size=tokenizer.get_vocab_size(), sequence_len=config.max_seq_len
    )
    runtime = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, config.seed)
    model = build_model(shape, runtime)
    generator = torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name != "embed.weight":  # at first the others are 0 in part: all logits are 0, and all options a draw
                param.copy_(torch.randn(param.shape, generator=generator) / param.shape[1] ** 0.5)
    tag = f"d{config.random_depth}"
    save_checkpoint(run_dir("base", tag), 0, model.state_dict(), {}, model_meta(model, runtime, tokenizer))


def line(task: CoreTask, found: Sequence[Verdict]) -> str:
    """A task's row of the table."""
    same, other = [v for v in found if not v.why], [v for v in found if v.why]
    reasons = ", ".join(f"{count} {why}" for why, count in Counter(v.why for v in other).items()) or "-"
    worst = [max((v.difference for v in some), default=0.0) for some in (same, other)]
    by_text = sum(v.right[0] == v.right[1] for v in found)
    return (
        f"{task.label:32} {task.task_type:17} {len(found):4} {by_text:8} "
        f"{len(same):11} {sum(v.is_same for v in same):6} "
        f"{worst[0]:9.1e}   {reasons:22} {sum(v.is_same for v in other):6} {worst[1]:9.1e}"
    )


def remaining(label: str, found: Sequence[Verdict]) -> list[str]:
    """Differences that have no explanation."""
    return [
        f"{label} {v.place}: with the same tokens losses differ by {v.difference:.1e}, decisions "
        f"{'agree' if v.is_same else 'differ'}, {v.exact_differ} options are the likeliest in one only"
        for v in found
        if v.difference > ROUNDING or not v.is_same or v.exact_differ
    ]


def explain(label: str, found: Sequence[Verdict]) -> Iterator[str]:
    """Every example that the two decide otherwise by text, and one example of each kind of other tokens."""
    told = set()
    for v in found:
        if v.right[0] != v.right[1]:
            ours, theirs = (", ".join(f"{loss:.4f}" for loss in losses) for losses in v.losses)
            yield f"{label} {v.place}: ours {v.right[0]} ({ours}), lm_eval {v.right[1]} ({theirs}): {v.why or 'a draw'}"
        if v.why and v.why not in told and v.detail:
            told.add(v.why)
            yield f"{label} {v.place}: {v.why}: {v.detail}"


def main(config: Config, make_judge: Callable[[Path, int, int], Any] = Judge) -> dict[str, list[Verdict]]:
    """Export, score with both, print; the verdicts by task. Ends with code 1 if a difference has no explanation."""
    path = find_bundle(config.eval_bundle)
    if path is None:
        raise UserError("no evaluation bundle there: say with --eval_bundle where it is")
    bundle = read_bundle(path)
    wanted = [task.label for task in bundle.tasks] if config.tasks == "all" else config.tasks.split("|")
    if unknown := set(wanted) - {task.label for task in bundle.tasks}:
        raise UserError(f"the bundle has no task {', '.join(sorted(unknown))}")
    with base_folder(config, bundle), tempfile.TemporaryDirectory(prefix="check_lm_eval") as scratch:
        folder = Path(scratch) / "model"
        export_hf.main(export_hf.Config(out=folder, model_tag=config.model_tag, step=config.step))
        runtime = Runtime.start(config.seed, "cpu")
        model, tokenizer, _ = load_model("base", runtime, model_tag=config.model_tag, step=config.step)
        model.compute_dtype = torch.float32
        judge = make_judge(folder, model.config.sequence_len, config.batch_size)
        return compare([task for task in bundle.tasks if task.label in wanted], model, tokenizer, judge, config)


def compare(
    tasks: Sequence[CoreTask], model: GPT, tokenizer: Tokenizer, judge: Any, config: Config
) -> dict[str, list[Verdict]]:
    """Both on one task after the other."""
    print0(
        f"{'task':32} {'type':17} {'n':>4} {'agree':>8} {'same tokens':>11} {'agree':>6} {'loss diff':>9}   "
        f"{'other tokens':22} {'agree with ours':>15}"
    )
    most = None if config.max_per_task == -1 else config.max_per_task
    found: dict[str, list[Verdict]] = {}
    notes: list[str] = []
    left: list[str] = []
    for task in tasks:
        found[task.label] = judge_task(task, model, tokenizer, judge, most, config.seed)
        print0(line(task, found[task.label]))
        notes += explain(task.label, found[task.label])
        left += remaining(task.label, found[task.label])
    print0(*notes, sep="\n")
    if left:
        print0("Without an explanation:", *left, sep="\n")
        sys.exit(1)
    print0("No difference remains: with the same tokens all decisions agree, and losses to rounding.")
    return found


if __name__ == "__main__":
    cli(Config, main, __doc__)
