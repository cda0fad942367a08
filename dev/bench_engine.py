"""Speed of generation on this machine: nanochat, transformers and llama.cpp on the same weights, in turn, in one run.

    python -m dev.bench_engine                              # random weights in the shape of d12, 1, 16 and 64 rows
    python -m dev.bench_engine --depth=4 --rows=1,8         # a quick look
    python -m dev.bench_engine --ways=bfloat16,hf           # only the ways whose names contain one of these

In every round each way continues the same prompts (`--prompt` tokens each, one for each row) by `--tokens` greedy
tokens. "first" is the time until all rows have their first token, "tokens/s" the speed from then until the first row
ends, of all rows together ("-" if a row has ended before all have begun), and "with prompts" the tokens of all rows
over the whole time. "relative" is the median ratio of the latter to the first way in the same round. "of the limit"
compares the bytes that a step has to read, weights and cached keys and values, with the speed at which this machine
reads memory. nanochat's ways run the scheduler that serves requests; "torch step" is the same with the forward pass in
torch. transformers and llama.cpp (packages transformers, xllamacpp, llama_cpp; the last one, `uv pip install
llama-cpp-python`, is built for this processor) are left out where they are not installed. llama.cpp serves several rows
from its server's slots.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from dev.bench_gguf import random_model, random_tokenizer
from nanochat.common import UserError, print0
from nanochat.configurator import Settings, cli, setting
from nanochat.export.gguf_file import GGUFFile, GGUFOptions, write_gguf
from nanochat.export.hf_model import to_hf_config, to_hf_weights
from nanochat.gpt import GPT
from nanochat.inference.generation_request import FinishEvent, GenerationRequest, TokenEvent
from nanochat.inference.llama_cpp import LlamaCppEngine
from nanochat.inference.model_step import ModelStep
from nanochat.inference.native_step import BLOCK_LEN, is_available
from nanochat.inference.scheduler import Scheduler
from nanochat.inference.tool_use import Tool
from nanochat.inference.torch_step import TorchStep
from nanochat.layers.sampling_params import SamplingParams
from nanochat.steps.make_step import block_bytes, is_native, make_step, with_compute_weights
from nanochat.system.environment import num_usable_cores
from nanochat.system.speed import memory_bandwidth
from nanochat.tokenizer import Tokenizer

Times = list[list[float]]
"""When each token of each row came, in seconds since the start."""
Generate = Callable[[Sequence[list[int]], int], Times]
"""Continues prompts by so many greedy tokens each."""
PREFILL_TOKENS = 1024  # of a step of nanochat
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}


@dataclass(frozen=True)
class Config(Settings):
    depth: int = setting(12, "layers of the model, 64 times as wide", at_least=1)
    head_dim: int = setting(128, "size of a head", at_least=2)
    vocab_size: int = setting(32768, "tokens of its vocabulary", at_least=512)
    prompt: int = setting(128, "tokens of a prompt", at_least=1)
    tokens: int = setting(33, "tokens of a completion", at_least=2)
    rows: str = setting("1,16,64", "numbers of rows, separated by commas")
    rounds: int = setting(3, "times that each way is measured", at_least=1)
    threads: int = setting(0, "threads; 0 = the usable cores", at_least=0)
    ways: str = setting("", "measure only ways whose names contain one of these, separated by commas")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(part.isdecimal() and 1 <= int(part) <= 512 for part in self.rows.split(",")):
            raise UserError(
                f"rows is {self.rows!r}: must be numbers from 1 to 512, separated by commas, such as 1,16,64"
            )

    @property
    def context_len(self) -> int:
        """Tokens of the context, those of prompt and completion rounded up to whole blocks."""
        return -(-(self.prompt + self.tokens) // BLOCK_LEN) * BLOCK_LEN


@dataclass(frozen=True)
class Way:
    """A way to generate."""

    name: str
    generate: Generate
    weight_bytes: int  # read in every step
    cache_bytes: int  # read in every step for each position of each row


def scheduler_way(name: str, model_step: ModelStep, tokenizer: Tokenizer, weight_bytes: int, cache_bytes: int) -> Way:
    """Return the way of nanochat's scheduler over a step."""

    def generate(prompts: Sequence[list[int]], count: int) -> Times:
        times: Times = [[] for _ in prompts]

        def note_time(row: int, event: TokenEvent | FinishEvent) -> None:
            if isinstance(event, TokenEvent):
                times[row].append(time.perf_counter() - start)

        # Larger chunks of prompts than a server's, so that all rows soon decode together.
        scheduler = Scheduler(model_step, Tool(tokenizer), max_running=len(prompts), max_prefill_tokens=PREFILL_TOKENS)
        params = SamplingParams(temperature=0.0, max_tokens=count)
        start = time.perf_counter()
        for row, tokens in enumerate(prompts):
            on_event = partial(note_time, row)
            scheduler.submit(GenerationRequest(tokens=tokens, params=params, rng_key=0, on_event=on_event))
        while scheduler.step():
            pass
        return times

    return Way(name, generate, weight_bytes, cache_bytes)


