"""Midtrain a base model: teach it the conversation format, multiple choice and the calculator.

    torchrun --standalone --nproc_per_node=8 -m scripts.mid_train                         # eight GPUs
    python -m scripts.mid_train                                                           # one GPU, or a laptop
    python -m scripts.mid_train --conversations=mine.jsonl                                # add your own conversations
    python -m scripts.mid_train --resume                                                  # resume a stopped run

It starts from the last checkpoint of the deepest base model, or of `--model_tag`. Ctrl-C and other signals save a
checkpoint before the run ends and print the command that resumes it.

The default mixture, `MIXTURES["mid", kind]` in tasks/mixture.py, in conversations:

    --kind=web    SmolTalk 460,000; MMLU 100,000; GSM8K all; Identity all, twice; SimpleSpelling 200,000;
                  SpellingBee 80,000
    --kind=world  WorldChat 1,000; WorldNotes 2,500; Facts 4,000; FactChoice 1,000; WordProblems 5,000;
                  SimpleSpelling 14,000; SpellingBee 5,000; Identity 500
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
    """The settings and defaults of `FineTuningSettings` in nanochat/training/settings.py."""


def main(config: Config) -> LoopState:
    """Train and return the final loop state. Raises `StoppedBySignal` if a signal ended the run early."""
    return fine_tune(STAGE, config)


if __name__ == "__main__":
    cli(Config, main, __doc__)
