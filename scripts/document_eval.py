"""Ask a chat model the held-out questions about the documents: right answers and refusals, with 95% intervals.

    python -m scripts.document_eval                      # the last chat model, without passages
    python -m scripts.document_eval --grounded           # replies quote the passages found for each question
    python -m scripts.document_eval --grounded --quote=false    # the model writes them, with passages before it
    python -m scripts.document_eval -i sft -x 200        # 200 of the questions, always the same

The questions are those of `documents/conversations/test.jsonl` (scripts/document_talks.py): about facts and documents
that no training conversation is about, in forms that none has. A reply is right if it is the sentences of the document
and nothing else, or a refusal where the documents have no answer. Each reply is written to
`document_eval/SOURCE_TAG.json`, `SOURCE_TAG_grounded.json` or, without quoting, `SOURCE_TAG_generated.json`, to be
marked by hand.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanochat.checkpoint_manager import default_tag, load_model
from nanochat.common import UserError, base_dir, print0, write_json_atomic
from nanochat.configurator import Settings, cli, setting
from nanochat.documents.document import documents_dir
from nanochat.engine import Engine
from nanochat.eval.document_answers import (
    Reply,
    answer_questions,
    document_metrics,
    make_prompt,
    quote_answers,
    read_questions,
    solved,
)
from nanochat.eval.task_eval import choose_rows
from nanochat.layers.sampling_params import SamplingParams
from nanochat.passages.index import PassageIndex, default_index_path
from nanochat.report import check_results_writable, log_section
from nanochat.reporting.schema import Metric, proportion
from nanochat.runtime import Runtime
from nanochat.serving.chat_session import CHAT_SOURCES, latest_source

NUM_SAMPLES = 6  # conversations in the report


@dataclass(frozen=True)
class Config(Settings):
    source: str | None = setting(
        None, "stage of the model; default: the last chat model", short="i", choices=CHAT_SOURCES
    )
    grounded: bool = setting(False, "put the best passages before each question, as a chat with --grounded does")
    quote: bool = setting(True, "with grounded: reply with sentences of the passages; false = the model writes it")
    max_problems: int = setting(
        -1, "questions, always the same random choice; -1 = all", short="x", at_least=1, or_value=-1
    )
    batch_size: int = setting(32, "replies that are generated at once", short="b", at_least=1)
    max_new_tokens: int = setting(160, "maximum tokens of a reply", short="m", at_least=1)
    model_tag: str | None = setting(
        None, "tag of the checkpoint; default: the deepest model's", short="g", names="name"
    )
    step: int = setting(-1, "step of the checkpoint; -1 = the last", short="s", at_least=0, or_value=-1)
    device: str = setting("auto", "device to run on", choices=("auto", "cpu", "cuda", "mps"))

    @property
    def suffix(self) -> str:
        """The end of the names of the results: of the way in which the model is asked."""
        return "" if not self.grounded else "_grounded" if self.quote else "_generated"

    @property
    def way(self) -> str:
        """The way in which the model is asked, for the report."""
        return {"": "", "_grounded": ", quoted", "_generated": ", with passages"}[self.suffix]


def answers_path(source: str, tag: str, suffix: str) -> Path:
    """Return the path of the file with each reply."""
    return base_dir() / "document_eval" / f"{source}_{tag}{suffix}.json"


def main(config: Config) -> dict[str, Metric]:
    """Evaluate, print the table, write the section of the report and the replies; return the metrics."""
    start = time.monotonic()
    source = config.source or latest_source(config.model_tag)
    tag = config.model_tag or default_tag(source)
    section = f"document_eval_{source}{config.suffix}"
    path = answers_path(source, tag, config.suffix)
    check_results_writable(section, path)
    questions = read_questions(documents_dir() / "conversations" / "test.jsonl")
    questions = [
        questions[row] for row in choose_rows(len(questions), None if config.max_problems < 0 else config.max_problems)
    ]
    with open_index(config.grounded) as index:
        runtime = Runtime.start(42, config.device)
        if runtime.world_size > 1:
            raise UserError(f"{runtime.world_size} processes: document_eval runs in one; start it without torchrun")
        model, tokenizer, meta = load_model(source, runtime, model_tag=tag, step=config.step)
        context = model.config.sequence_len
        params = SamplingParams(temperature=0.0, max_tokens=config.max_new_tokens)
        room = context - params.reserved_tokens(context)
        search = index.search if index is not None else None
        prompts = [make_prompt(question, tokenizer, room, search, config.grounded) for question in questions]
        quotations = quote_answers(index, questions) if index is not None and config.suffix == "_grounded" else None
    replies = answer_questions(Engine(model, tokenizer), questions, prompts, params, config.batch_size, quotations)
    name = f"documents{config.way}"
    shares = document_metrics(replies, index is not None, config.grounded)
    metrics = {f"{name}: {share}": metric for share, metric in shares.items()}
    right = f"{name}: answered right"
    print_metrics(replies, metrics)
    log_section(
        section,
        {
            "title": f"Questions about the documents{config.way}",
            "model": source,
            "checkpoint": f"{tag}:{meta['step']}",
            "settings": config,
            "metrics": metrics,
            "headline": [right] if right in metrics else [],
            "answers": {right: solved([reply for reply in replies if reply.question["expected"]])},
            "samples": samples(replies, config.way.removeprefix(", ") or "without passages"),
            "notes": [f"{len(replies)} held-out questions; each reply is in {path}."],
            "seconds": time.monotonic() - start,
        },
    )
    write_json_atomic(path, [reply.to_json() for reply in replies])
    runtime.finish()
    return metrics


@contextmanager
def open_index(is_needed: bool) -> Iterator[PassageIndex | None]:
    """Context of the index of passages; of None without one. Raises UserError if it is needed and missing."""
    if not is_needed and not default_index_path().exists():
        yield None
        return
    with PassageIndex.open(default_index_path()) as index:
        yield index


def print_metrics(replies: Sequence[Reply], metrics: dict[str, Metric]) -> None:
    """Print the shares with their intervals, and those of right replies by kind of question."""
    by_kind: dict[str, list[bool]] = defaultdict(list)
    for reply in replies:
        by_kind[reply.question["kind"]].append(reply.is_right)
    rows = dict(metrics)
    rows |= {f"right: {kind}": proportion(sum(right), len(right)) for kind, right in sorted(by_kind.items())}
    width = max(map(len, rows))
    print0(f"{'':{width}}  share   95% interval       questions")
    for name, metric in rows.items():
        low, high = metric["interval"]
        print0(f"{name:{width}} {metric['value']:6.1%} [{low:6.1%}, {high:6.1%}] {metric['n']:9,}")


def samples(replies: Sequence[Reply], way: str) -> list[dict[str, Any]]:
    """Return a few replies as conversations for the report, right ones and wrong ones, with their captions.

    `way`: the way in which the model was asked.
    """
    right = [reply for reply in replies if reply.is_right and reply.question["expected"]]
    wrong = [reply for reply in replies if not reply.is_right]
    chosen = [*right[: NUM_SAMPLES // 2], *wrong[: NUM_SAMPLES // 2]]
    return [
        {
            "caption": f"{way}, {'right' if reply.is_right else 'wrong'}",
            "messages": [
                {"role": "user", "content": reply.question["question"]},
                {"role": "assistant", "content": reply.text},
            ],
        }
        for reply in chosen
    ]


if __name__ == "__main__":
    cli(Config, main, __doc__)
