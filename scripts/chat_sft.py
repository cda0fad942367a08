"""Supervised fine-tuning (SFT): train a model at low learning rates on a small mixture of conversations and tasks.

    torchrun --standalone --nproc_per_node=8 -m scripts.chat_sft                          # eight GPUs
    python -m scripts.chat_sft                                                            # one GPU, or a laptop
    python -m scripts.chat_sft --source=base --init_lr_frac=1                             # without midtraining
    python -m scripts.chat_sft --mixture=mine.toml                                        # on your own mixture
    python -m scripts.chat_sft --resume                                                   # resume a stopped run

It starts from the last checkpoint of the deepest midtrained model, or of `--model_tag`. Ctrl-C and other signals save a
checkpoint before the run ends and print the command that resumes it.

The default mixture, `MIXTURES["sft", kind]` in tasks/mixture.py, in conversations:

    --kind=web    ARC-Easy all; ARC-Challenge all; GSM8K all; SmolTalk 10,000; Identity 1,000; SimpleSpelling 300;
                  SpellingBee 300
    --kind=world  WorldChat 500; WorldNotes 2,000; Facts 800; FactChoice 300; WordProblems 3,500; SimpleSpelling 1,000;
                  SpellingBee 3,500; Identity 300
"""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.configurator import cli, setting
from nanochat.train import LoopState
from nanochat.training.finetune import Stage, fine_tune
from nanochat.training.settings import FineTuningSettings

STAGE = Stage("sft", script="chat_sft", title="Supervised fine-tuning")


@dataclass(frozen=True)
class Config(FineTuningSettings):
    """The settings of mid_train with other defaults: fewer tokens per step, low learning rates that fall throughout."""

    source: str = setting("mid", "stage whose model is trained", choices=("base", "mid", "sft"))
    total_batch_size: int = setting(
        32768,
        "tokens of an optimizer step, over all processes; -1 = as in the run of the source checkpoint",
        at_least=1,
        or_value=-1,
    )
    init_lr_frac: float = setting(
        0.02,
        "factor on embedding_lr, unembedding_lr and matrix_lr; the schedule starts there",
        above=0,
        renamed_from="lr_scale",
    )
    warmdown_ratio: float = setting(
        1.0, "share of the run over which the learning rates fall", at_least=0, at_most=1, renamed_from="warmdown"
    )


def main(config: Config) -> LoopState:
    """Train and return the final loop state. Raises `StoppedBySignal` if a signal ended the run early."""
    return fine_tune(STAGE, config)


if __name__ == "__main__":
    cli(Config, main, __doc__)
