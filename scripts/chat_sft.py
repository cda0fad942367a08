"""Fine-tune a model on conversations that are as its answers are to be (SFT), gently.

    torchrun --standalone --nproc_per_node=8 -m scripts.chat_sft                          # eight GPUs
    python -m scripts.chat_sft                                                            # one GPU, or a laptop
    python -m scripts.chat_sft --source=base --lr_scale=1                                 # without midtraining
    python -m scripts.chat_sft --mixture=mine.toml                                        # on a mixture of your own
    python -m scripts.chat_sft --resume                                                   # go on after a stop

It takes the last checkpoint of the deepest midtrained model, or of `--model_tag`. Ctrl-C and SIGTERM save a checkpoint
before they end the run, and the message tells how to go on.
"""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.configurator import cli, setting
from nanochat.train import LoopState
from nanochat.training.finetune import Stage, fine_tune
from nanochat.training.finetune_settings import FineTuning

STAGE = Stage("chat_sft", "Supervised fine-tuning", "sft")


@dataclass(frozen=True)
class Config(FineTuning):
    """What differs from midtraining: small steps that become smaller from the first to the last."""

    source: str = setting("mid", "stage whose model is trained on", choices=("base", "mid", "sft"))
    total_batch_size: int = setting(
        32768, "tokens of a step, over all processes; -1 = as in the run before", at_least=1, also=-1
    )
    lr_scale: float = setting(0.02, "factor on the three learning rates that follow", above=0)
    warmdown: float = setting(1.0, "share of the run in which the learning rate falls", at_least=0, at_most=1)


def main(config: Config) -> LoopState:
    """Train, and return where the run ended. Raises `StoppedBySignal` if a signal has ended it early."""
    return fine_tune(STAGE, config)


if __name__ == "__main__":
    cli(Config, main, __doc__)
