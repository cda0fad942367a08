"""Train the model and its plain twin on the same batches, and compare the losses.

    python -m dev.check_twin                              # d4, 256 wide, 200 steps of 2,048 tokens
    NANOCHAT_DTYPE=float32 python -m dev.check_twin --compile=off --steps=50

The twin (dev/plain_gpt.py) computes all logits at once and leaves every gradient to torch, uncompiled. Both round
differently, and training amplifies that. A third run shows by how much: the twin again, with every initial weight
changed by rounding to bfloat16's 8 significant bits if that is the compute dtype, else by one part in a million. The
difference of model and twin should be of the size of the difference of the two twins.

The tokens are a random walk: each token has eight possible successors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean

import torch

from dev.plain_gpt import PlainGPT
from nanochat.checkpoint_manager import build_model
from nanochat.common import print0
from nanochat.configurator import Settings, cli, setting
from nanochat.dataloader import MicroBatch
from nanochat.gpt import GPTConfig
from nanochat.optim import build_optimizer
from nanochat.runtime import Runtime
from nanochat.train import Forward, Rates, step
from nanochat.training.schedule import lr_multiplier, muon_momentum
from nanochat.training.setup import compile_model

NUM_SUCCESSORS = 8
RUNS = ("model", "twin", "changed twin")


@dataclass(frozen=True)
class Config(Settings):
    device: str = setting("auto", "device to train on", choices=("auto", "cpu", "cuda", "mps"))
    depth: int = setting(4, "layers of the model", at_least=1)
    head_dim: int = setting(64, "size of an attention head", at_least=2)
    vocab_size: int = setting(2048, "tokens of the vocabulary", at_least=NUM_SUCCESSORS)
    max_seq_len: int = setting(256, "tokens of context", at_least=1)
    batch_size: int = setting(8, "rows of a step", at_least=1)
    steps: int = setting(200, "steps of each run", at_least=1)
    compile: str = setting("on", "compile the model; the twin never is", choices=("on", "off"))


def random_walks(config: Config, device: torch.device) -> Iterator[MicroBatch]:
    """Yield batches of random walks, the same in each call."""
    generator = torch.Generator().manual_seed(0)
    successors = torch.randint(config.vocab_size, (config.vocab_size, NUM_SUCCESSORS), generator=generator)
    while True:
        tokens = torch.randint(config.vocab_size, (config.batch_size, 1), generator=generator)
        choices = torch.randint(NUM_SUCCESSORS, (config.batch_size, config.max_seq_len), generator=generator)
        walks = [tokens[:, 0]]
        for position in range(config.max_seq_len):
            walks.append(successors[walks[-1], choices[:, position]])
        rows = torch.stack(walks, dim=1).to(device)  # (B, T + 1)
        yield MicroBatch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), progress=0.0, cursor={})


def train_run(run: str, config: Config, runtime: Runtime) -> list[float]:
    """Train one of `RUNS` and return the losses of its steps, in nats per token."""
    shape = GPTConfig.from_depth(
        config.depth, vocab_size=config.vocab_size, sequence_len=config.max_seq_len, head_dim=config.head_dim
    )
    model = build_model(shape, runtime)
    if run == "changed twin":
        is_bf16 = runtime.compute_dtype == torch.bfloat16
        with torch.no_grad():
            for param in model.parameters():
                param.copy_(param.bfloat16() if is_bf16 else param * (1 + 1e-6))
    forward: Forward = PlainGPT(model)
    if run == "model":
        forward = compile_model(model, config.compile, config.steps, config.batch_size, runtime)
    optimizer = build_optimizer(model, runtime)
    losses = []
    for index, batch in zip(range(config.steps), random_walks(config, runtime.device), strict=False):
        progress = index / config.steps
        rates = Rates(lr_multiplier(progress, 0.0, 0.5, 0.0), muon_momentum(progress, config.steps))
        losses.append(step(forward, optimizer, [batch], rates, lambda: 0)[0])
    return losses


def main(config: Config) -> dict[str, list[float]]:
    """Train the three runs, print and return their losses."""
    runtime = Runtime.start(0, config.device)
    curves = {run: train_run(run, config, runtime) for run in RUNS}
    print0(f"d{config.depth}, {runtime.device}, {runtime.dtype_name}, compile {config.compile}: loss in nats per token")
    print0("steps          " + "".join(f"{run:>14}" for run in RUNS))
    num_rows = min(10, config.steps)
    for row in range(num_rows):
        part = slice(row * config.steps // num_rows, (row + 1) * config.steps // num_rows)
        values = "".join(f"{mean(curves[run][part]):14.5f}" for run in RUNS)
        print0(f"{part.start + 1:5} to {part.stop:5} {values}")
    for run in ("model", "changed twin"):
        differences = [abs(a - b) for a, b in zip(curves[run], curves["twin"], strict=True)]
        print0(f"{run} - twin: {mean(differences):.2e} on average, {max(differences):.2e} at most")
    return curves


if __name__ == "__main__":
    cli(Config, main, __doc__)
