"""The settings of a training run, and the optimizer's settings and rates that follow from them.

`TrainingSettings` is the base class of `Config` in base_train and chat_rl, `FineTuningSettings` that of `Config` in
mid_train and chat_sft. The second class repeats the settings of the first instead of inheriting them, so that one class
lists all settings that a script inherits; a test keeps the two equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from nanochat.configurator import Settings, setting
from nanochat.optim import OptimSettings
from nanochat.train import Rates
from nanochat.training import schedule
from nanochat.training.early_stopping import check_patience
from nanochat.training.log import NO_RUN


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """Settings of base_train and chat_rl, which add their own; chat_rl has lower learning rates."""

    run: str = setting(NO_RUN, "name of the run in Weights & Biases; 'dummy' sends nothing", names="name")
    model_tag: str | None = setting(None, "model to train, such as d20; default: the deepest", names="name")
    device: str = setting("auto", "device to train on", choices=("auto", "cpu", "cuda", "mps"))
    init_lr_frac: float = setting(
        1.0,
        "factor on embedding_lr, unembedding_lr and matrix_lr; the schedule starts there",
        above=0,
        renamed_from="lr_scale",
    )
    embedding_lr: float = setting(0.2, "learning rate of the embedding (AdamW), at width 768", at_least=0)
    unembedding_lr: float = setting(
        0.004, "learning rate of the output head (AdamW), at width 768", at_least=0, renamed_from="head_lr"
    )
    matrix_lr: float = setting(0.02, "learning rate of the weight matrices of the blocks (Muon)", at_least=0)
    weight_decay: float = setting(0.0, "weight decay of embedding and output head (AdamW)", at_least=0)
    grad_clip: float = setting(1.0, "largest norm of the gradient; 0 = no clipping", at_least=0)
    warmup_ratio: float = setting(
        0.0, "share of the run over which the learning rates rise", at_least=0, at_most=1, renamed_from="warmup"
    )
    warmdown_ratio: float = setting(
        0.2, "share of the run over which the learning rates fall", at_least=0, at_most=1, renamed_from="warmdown"
    )
    final_lr_frac: float = setting(
        0.0,
        "learning rates at the end of the run, as a share of their peak",
        at_least=0,
        at_most=1,
        renamed_from="final_lr",
    )
    save_every: int = setting(
        -1, "steps between checkpoints; -1 = only at the end, or when the run is stopped", at_least=1, or_value=-1
    )
    keep_last: int = setting(-1, "number of the run's checkpoints to keep; -1 = all", at_least=1, or_value=-1)
    resume: bool = setting(False, "resume from the last checkpoint of this stage and model tag")
    resume_from_step: int = setting(-1, "resume from the checkpoint of this step; -1 = do not", at_least=0, or_value=-1)


@dataclass(frozen=True)
class FineTuningSettings(Settings):
    """Settings of training on conversations: mid_train and chat_sft.

    mid_train uses these defaults. chat_sft overrides `source` (mid), `total_batch_size` (32768), `init_lr_frac` (0.02)
    and `warmdown_ratio` (1.0).
    """

    run: str = setting(NO_RUN, "name of the run in Weights & Biases; 'dummy' sends nothing", names="name")
    model_tag: str | None = setting(None, "model to train, such as d20; default: the deepest", names="name")
    device: str = setting("auto", "device to train on", choices=("auto", "cpu", "cuda", "mps"))
    init_lr_frac: float = setting(
        1.0,
        "factor on embedding_lr, unembedding_lr and matrix_lr; the schedule starts there",
        above=0,
        renamed_from="lr_scale",
    )
    embedding_lr: float = setting(0.2, "learning rate of the embedding (AdamW), at width 768", at_least=0)
    unembedding_lr: float = setting(
        0.004, "learning rate of the output head (AdamW), at width 768", at_least=0, renamed_from="head_lr"
    )
    matrix_lr: float = setting(0.02, "learning rate of the weight matrices of the blocks (Muon)", at_least=0)
    weight_decay: float = setting(0.0, "weight decay of embedding and output head (AdamW)", at_least=0)
    grad_clip: float = setting(1.0, "largest norm of the gradient; 0 = no clipping", at_least=0)
    warmup_ratio: float = setting(
        0.0, "share of the run over which the learning rates rise", at_least=0, at_most=1, renamed_from="warmup"
    )
    warmdown_ratio: float = setting(
        0.2, "share of the run over which the learning rates fall", at_least=0, at_most=1, renamed_from="warmdown"
    )
    final_lr_frac: float = setting(
        0.0,
        "learning rates at the end of the run, as a share of their peak",
        at_least=0,
        at_most=1,
        renamed_from="final_lr",
    )
    save_every: int = setting(
        -1, "steps between checkpoints; -1 = only at the end, or when the run is stopped", at_least=1, or_value=-1
    )
    keep_last: int = setting(-1, "number of the run's checkpoints to keep; -1 = all", at_least=1, or_value=-1)
    resume: bool = setting(False, "resume from the last checkpoint of this stage and model tag")
    resume_from_step: int = setting(-1, "resume from the checkpoint of this step; -1 = do not", at_least=0, or_value=-1)

    source: str = setting("base", "stage whose model is trained", choices=("base", "mid", "sft"))
    source_step: int = setting(-1, "step of the checkpoint to start from; -1 = the last", at_least=0, or_value=-1)
    seed: int = setting(42, "seed of the order of the conversations")
    kind: str = setting(
        "auto",
        "default mixture: web = downloaded data sets, world = the embedded story world, auto = to match the base data",
        choices=("auto", "web", "world"),
    )
    mixture: str | None = setting(None, "TOML file with a mixture to train on instead of the default one", names="path")
    conversations: str | None = setting(
        None, "JSONL file with your own conversations, added to the mixture", names="path"
    )
    grounded: bool = setting(
        False, "the conversations have passages of documents before their questions; chat then does the same"
    )
    allow_missing: bool = setting(False, "leave out, with a notice, data that is neither here nor on the hub")
    num_epochs: int = setting(1, "passes over the conversations", at_least=1)
    num_iterations: int = setting(-1, "optimizer steps; -1 = as many as the passes take", at_least=1, or_value=-1)
    max_seq_len: int = setting(-1, "tokens of a row; -1 = the model's whole context", at_least=1, or_value=-1)
    total_batch_size: int = setting(
        -1,
        "tokens of an optimizer step, over all processes; -1 = as in the run of the source checkpoint",
        at_least=1,
        or_value=-1,
    )
    device_batch_size: int | str = setting(
        "auto", "rows of a micro-batch on one device; auto = as many as fit", at_least=1, or_value="auto"
    )
    eval_every: int = setting(
        100, "steps between evaluations of the held-out loss; -1 = only at the end", at_least=1, or_value=-1
    )
    eval_tokens: int = setting(
        1048576, "tokens of an evaluation, padding included; at most all held-out conversations", at_least=1
    )
    patience: int = setting(
        -1,
        "evaluations without a lower held-out loss after which the run ends and goes back to its best checkpoint; "
        "-1 = train all steps, and keep the last",
        at_least=1,
        or_value=-1,
    )
    compile: str = setting("auto", "compile the model; auto = where it saves time", choices=("auto", "on", "off"))
    fp8: bool = setting(False, "train the linear layers of the blocks in fp8, on an NVIDIA GPU that has it")
    checkpoint_activations: bool = setting(
        False, "compute activations again in the backward pass instead of keeping them: less memory, a third more work"
    )
    profile: int = setting(
        0, "steps to trace after a few to warm up, for a table of where the time goes; 0 = none", at_least=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_patience(self.patience, self.eval_every, self.save_every)


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
