"""Command lines that mid_train and chat_sft refuse alike, and flags for fast runs."""

from __future__ import annotations

FAST = ("--device=cpu", "--compile=off", "--device_batch_size=2", "--total_batch_size=256")

REFUSED_FLAGS = [
    ("--num_epochs=0", "num_epochs is 0"),
    ("--num_iterations=0", "num_iterations is 0"),
    ("--eval_every=0", "eval_every is 0"),
    ("--eval_tokens=-1", "eval_tokens is -1"),
    ("--source_step=-2", "source_step is -2"),
    ("--resume_from_step=-3", "resume_from_step is -3"),
    ("--warmdown_ratio=2", "warmdown_ratio is 2.0"),
    ("--device_batch_size=some", "device_batch_size is 'some'"),
    ("--init_lr_frac=0", "init_lr_frac is 0.0"),
    ("--matrix_lr=-1", "matrix_lr is"),
    ("--source=rl", "one of base, mid, sft"),
    ("--kind=poem", "one of auto, web, world"),
    ("--mixtures=x", "did you mean --mixture?"),
]
