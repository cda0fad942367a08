"""The steps of a run on documents, as commands: what `scripts.train_on` runs, and what one can type by hand."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

from nanochat.passages.index import fts5_fault
from nanochat.pipeline.sizing import HEAD_DIM, PATIENCE, RunSize, bytes_per_token
from nanochat.pipeline.steps import Step

EVAL_TOKENS = 65536
WARMDOWN = 0.65  # share of pretraining
MAX_TALK_PASSES = 3  # over the conversations: beyond that the model learns their wording by heart
MAX_TEXT_PASSES = 2  # of fine-tuning, in bytes of the documents: more raise the bits per byte of held-out text
BASE_TEXT_SHARE = 0.4  # of the tokens of fine-tuning
PIECE_CHARS = 1000
NUM_EXAMPLES = 3  # conversations that are printed
MAX_QUESTIONS = 100  # held out, that the chat model is asked
MIXTURE = """\
# Conversations made of the documents, and pieces of the documents themselves, so that fine-tuning does not forget them:
# other pieces in each pass over the conversations.

[[entry]]
task = "CustomJSON"
options = {{path = "{talks}"}}

[[entry]]
task = "BaseText"
rows = {rows}
fresh = true
options = {{max_chars = {max_chars}}}
"""
BASE_TEXT_ALONE = """\
[[entry]]
task = "BaseText"
options = {{max_chars = {max_chars}}}
"""


@dataclass(frozen=True)
class Choices:
    """The user's choices, as far as the steps depend on them."""

    folder: Path  # the run's base folder
    source: str  # the documents
    device: str = "auto"
    seed: int = 42
    grounded: bool = False
    endpoint: str | None = None
    model: str | None = None
    base: str | None = None  # tag of the base model that the run starts from
    overwrite: bool = False  # other data in the folder

    @property
    def talks(self) -> Path:
        """The conversations to train on."""
        return self.folder / "documents" / "conversations" / "train.jsonl"

    @property
    def mixture(self) -> Path:
        """The mixture of fine-tuning."""
        return self.folder / "sft.toml"

    @property
    def text_mixture(self) -> Path:
        """The mixture of a base model's further training: the documents alone."""
        return self.folder / "documents.toml"

    @property
    def export(self) -> Path:
        """The folder for other programs."""
        return self.folder / "export" / "hf"

    @property
    def gguf(self) -> Path:
        """The file for llama.cpp and others."""
        return self.folder / "export" / "model.gguf"


def reading(choices: Choices) -> Step:
    """Return the step that reads the documents."""
    return Step(
        "read_documents",
        "scripts.read_documents",
        (f"--source={choices.source}", *(["--overwrite"] if choices.overwrite else [])),
        choices.folder / "base_data" / "manifest.json",
    )


def measuring_speed(choices: Choices) -> Step:
    """Return the step that measures the device. It is run once, so that a run that goes on keeps its size."""
    return Step("speed", "nanochat.pipeline.speed", (f"--device={choices.device}",), choices.folder / "speed.json")


def pretraining(choices: Choices, size: RunSize) -> list[Step]:
    """Return the steps to a base model: tokenizer, training, and what it knows by heart."""
    report = choices.folder / "report"
    flags = (
        *(f"--depth={size.depth}", f"--head_dim={HEAD_DIM}", f"--max_seq_len={size.max_seq_len}"),
        *(f"--total_batch_size={size.total_batch_size}", f"--num_iterations={size.num_iterations}"),
        *(f"--warmdown_ratio={WARMDOWN}", f"--eval_tokens={size.eval_tokens}", f"--patience={PATIENCE}"),
        *(f"--eval_every={size.eval_every}", f"--save_every={size.eval_every}", "--keep_last=1"),
        *("--sample_every=-1", "--core_metric_every=-1", f"--compile={size.compile}"),
        *(f"--device={choices.device}", f"--seed={choices.seed}"),
    )
    return [
        Step(
            "tok_train",
            "scripts.tok_train",
            (f"--vocab_size={size.vocab_size}", "--digits=1"),  # numbers as the engines of a GGUF file cut them
            choices.folder / "tokenizer" / "tokenizer.json",
        ),
        Step("base_train", "scripts.base_train", flags, report / "base_train.json"),
        memorisation(choices, "base"),
    ]


def further_training(choices: Choices, size: RunSize) -> list[Step]:
    """Return the steps that train a base model of another text further, on the documents alone."""
    flags = (
        *("--source=base", f"--mixture={choices.text_mixture}", "--matrix_lr=0.01", "--embedding_lr=0.1"),
        *(f"--total_batch_size={size.total_batch_size}", f"--num_iterations={size.num_iterations}"),
        *("--warmdown_ratio=1", f"--eval_every={size.eval_every}", f"--eval_tokens={size.eval_tokens}"),
        *(f"--save_every={size.eval_every}", "--keep_last=1", f"--patience={PATIENCE}", f"--compile={size.compile}"),
        *(f"--device={choices.device}", f"--seed={choices.seed}", f"--model_tag={choices.base}"),
    )
    return [
        memorisation(choices, "base"),
        Step("mid_train", "scripts.mid_train", flags, choices.folder / "report" / "mid_train.json"),
        memorisation(choices, "mid"),
    ]


