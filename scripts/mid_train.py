"""Midtrain a base model: teach it the conversation format, multiple choice and the calculator.

    torchrun --standalone --nproc_per_node=8 -m scripts.mid_train                         # eight GPUs
    python -m scripts.mid_train                                                           # one GPU, or a laptop
    python -m scripts.mid_train --conversations=mine.jsonl                                # add your own conversations
    python -m scripts.mid_train --resume                                                  # resume a stopped run

It starts from the last checkpoint of the deepest base model, or of `--model_tag`. The default mixture is
`MIXTURES["mid", kind]` in tasks/mixture.py: for web data SmolTalk, MMLU, GSM8K, identity and spelling. Ctrl-C and
SIGTERM save a checkpoint before the run ends and print the command that resumes it.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.configurator import cli
from nanochat.train import LoopState
from nanochat.training.finetune import Stage, fine_tune
from nanochat.training.settings import FineTuningSettings

STAGE = Stage("mid", script="mid_train", title="Midtraining")


@dataclass(frozen=True)
class Config(FineTuningSettings):
    """The fine-tuning settings with their defaults, which chat_sft overrides in part."""


def main(config: Config) -> LoopState:
    """Train and return the final loop state. Raises `StoppedBySignal` if a signal ended the run early."""
    return fine_tune(STAGE, config)


if __name__ == "__main__":
    cli(Config, main, __doc__)
