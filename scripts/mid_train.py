"""Midtrain a base model: the form of a conversation, multiple choice, the calculator.

    torchrun --standalone --nproc_per_node=8 -m scripts.mid_train                         # eight GPUs
    python -m scripts.mid_train                                                           # one GPU, or a laptop
    python -m scripts.mid_train --conversations=mine.jsonl                                # and your own conversations
    python -m scripts.mid_train --resume                                                  # go on after a stop

It takes the last checkpoint of the deepest base model, or of `--model_tag`. Ctrl-C and SIGTERM save a checkpoint before
they end the run, and the message tells how to go on.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.configurator import cli
from nanochat.train import LoopState
from nanochat.training.finetune import Stage, fine_tune
from nanochat.training.finetune_settings import FineTuning

STAGE = Stage("mid_train", "Midtraining", "mid")


@dataclass(frozen=True)
class Config(FineTuning):
    """As they stand there."""


def main(config: Config) -> LoopState:
    """Train, and return where the run ended. Raises `StoppedBySignal` if a signal has ended it early."""
    return fine_tune(STAGE, config)


if __name__ == "__main__":
    cli(Config, main, __doc__)
