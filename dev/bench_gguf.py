"""Speed of decoding one row on a CPU: nanochat's engine and llama.cpp on the same weights, in turn, in one run.

    python -m dev.bench_gguf                          # random weights in the shape of d12, all usable cores
    python -m dev.bench_gguf --depth=4 --rounds=3     # a quick look
    python -m dev.bench_gguf --gguf=d20-q8_0.gguf     # a file of yours instead; nanochat's engine is left out

Each way generates `--tokens` greedy tokens after a short prompt, and all of them are measured in each round, so that
other programs on the machine slow all. llama.cpp runs from the package xllamacpp, which is built for any processor, and
also from llama_cpp (`uv pip install llama-cpp-python`), which is built for this one, if that is installed. The table
has the median tokens per second, the median relative to the first way of the same round, and the share of the limit
that reading all weights once a token sets, at the memory bandwidth measured in this run.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nanochat.common import UserError, print0
from nanochat.configurator import Settings, cli, setting
from nanochat.engine import Engine
from nanochat.export.gguf_file import GGUFFile, GGUFOptions, write_gguf
from nanochat.gpt import GPT, GPTConfig
from nanochat.inference.llama_cpp import LlamaCppEngine
from nanochat.layers.sampling_params import SamplingParams
from nanochat.system.environment import num_usable_cores
from nanochat.system.speed import memory_bandwidth
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer, split_pattern

PROMPT = list(b"Once upon a time")
Generate = Callable[[int], int]
"""Generates about so many tokens, and returns their number."""


@dataclass(frozen=True)
class Config(Settings):
    depth: int = setting(12, "layers of the model, 64 times as wide", at_least=1)
    vocab_size: int = setting(32768, "tokens of its vocabulary", at_least=512)
    max_seq_len: int = setting(1024, "tokens of its context", at_least=256)
    tokens: int = setting(64, "tokens of a measurement", at_least=8)
    rounds: int = setting(5, "times that each way is measured", at_least=1)
    threads: int = setting(0, "threads; 0 = the usable cores", at_least=0)
    gguf: Path | None = setting(None, "file to measure instead of random weights")


@dataclass(frozen=True)
class Way:
    """A way to decode."""

    name: str
    num_bytes: int  # of weights that are read for a token
    generate: Generate


def random_tokenizer(vocab_size: int) -> Tokenizer:
    """Return a tokenizer of the single bytes and made-up words of two letters and more, which merges can make."""
    tokens = [bytes([byte]) for byte in range(256)]
    words = [b"a"]
    while len(tokens) < vocab_size - len(SPECIAL_TOKENS):
        new = [word + bytes([letter]) for word in words for letter in range(ord("a"), ord("z") + 1)]
        tokens += new[: vocab_size - len(SPECIAL_TOKENS) - len(tokens)]
        words = new
    ranks = {token: i for i, token in enumerate(tokens)}
    return Tokenizer(split_pattern(1), ranks, {name: len(ranks) + i for i, name in enumerate(SPECIAL_TOKENS)})


def random_model(depth: int, tokenizer: Tokenizer, context_len: int, head_dim: int) -> GPT:
    """Return a model whose most likely token is never a special one, so that no way ends early."""
    shape = GPTConfig.from_depth(
        depth, vocab_size=tokenizer.get_vocab_size(), sequence_len=context_len, head_dim=head_dim
    )
    model = GPT(shape)
    model.init_weights()
    with torch.no_grad():
        model.head.weight.normal_(std=0.05)
        model.head.weight[list(tokenizer.special_tokens.values())] = 0
    return model


def engine_way(name: str, engine: Engine | LlamaCppEngine, num_bytes: int) -> Way:
    """Return the way of an engine with nanochat's interface."""

    def generate(count: int) -> int:
        return sum(1 for _ in engine.stream(PROMPT, SamplingParams(0.0, max_tokens=count)))

    return Way(name, num_bytes, generate)


