"""The settings that midtraining and supervised fine-tuning share. Each script has its own defaults for some."""

from __future__ import annotations

from dataclasses import dataclass

from nanochat import schedule
from nanochat.common import UserError
from nanochat.configurator import setting
from nanochat.optim import OptimSettings
from nanochat.train import Rates
from nanochat.train_log import NO_RUN


@dataclass(frozen=True)
class FineTuning:
    """Of a run on conversations."""

    run: str = setting(NO_RUN, "name of the run in Weights & Biases; 'dummy' sends nothing")
    source: str = setting("base", "stage whose model is trained on", choices=("base", "mid", "sft"))
    source_step: int = setting(-1, "step of the model that is trained on; -1 = its last checkpoint")
    model_tag: str | None = setting(None, "which model, as d20; it keeps its tag; default the deepest")
    device: str = setting("auto", "where to train", choices=("auto", "cpu", "cuda", "mps"))
    seed: int = setting(42, "of the order of the conversations")
    kind: str = setting(
        "auto", "the mixture; auto = the world's if the base data is the story world", choices=("auto", "web", "world")
    )
    mixture: str | None = setting(None, "a TOML file that replaces the mixture")
    conversations: str | None = setting(None, "a JSONL file of your own conversations, added to the mixture")
    allow_missing: bool = setting(False, "leave out, with a notice, what can be found neither here nor on the hub")
    num_epochs: int = setting(1, "passes over the conversations")
    num_iterations: int = setting(-1, "optimizer steps; -1 = as many as the passes take")
    max_seq_len: int = setting(-1, "tokens of a row; -1 = the model's whole context")
    total_batch_size: int = setting(-1, "tokens of a step, over all processes; -1 = as in the run before")
    device_batch_size: str = setting("auto", "rows of a micro-batch on one device; auto = the largest that fits")
    lr_scale: float = setting(1.0, "factor on the three learning rates that follow")
    embedding_lr: float = setting(0.2, "AdamW's learning rate for the embedding, at width 768")
    head_lr: float = setting(0.004, "AdamW's learning rate for the head, at width 768")
    matrix_lr: float = setting(0.02, "Muon's learning rate for the matrices")
    weight_decay: float = setting(0.0, "AdamW's weight decay")
    grad_clip: float = setting(1.0, "largest norm of the gradient; 0 = not clipped")
    warmup: float = setting(0.0, "share of the run in which the learning rate rises")
    warmdown: float = setting(0.2, "share of the run in which the learning rate falls")
    final_lr: float = setting(0.0, "share of the learning rate that is left at the end")
    eval_every: int = setting(100, "steps between measurements of the held-out loss; -1 = only at the end")
    eval_tokens: int = setting(1048576, "tokens of a measurement, with padding; at most all held-out conversations")
    save_every: int = setting(-1, "steps between checkpoints; -1 = only at the end, or when the run is stopped")
    keep_last: int = setting(-1, "checkpoints to keep; -1 = all")
    resume: bool = setting(False, "go on from the last checkpoint of this stage and model tag")
    resume_from_step: int = setting(-1, "go on from the checkpoint of this step; -1 = do not")
    compile: str = setting("auto", "compile the model; auto = where it pays", choices=("auto", "on", "off"))

    def __post_init__(self) -> None:
        for name in ("num_epochs", "eval_tokens"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("num_iterations", "max_seq_len", "total_batch_size", "eval_every", "save_every", "keep_last"):
            if getattr(self, name) < 1 and getattr(self, name) != -1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1, or -1 (see --help)")
        for name in ("source_step", "resume_from_step"):
            if getattr(self, name) < -1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be a step, or -1")
        for name in ("warmup", "warmdown", "final_lr"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}: it is a share, from 0 to 1")
        size = self.device_batch_size
        if size != "auto" and not (size.isdecimal() and int(size)):
            raise UserError(f"device_batch_size is {size!r}: it must be auto or a number, at least 1")
        if not 0 < self.lr_scale < float("inf"):
            raise UserError(f"lr_scale is {self.lr_scale}: it must be above 0")
        self.optim_settings()

    @property
    def resuming(self) -> bool:
        """Whether a run of this stage goes on."""
        return self.resume or self.resume_from_step != -1

    def optim_settings(self) -> OptimSettings:
        """The optimizer's share of the settings."""
        rates = {name: getattr(self, name) * self.lr_scale for name in ("matrix_lr", "embedding_lr", "head_lr")}
        return OptimSettings(**rates, weight_decay=self.weight_decay, grad_clip=self.grad_clip)

    def rates(self, progress: float, num_steps: int) -> Rates:
        """What the schedule sets at this progress."""
        return Rates(
            lr_scale=schedule.lr_scale(progress, self.warmup, self.warmdown, self.final_lr),
            momentum=schedule.muon_momentum(progress, num_steps),
        )
