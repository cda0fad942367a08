"""The settings that every training run has. Each script adds its own, and has its own defaults for some."""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.configurator import Settings, setting
from nanochat.optim import OptimSettings
from nanochat.train import Rates
from nanochat.training import schedule
from nanochat.training.log import NO_RUN


@dataclass(frozen=True)
class Training(Settings):
    """How a run is called, how it learns, what it keeps, and whether it goes on."""

    run: str = setting(NO_RUN, "name of the run in Weights & Biases; 'dummy' sends nothing")
    model_tag: str | None = setting(None, "which model, as d20; it keeps its tag; default the deepest")
    device: str = setting("auto", "where to train", choices=("auto", "cpu", "cuda", "mps"))
    lr_scale: float = setting(1.0, "factor on the three learning rates that follow", above=0)
    embedding_lr: float = setting(0.2, "AdamW's learning rate for the embedding, at width 768", at_least=0)
    head_lr: float = setting(0.004, "AdamW's learning rate for the head, at width 768", at_least=0)
    matrix_lr: float = setting(0.02, "Muon's learning rate for the matrices", at_least=0)
    weight_decay: float = setting(0.0, "AdamW's weight decay", at_least=0)
    grad_clip: float = setting(1.0, "largest norm of the gradient; 0 = not clipped", at_least=0)
    warmup: float = setting(0.0, "share of the run in which the learning rate rises", at_least=0, at_most=1)
    warmdown: float = setting(0.2, "share of the run in which the learning rate falls", at_least=0, at_most=1)
    final_lr: float = setting(0.0, "share of the learning rate that is left at the end", at_least=0, at_most=1)
    save_every: int = setting(
        -1, "steps between checkpoints; -1 = only at the end, or when the run is stopped", at_least=1, also=-1
    )
    keep_last: int = setting(-1, "checkpoints to keep; -1 = all", at_least=1, also=-1)
    resume: bool = setting(False, "go on from the last checkpoint of this stage and model tag")
    resume_from_step: int = setting(-1, "go on from the checkpoint of this step; -1 = do not", at_least=0, also=-1)

    @property
    def resuming(self) -> bool:
        """Whether a run of this stage goes on."""
        return self.resume or self.resume_from_step != -1

    def optim_settings(self) -> OptimSettings:
        """The optimizer's share of the settings."""
        return OptimSettings(
            matrix_lr=self.matrix_lr * self.lr_scale,
            embedding_lr=self.embedding_lr * self.lr_scale,
            unembedding_lr=self.head_lr * self.lr_scale,
            weight_decay=self.weight_decay,
            grad_clip=self.grad_clip,
        )

    def rates(self, progress: float, num_steps: int) -> Rates:
        """What the schedule sets at this progress."""
        return Rates(
            lr_scale=schedule.lr_scale(progress, self.warmup, self.warmdown, self.final_lr),
            momentum=schedule.muon_momentum(progress, num_steps),
        )