def xllamacpp_way(path: Path, threads: int) -> Way:
    """Return the way of llama.cpp's server as it is: one request for all tokens."""
    file = GGUFFile.open(path)
    engine = LlamaCppEngine(path, file.tokenizer(), file.context_len, num_threads=threads)

    def generate(count: int) -> int:
        body = {"prompt": PROMPT, "n_predict": count, "temperature": 0, "return_tokens": True}
        return len(engine.post("/completion", body).json()["tokens"])

    return Way(f"llama.cpp (xllamacpp), {path.stem}", path.stat().st_size, generate)


def native_way(path: Path, threads: int) -> Way | None:
    """Return the way of llama.cpp in llama-cpp-python, or None if it is not installed."""
    try:
        import llama_cpp
    except ImportError:
        return None
    model: Any = llama_cpp.Llama(str(path), n_ctx=256, n_threads=threads, n_threads_batch=threads, verbose=False)

    def generate(count: int) -> int:
        model.reset()
        made = 0
        for _ in model.generate(PROMPT, temp=0.0, top_k=1):
            made += 1
            if made == count:
                break
        return made

    return Way(f"llama.cpp (native), {path.stem}", path.stat().st_size, generate)


def build_ways(config: Config, folder: Path, threads: int) -> list[Way]:
    """Return the ways that this machine can measure."""
    ways: list[Way | None] = []
    if config.gguf is not None:
        paths = [config.gguf]
    else:
        tokenizer = random_tokenizer(config.vocab_size)
        model = random_model(config.depth, tokenizer, config.max_seq_len, head_dim=64)
        num_weights = model.num_params() - model.embed.weight.numel()  # one row of the embedding is read
        for dtype in (torch.bfloat16, torch.float32):
            name = f"nanochat, {str(dtype).removeprefix('torch.')}"
            ways.append(engine_way(name, Engine(model, tokenizer, dtype), num_weights * dtype.itemsize))
        paths = []
        for weight_type in ("bf16", "q8_0"):
            paths.append(folder / f"{weight_type}.gguf")
            write_gguf(paths[-1], model.state_dict(), model.config, tokenizer, GGUFOptions(weight_type), {})
    for path in paths:
        ways += [xllamacpp_way(path, threads), native_way(path, threads)]
    return [way for way in ways if way is not None]


def main(config: Config) -> dict[str, float]:
    """Measure all ways, print the table, and return the median tokens per second of each."""
    threads = config.threads or num_usable_cores()
    torch.set_num_threads(threads)
    if config.tokens + len(PROMPT) > 256:
        raise UserError(f"tokens is {config.tokens}: must be at most {256 - len(PROMPT)}")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.enter_context(redirect_stdout(sys.stderr))  # what the engines print while they load
        ways = build_ways(config, Path(folder), threads)
        for way in ways:
            way.generate(8)
        speeds: dict[str, list[float]] = {way.name: [] for way in ways}
        for _ in range(config.rounds):
            for way in ways:
                start = time.perf_counter()
                speeds[way.name].append(way.generate(config.tokens) / (time.perf_counter() - start))
        bandwidth = memory_bandwidth(torch.device("cpu"))
    first = speeds[ways[0].name]
    print0(f"{threads} threads, memory bandwidth {bandwidth / 1e9:.1f} GB/s, {config.rounds} rounds in turn")
    print0(f"{'':<40} {'tokens/s':>9} {'relative':>9} {'of the limit':>13}")
    medians = {}
    for way in ways:
        medians[way.name] = statistics.median(speeds[way.name])
        ratio = statistics.median(speed / base for speed, base in zip(speeds[way.name], first, strict=True))
        share = medians[way.name] * way.num_bytes / bandwidth
        print0(f"{way.name:<40} {medians[way.name]:>9.1f} {ratio:>9.2f} {share:>13.0%}")
    return medians


if __name__ == "__main__":
    cli(Config, main, __doc__)
