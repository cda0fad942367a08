"""Train a chat model on your own documents: from a folder to a conversation about it, in the minutes that you give it.

    python -m scripts.train_on DIR                         # a folder, or one file; a quarter of an hour
    python -m scripts.train_on DIR --minutes=120           # a larger model, or more passes over the text
    python -m scripts.train_on DIR --grounded              # it answers from passages that are found for each question
    python -m scripts.train_on DIR --base=d12              # start from a base model in ~/.cache/nanochat
    python -m scripts.train_on DIR --endpoint=http://localhost:8080/v1 --model=NAME    # a server writes more questions

It runs the same scripts as every other run, and prints their commands: reading, tokenizer, pretraining, conversations
made of the documents, fine-tuning, export, report. What the run is sized by stands in nanochat/pipeline/sizing.py.
Everything goes to ~/.cache/nanochat/on-NAME, or to $NANOCHAT_BASE_DIR. The same command again skips what is done with
the same settings on the same documents, and goes on where it was stopped, however that was.

`bash train_on.sh DIR` does the same, and installs what is missing first.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from nanochat import report
from nanochat.common import UserError, base_dir, check_name, print0, write_text_atomic
from nanochat.configurator import Settings, cli, setting
from nanochat.conversations.chat_client import optional_server
from nanochat.documents.document import default_documents_path
from nanochat.pipeline import plan
from nanochat.pipeline.plan import Choices
from nanochat.pipeline.steps import StepFailed, StepRunner, run_module
from nanochat.system.locks import file_lock

USER_ERROR = 2  # exit code


@dataclass(frozen=True)
class Config(Settings):
    documents: Path | None = setting(None, "folder or file of your documents", positional=True)
    minutes: float = setting(15.0, "time that the run may take, shared out over its steps", at_least=1, at_most=100_000)
    grounded: bool = setting(False, "train on questions with passages of the documents before them; chat likewise")
    base: str | None = setting(None, "tag of a base model to start from, as d12", names="name")
    base_from: Path = setting(Path("~/.cache/nanochat"), "base folder that holds the model of --base")
    endpoint: str | None = setting(None, "address of an OpenAI-compatible server that writes more conversations")
    model: str | None = setting(None, "model of that server")
    overwrite: bool = setting(False, "replace other data in $NANOCHAT_BASE_DIR; the run's own folder needs no leave")
    device: str = setting("auto", "device to train on", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = setting(42, "seed of the weights and of the order of conversations")
    chat: str = setting("auto", "talk to the model at the end; auto = at a terminal", choices=("auto", "on", "off"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.documents is None:
            raise UserError("name the folder of your documents: python -m scripts.train_on DIR")
        optional_server(self.endpoint, self.model)  # an unsafe address is refused now, not after the pretraining


def prepare_folder(config: Config) -> Choices:
    """Return the run's choices, and set `$NANOCHAT_BASE_DIR`. Raises `UserError` without documents or a base model."""
    assert config.documents is not None, "__post_init__ has checked it"
    source = config.documents.absolute()
    if not source.exists():
        raise UserError(f"{source}: no such folder or file")
    if config.base:
        from nanochat.checkpoint_manager import CHECKPOINT_DIRS, open_checkpoint

        folder = config.base_from / CHECKPOINT_DIRS["base"] / config.base
        if not folder.is_dir():  # refused now, not after the reading
            raise UserError(
                f"--base={config.base}: no checkpoint in {folder}; --base_from=FOLDER names another base folder"
            )
        open_checkpoint(folder)
    is_own_folder = not os.environ.get("NANOCHAT_BASE_DIR")
    if is_own_folder:
        name = f"on-{source.resolve().name or 'root'}" + (f"-from-{config.base}" if config.base else "")
        os.environ["NANOCHAT_BASE_DIR"] = str(base_dir() / check_name(name, "the name of the run's folder"))
    folder = base_dir().absolute()
    os.environ["NANOCHAT_BASE_DIR"] = str(folder)
    return Choices(
        folder=folder,
        source=str(source),
        device=config.device,
        seed=config.seed,
        grounded=config.grounded,
        endpoint=config.endpoint,
        model=config.model,
        base=config.base,
        overwrite=config.overwrite or is_own_folder or default_documents_path().exists(),
    )


def run_steps(config: Config, choices: Choices) -> StepRunner:
    """Run all steps. Raises `StepFailed` for the first one that fails."""
    runner = StepRunner(choices.folder)
    runner.run_always(plan.reading(choices))
    from nanochat.pipeline import base_model, inputs  # they import torch and Arrow: refusals need not wait for them

    runner.depend_on("speed")
    runner.run(plan.measuring_speed(choices))
    runner.depend_on(inputs.documents_hash(choices.folder))
    num_bytes = inputs.training_bytes()
    if choices.base:
        size = base_model.prepare(config.base_from, choices, num_bytes, config.minutes)
        steps = plan.further_training(choices, size)
    else:
        size = inputs.size_of_run(num_bytes, config.minutes, config.grounded)
        steps = plan.pretraining(choices, size)
    print0(f"\n{inputs.describe_size(size, num_bytes)}")
    if notice := inputs.overrun_notice(num_bytes, config.minutes):
        print0(notice)
    for step in [*steps, *plan.conversations(choices)]:
        runner.run(step)
    talk_bytes = choices.talks.stat().st_size
    write_text_atomic(choices.mixture, plan.mixture_text(choices.talks, talk_bytes))
    has_questions = choices.talks.with_name("test.jsonl").stat().st_size > 0
    for step in plan.fine_tuning(choices, plan.with_talks(size, talk_bytes, num_bytes), has_questions):
        runner.run(step)
    return runner


def main(config: Config) -> None:
    """Run the steps, report what came out, and begin a conversation at a terminal."""
    choices = prepare_folder(config)
    start = time.monotonic()
    choices.folder.mkdir(parents=True, exist_ok=True)
    with file_lock(choices.folder / ".train_on.lock", f"{choices.folder} is in use by"):
        try:
            runner = run_steps(config, choices)
        except StepFailed as error:
            if error.exit_code != USER_ERROR:  # else its own message says what to do
                print0(f"\n{error}. The same command goes on from there.")
            sys.exit(error.exit_code)
        from nanochat.pipeline.summary import report_run

        report_run(choices, runner, config, time.monotonic() - start, config.minutes)
        report.render(choices.folder)
    chat = ["--source=sft", *(["--grounded"] if choices.grounded else [])]
    print0(f"\nThe report: {choices.folder / 'report' / 'report.md'}")
    print0(f"The model for other programs: {choices.export.parent}")
    print0("To talk to the model, in the terminal or in the browser:")
    for script in ("chat_cli", "chat_web"):
        print0(f"  NANOCHAT_BASE_DIR={choices.folder} python -m scripts.{script} {' '.join(chat)}")
    if config.chat == "on" or (config.chat == "auto" and sys.stdin.isatty() and sys.stdout.isatty()):
        run_module("scripts.chat_cli", chat, "")


if __name__ == "__main__":
    cli(Config, main, __doc__)
