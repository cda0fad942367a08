"""The settings of a training run, and the optimizer's settings and rates that follow from them.

`Config` of base_train and chat_rl derives from `TrainingSettings`. That of mid_train and chat_sft derives from
`FineTuningSettings` (finetune_settings.py), which repeats these settings, so that each class lists all of a script's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from nanochat.configurator import Settings, setting
from nanochat.optim import OptimSettings
from nanochat.train import Rates
from nanochat.training import schedule
from nanochat.training.log import NO_RUN


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """Settings of every training run."""

    run: str = setting(NO_RUN, "name of the run in Weights & Biases; 'dummy' sends nothing")
    model_tag: str | None = setting(None, "model to train, such as d20; default: the deepest")
    device: str = setting("auto", "device to train on", choices=("auto", "cpu", "cuda", "mps"))
    init_lr_frac: float = setting(
        1.0, "share of the three base learning rates below that the run starts with", above=0, renamed_from="lr_scale"
    )
    embedding_lr: float = setting(0.2, "learning rate of the embedding (AdamW), at width 768", at_least=0)
    unembedding_lr: float = setting(
        0.004, "learning rate of the output head (AdamW), at width 768", at_least=0, renamed_from="head_lr"
    )
    matrix_lr: float = setting(0.02, "learning rate of the matrices (Muon)", at_least=0)
    weight_decay: float = setting(0.0, "weight decay of embedding and output head (AdamW)", at_least=0)
    grad_clip: float = setting(1.0, "largest norm of the gradient; 0 = no clipping", at_least=0)
    warmup_ratio: float = setting(
        0.0, "share of the run over which the learning rates rise", at_least=0, at_most=1, renamed_from="warmup"
    )
    warmdown_ratio: float = setting(
        0.2, "share of the run over which the learning rates fall", at_least=0, at_most=1, renamed_from="warmdown"
    )
    final_lr_frac: float = setting(
        0.0, "share of the learning rates that is left at the end", at_least=0, at_most=1, renamed_from="final_lr"
    )
    save_every: int = setting(
        -1, "steps between checkpoints; -1 = only at the end, or when the run is stopped", at_least=1, also=-1
    )
    keep_last: int = setting(-1, "number of checkpoints to keep; -1 = all", at_least=1, also=-1)
    resume: bool = setting(False, "resume from the last checkpoint of this stage and model tag")
    resume_from_step: int = setting(-1, "resume from the checkpoint of this step; -1 = do not", at_least=0, also=-1)


class OptimizerConfig(Protocol):
    """Settings that `optim_settings` reads."""

    @property
    def init_lr_frac(self) -> float: ...
    @property
    def embedding_lr(self) -> float: ...
    @property
    def unembedding_lr(self) -> float: ...
    @property
    def matrix_lr(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def grad_clip(self) -> float: ...


class ScheduleConfig(Protocol):
    """Settings that `scheduled_rates` reads."""

    @property
    def warmup_ratio(self) -> float: ...
    @property
    def warmdown_ratio(self) -> float: ...
    @property
    def final_lr_frac(self) -> float: ...


def optim_settings(config: OptimizerConfig) -> OptimSettings:
    """Return the optimizer's settings: the three base learning rates times `init_lr_frac`, and the rest."""
    return OptimSettings(
        matrix_lr=config.matrix_lr * config.init_lr_frac,
        embedding_lr=config.embedding_lr * config.init_lr_frac,
        unembedding_lr=config.unembedding_lr * config.init_lr_frac,
        weight_decay=config.weight_decay,
        grad_clip=config.grad_clip,
    )


def scheduled_rates(config: ScheduleConfig, progress: float, num_steps: int) -> Rates:
    """Return the rates of a step of a run of `num_steps` steps; `progress` is the share of it done before the step."""
    return Rates(
        lr_multiplier=schedule.lr_multiplier(
            progress, config.warmup_ratio, config.warmdown_ratio, config.final_lr_frac
        ),
        momentum=schedule.muon_momentum(progress, num_steps),
    )