def memorisation(choices: Choices, source: str) -> Step:
    """Return the step that measures what a model knows by heart."""
    name = f"memorisation_{source}"
    flags = (f"--source={source}", f"--eval_tokens={4 * EVAL_TOKENS}", f"--device={choices.device}")
    return Step(name, "scripts.memorisation", flags, choices.folder / "report" / f"{name}.json")


def conversations(choices: Choices) -> list[Step]:
    """Return the steps that index the documents and make conversations of them.

    Where this Python cannot search, there is no index, unless `--grounded` needs it.
    """
    documents = choices.folder / "documents"
    flags = [f"--seed={choices.seed}", "--allow_none", f"--examples={NUM_EXAMPLES}"]
    if choices.grounded:
        flags.append("--grounded")
    if choices.endpoint:
        flags += [f"--endpoint={choices.endpoint}", f"--model={choices.model}"]
    index = Step("index_documents", "scripts.index_documents", (), documents / "passages.json")
    talks = Step("document_talks", "scripts.document_talks", tuple(flags), choices.talks)
    return [index, talks] if choices.grounded or fts5_fault() is None else [talks]


def fine_tuning(choices: Choices, size: RunSize, has_questions: bool = True) -> list[Step]:
    """Return the steps from the base model to a chat model, and its export.

    `has_questions`: there are held-out questions about the documents; very short ones have none.
    """
    source = "mid" if choices.base else "base"
    every = max(1, size.fine_tuning_steps // 5)
    flags = (
        *(f"--source={source}", f"--mixture={choices.mixture}", f"--num_iterations={size.fine_tuning_steps}"),
        *(f"--total_batch_size={size.total_batch_size}", "--matrix_lr=0.01", "--embedding_lr=0.05"),
        *(f"--init_lr_frac={size.fine_tuning_lr}", f"--eval_every={every}", f"--eval_tokens={size.eval_tokens}"),
        *(f"--save_every={every}", "--keep_last=1", f"--compile={size.compile}"),
        *(f"--device={choices.device}", f"--seed={choices.seed}"),
        *(["--grounded"] if choices.grounded else []),  # recorded, so that chat does the same
    )
    return [
        Step("chat_sft", "scripts.chat_sft", flags, choices.folder / "report" / "chat_sft.json"),
        memorisation(choices, "sft"),
        *(document_eval(choices) if has_questions else []),
        Step(
            "export_hf",
            "scripts.export_hf",
            ("--source=sft", f"--out={choices.export}", "--overwrite"),
            choices.export / "config.json",
        ),
        *([export_gguf(choices)] if importlib.util.find_spec("gguf") else []),
    ]


def export_gguf(choices: Choices) -> Step:
    """Return the step that writes the file for llama.cpp and others. It needs the package gguf."""
    flags = ["--source=sft", f"--out={choices.gguf}", "--overwrite"]
    if choices.base:  # with a tokenizer that the run did not choose
        flags.append("--allow_other_digits")
    return Step("export_gguf", "scripts.export_gguf", tuple(flags), choices.gguf)


def document_eval(choices: Choices) -> list[Step]:
    """Return the steps that ask the model held-out questions: as it will be asked, and without passages."""
    flags = ("--source=sft", f"--max_problems={MAX_QUESTIONS}", f"--device={choices.device}")
    report = choices.folder / "report"
    steps = [Step("document_eval", "scripts.document_eval", flags, report / "document_eval_sft.json")]
    if choices.grounded:
        result = report / "document_eval_sft_grounded.json"
        steps.append(Step("document_eval_grounded", "scripts.document_eval", (*flags, "--grounded"), result))
    return steps


def with_talks(size: RunSize, talk_bytes: int, text_bytes: int) -> RunSize:
    """Return the size with at most so many steps of fine-tuning as the conversations and the text are worth.

    `talk_bytes`: of the conversations. `text_bytes`: of the training text, which is mixed in.
    """
    useful_bytes = min(
        MAX_TALK_PASSES * talk_bytes / (1 - BASE_TEXT_SHARE),
        MAX_TEXT_PASSES * text_bytes / BASE_TEXT_SHARE,
    )
    useful = useful_bytes / bytes_per_token(size.vocab_size) / size.total_batch_size
    return replace(size, fine_tuning_steps=max(1, min(size.fine_tuning_steps, round(useful))))


def mixture_text(talks: Path, talk_bytes: int) -> str:
    """Return the mixture of fine-tuning: conversations of `talk_bytes`, and text of the documents beside them.

    A short text is read again after its end, a long one goes on in the next pass over the conversations.
    """
    rows = max(1, round(talk_bytes * BASE_TEXT_SHARE / (1 - BASE_TEXT_SHARE) / PIECE_CHARS))
    path = str(talks).replace("\\", "\\\\").replace('"', '\\"')
    return MIXTURE.format(talks=path, rows=rows, max_chars=PIECE_CHARS)
