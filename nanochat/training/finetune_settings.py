"""The settings that midtraining and supervised fine-tuning share. Each script has its own defaults for some."""

from __future__ import annotations

from dataclasses import dataclass

from nanochat.configurator import setting
from nanochat.training.settings import Training


@dataclass(frozen=True)
class FineTuning(Training):
    """Of a run on conversations."""

    source: str = setting("base", "stage whose model is trained on", choices=("base", "mid", "sft"))
    source_step: int = setting(
        -1, "step of the model that is trained on; -1 = its last checkpoint", at_least=0, also=-1
    )
    seed: int = setting(42, "of the order of the conversations")
    kind: str = setting(
        "auto", "the mixture; auto = the world's if the base data is the story world", choices=("auto", "web", "world")
    )
    mixture: str | None = setting(None, "a TOML file that replaces the mixture")
    conversations: str | None = setting(None, "a JSONL file of your own conversations, added to the mixture")
    allow_missing: bool = setting(False, "leave out, with a notice, what can be found neither here nor on the hub")
    num_epochs: int = setting(1, "passes over the conversations", at_least=1)
    num_iterations: int = setting(-1, "optimizer steps; -1 = as many as the passes take", at_least=1, also=-1)
    max_seq_len: int = setting(-1, "tokens of a row; -1 = the model's whole context", at_least=1, also=-1)
    total_batch_size: int = setting(
        -1, "tokens of a step, over all processes; -1 = as in the run before", at_least=1, also=-1
    )
    device_batch_size: int | str = setting(
        "auto", "rows of a micro-batch on one device; auto = the largest that fits", at_least=1, also="auto"
    )
    eval_every: int = setting(
        100, "steps between measurements of the held-out loss; -1 = only at the end", at_least=1, also=-1
    )
    eval_tokens: int = setting(
        1048576, "tokens of a measurement, with padding; at most all held-out conversations", at_least=1
    )
    compile: str = setting("auto", "compile the model; auto = where it pays", choices=("auto", "on", "off"))