def nanochat_ways(config: Config, model: GPT, tokenizer: Tokenizer, max_rows: int) -> list[Way]:
    """Return the ways of the native step in each dtype, and of the step in torch."""
    num_blocks = max_rows * config.context_len // BLOCK_LEN
    num_weights = model.num_params() - model.embed.weight.numel()  # one row of the embedding is read
    ways = []
    for name, dtype in DTYPES.items():
        cache_bytes = block_bytes(model.config, dtype) // BLOCK_LEN
        if is_native(model.device, dtype) and is_selected(config, f"nanochat, {name}"):
            step = make_step(model, dtype, num_blocks)
            ways.append(scheduler_way(f"nanochat, {name}", step, tokenizer, num_weights * dtype.itemsize, cache_bytes))
        if dtype != torch.int8 and is_selected(config, f"torch step, {name}"):
            step = TorchStep(with_compute_weights(model, dtype), num_blocks)
            sizes = num_weights * dtype.itemsize, cache_bytes
            ways.append(scheduler_way(f"torch step, {name}", step, tokenizer, *sizes))
    return ways


def hf_ways(config: Config, model: GPT, tokenizer: Tokenizer, folder: Path) -> list[Way]:
    """Return the ways of transformers' `generate` for batches, in each dtype."""
    try:
        from transformers import AutoModelForCausalLM, LogitsProcessor, LogitsProcessorList
    except ImportError:
        return []
    (folder / "config.json").write_text(json.dumps(to_hf_config(model.config, tokenizer, {})), encoding="utf-8")
    save_file(to_hf_weights(model.state_dict(), model.config), folder / "model.safetensors", metadata={"format": "pt"})
    num_weights = model.num_params() - model.embed.weight.numel()

    def make_way(name: str, dtype: torch.dtype) -> Way:
        hf_model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)

        @torch.inference_mode()
        def generate(prompts: Sequence[list[int]], count: int) -> Times:
            times: list[float] = []

            class Clock(LogitsProcessor):
                def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                    times.append(time.perf_counter() - start)
                    return scores

            ids = torch.tensor(prompts)
            start = time.perf_counter()
            hf_model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                logits_processor=LogitsProcessorList([Clock()]),
            )
            return [times for _ in prompts]

        return Way(name, generate, num_weights * dtype.itemsize, block_bytes(model.config, dtype) // BLOCK_LEN)

    names = {f"hf transformers, {name}": dtype for name, dtype in DTYPES.items() if dtype != torch.int8}
    return [make_way(name, dtype) for name, dtype in names.items() if is_selected(config, name)]


def llama_cpp_server_way(config: Config, path: Path, threads: int, cache_bytes: int, max_rows: int) -> Way:
    """Return the way of llama.cpp's server, a slot for each row."""
    import requests

    file = GGUFFile.open(path)
    engine = LlamaCppEngine(path, file.tokenizer(), config.context_len, num_threads=threads, num_slots=max_rows)

    session = requests.Session()
    session.trust_env = False  # neither a proxy nor ~/.netrc: the server is in this process
    session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=max_rows))

    def generate(prompts: Sequence[list[int]], count: int) -> Times:
        times: Times = [[] for _ in prompts]

        def ask(row: int, tokens: list[int]) -> None:
            body: dict[str, Any] = {
                "prompt": tokens,
                "n_predict": count,
                "temperature": 0,
                "ignore_eos": True,
                "cache_prompt": False,
            }
            with session.post(
                f"{engine.url}/completion",
                json={**body, "stream": True},
                headers=engine.headers,
                stream=True,
                timeout=600,
            ) as response:
                for line in response.iter_lines():
                    if line.startswith(b"data:") and b'"stop":false' in line.replace(b" ", b""):
                        times[row].append(time.perf_counter() - start)

        start = time.perf_counter()
        threads = [threading.Thread(target=ask, args=pair) for pair in enumerate(prompts)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return times

    return Way(f"llama.cpp server, {path.stem}", generate, path.stat().st_size, cache_bytes)


TRY_NATIVE = """
import sys, llama_cpp
next(llama_cpp.Llama(sys.argv[1], n_ctx=64, verbose=False).generate([1, 2, 3]))
"""


def native_llama_cpp_way(path: Path, context_len: int, threads: int, cache_bytes: int) -> Way | None:
    """Return the way of llama.cpp in llama-cpp-python for one row, or None if it is not installed or does not work.

    A build for this processor may use instructions that the processor has and a virtual machine forbids. So it is tried
    in a process of its own.
    """
    if importlib.util.find_spec("llama_cpp") is None:
        return None
    tried = subprocess.run([sys.executable, "-c", TRY_NATIVE, str(path)], capture_output=True, check=False)
    if tried.returncode:
        print0(f"left out: native llama.cpp with {path.name} ends with code {tried.returncode} on this machine")
        return None
    import llama_cpp

    model: Any = llama_cpp.Llama(
        str(path), n_ctx=context_len, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def generate(prompts: Sequence[list[int]], count: int) -> Times:
        times: list[float] = []
        [tokens] = prompts
        model.reset()
        start = time.perf_counter()
        for _ in model.generate(tokens, temp=0.0, top_k=1):
            times.append(time.perf_counter() - start)
            if len(times) == count:
                break
        return [times]

    return Way(f"llama.cpp native, {path.stem}", generate, path.stat().st_size, cache_bytes)


def llama_cpp_ways(
    config: Config, model: GPT, tokenizer: Tokenizer, folder: Path, threads: int, max_rows: int
) -> list[Way]:
    """Return the ways of llama.cpp on exported files, as far as its packages are installed."""
    ways: list[Way | None] = []
    cache_bytes = block_bytes(model.config, torch.bfloat16) // BLOCK_LEN  # its cache is float16
    for weight_type in ("bf16", "q8_0"):
        server, native = (f"llama.cpp {kind}, {weight_type}" for kind in ("server", "native"))
        if not (is_selected(config, server) or is_selected(config, native)):
            continue
        path = folder / f"{weight_type}.gguf"
        write_gguf(path, model.state_dict(), model.config, tokenizer, GGUFOptions(weight_type), {})
        if is_selected(config, server):
            try:
                ways.append(llama_cpp_server_way(config, path, threads, cache_bytes, max_rows))
            except UserError as error:
                print0(f"left out: {error}")
        if is_selected(config, native):
            ways.append(native_llama_cpp_way(path, config.context_len, threads, cache_bytes))
    return [way for way in ways if way is not None]


def is_selected(config: Config, name: str) -> bool:
    """Return True if a way of this name is to be measured."""
    return any(part.strip() in name for part in config.ways.split(","))


@dataclass(frozen=True)
class Measurement:
    """A round of a way: seconds until all rows have begun, and tokens per second, as in the table."""

    first: float
    speed: float  # NaN if a row has ended before all have begun
    speed_with_prompts: float


def summarize(times: Times) -> Measurement:
    """Return the measurement of a round.

    >>> summarize([[1.0, 2.0, 3.0], [2.0, 3.0, 4.0]])
    Measurement(first=2.0, speed=2.0, speed_with_prompts=1.5)
    """
    first = max(row[0] for row in times)
    end = min(row[-1] for row in times)
    num_tokens = sum(first < when <= end for row in times for when in row)
    speed = num_tokens / (end - first) if end > first else math.nan
    return Measurement(first, speed, sum(map(len, times)) / max(row[-1] for row in times))


def measure(ways: Sequence[Way], prompts: Sequence[list[int]], config: Config) -> dict[str, list[Measurement]]:
    """Return for each way the measurement of each round."""
    results: dict[str, list[Measurement]] = {way.name: [] for way in ways}
    for _ in range(config.rounds):
        for way in ways:
            results[way.name].append(summarize(way.generate(prompts, config.tokens)))
    return results


def print_table(
    ways: Sequence[Way], results: dict[str, list[Measurement]], num_rows: int, bandwidth: float, config: Config
) -> dict[str, float]:
    """Print the table of one number of rows, and return the median tokens per second of each way, prompts included."""
    title = f"{num_rows} row{'s' if num_rows > 1 else ''}"
    print0(f"\n{title:<32} {'tokens/s':>9} {'of the limit':>13} {'with prompts':>13} {'relative':>9} {'first':>10}")
    medians = {}
    for way in ways:
        rounds = results[way.name]
        speed = statistics.median(each.speed for each in rounds)
        medians[way.name] = statistics.median(each.speed_with_prompts for each in rounds)
        ratio = statistics.median(
            each.speed_with_prompts / base.speed_with_prompts
            for each, base in zip(rounds, results[ways[0].name], strict=True)
        )
        step_bytes = way.weight_bytes + num_rows * (config.prompt + config.tokens / 2) * way.cache_bytes
        has_speed = math.isfinite(speed)
        shown = f"{speed:.1f}" if has_speed else "-"
        share = f"{speed / num_rows * step_bytes / bandwidth:.0%}" if has_speed else "-"
        first = 1000 * statistics.median(each.first for each in rounds)
        print0(f"{way.name:<32} {shown:>9} {share:>13} {medians[way.name]:>13.1f} {ratio:>9.2f} {first:>7.0f} ms")
    return medians


def main(config: Config) -> dict[int, dict[str, float]]:
    """Measure all ways, print a table for each number of rows, and return the median tokens per second."""
    threads = config.threads or num_usable_cores()
    torch.set_num_threads(threads)
    all_rows = [int(part) for part in config.rows.split(",")]
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    tokenizer = random_tokenizer(config.vocab_size)
    model = random_model(config.depth, tokenizer, config.context_len, config.head_dim)
    with tempfile.TemporaryDirectory() as folder:
        with redirect_stdout(sys.stderr):  # what the engines print while they load
            ways = nanochat_ways(config, model, tokenizer, max(all_rows))
            ways += hf_ways(config, model, tokenizer, Path(folder))
            ways += llama_cpp_ways(config, model, tokenizer, Path(folder), threads, max(all_rows))
        if not ways:
            raise UserError(f"ways is {config.ways!r}: no name contains that")
        generator = torch.Generator().manual_seed(1)
        speeds = {}
        for num_rows in all_rows:
            # Other prompts in each table: nothing is read again from a cache of prefixes.
            prompts = torch.randint(256, (num_rows, config.prompt), generator=generator).tolist()
            able = [way for way in ways if num_rows == 1 or "native" not in way.name]
            for way in able:
                way.generate([tokens[:16] for tokens in prompts], 2)
            results = measure(able, prompts, config)
            if is_available():
                from nanochat.tokenization._rustbpe import read_bandwidth

                bandwidth = read_bandwidth(1 << 29, threads)
            else:
                bandwidth = memory_bandwidth(torch.device("cpu"))
            if num_rows == all_rows[0]:
                print0(
                    f"d{config.depth}, {config.prompt} + {config.tokens} tokens, {threads} threads, {config.rounds} "
                    f"rounds in turn; memory is read at {bandwidth / 1e9:.1f} GB/s"
                )
            speeds[num_rows] = print_table(able, results, num_rows, bandwidth, config)
    return speeds


if __name__ == "__main__":
    cli(Config, main, __doc__)
