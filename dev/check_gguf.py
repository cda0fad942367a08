"""Comparison of a GGUF file with the checkpoint that it was made from, on texts of your choice.

    python -m dev.check_gguf --gguf=d20.gguf -i sft -g d20                 # built-in texts
    python -m dev.check_gguf --gguf=d20.gguf -i sft --text=mine.txt        # a text file, one document

Three things are compared: the ids of the text (the checkpoint's tokenizer against llama.cpp's), the logits at each
position (the checkpoint in float32 against a forward pass from the file's tensors alone), and greedy completions (the
checkpoint against llama.cpp, which computes from the same file). Bits per byte of the text tell what a type of weights
costs. Without the package xllamacpp (`uv pip install -e '.[llama-cpp]'`) the engine's parts are left out, in a line.
The exit code is 1 if ids differ, or if a file of float32 weights has other logits.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from nanochat.checkpoint_manager import CHECKPOINT_DIRS, load_model
from nanochat.common import UserError, print0
from nanochat.configurator import Settings, cli, setting
from nanochat.engine import Engine
from nanochat.export.gguf_file import GGUFFile
from nanochat.export.gguf_twin import GGUFTwin
from nanochat.gpt import GPT
from nanochat.inference.llama_cpp import LlamaCppEngine
from nanochat.layers.sampling_params import SamplingParams
from nanochat.runtime import Runtime
from nanochat.system.files import read_regular_file
from nanochat.tokenizer import Tokenizer

TEXT = """Once upon a time there was a small village by the sea. In 1987 it had 12 houses, and 345 people lived there.
"How much is 17 + 25?" asked the teacher. It's 42, and 6 * 7 is 42 too.\n\n    for i in range(10):\n        print(i)\n
Привет, мир! 你好，世界。été, naïve, 👩‍👩‍👧 and ³⁴⁵."""
LOGIT_TOLERANCE = 1e-3  # of a float32 file: sums in another order
MAX_TEXT_BYTES = 1 << 20


@dataclass(frozen=True)
class Config(Settings):
    gguf: Path | None = setting(None, "file to check (required)")
    source: str = setting("base", "stage of the checkpoint", short="i", choices=tuple(CHECKPOINT_DIRS))
    model_tag: str | None = setting(None, "its tag; default: that of the deepest model", short="g", names="name")
    step: int = setting(-1, "its step; -1 = the last", short="s", at_least=0, or_value=-1)
    text: Path | None = setting(None, "text file to compare on, of up to 1 MiB; none = built-in texts")
    num_prompts: int = setting(8, "prompts of greedy completions, cut from the text", at_least=0)
    max_new_tokens: int = setting(64, "tokens of each completion", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gguf is None:
            raise UserError("--gguf is missing: name the file to check")


@dataclass(frozen=True)
class LogitComparison:
    """Differences between the checkpoint's logits and the file's over all positions of a text."""

    max_difference: float  # of the logits, before the soft cap where the file has none
    num_argmax_equal: int
    num_positions: int
    kl: float  # mean divergence of the next-token distributions, in nats: the checkpoint's from the file's
    bits_per_byte: tuple[float, float]  # of the checkpoint and of the file


def compare_logits(model: GPT, twin: GGUFTwin, windows: list[list[int]], num_bytes: list[int]) -> LogitComparison:
    """Compare logits on windows of ids. `num_bytes`: of each id, 0 for special tokens."""
    differences, equal, divergences = [], 0, []
    nats = torch.zeros(2, dtype=torch.float64)
    bytes_of = torch.tensor(num_bytes)
    total_bytes = 0
    for ids in windows:
        hidden = model.hidden_states(torch.tensor([ids]))[0]
        ours = model.logits(hidden)
        theirs = twin.logits(ids)
        raw = ours if twin.is_gemma else model.head(hidden)[:, : model.config.vocab_size].float()
        differences.append(float((raw - theirs).abs().max()))
        equal += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        log_p, log_q = ours.log_softmax(-1), theirs.log_softmax(-1)
        divergences.append((log_p.exp() * (log_p - log_q)).sum(-1))
        targets = torch.tensor(ids[1:])
        counted = bytes_of[targets] > 0
        for i, logits in enumerate((ours, theirs)):
            nats[i] += F.cross_entropy(logits[:-1], targets, reduction="none")[counted].double().sum()
        total_bytes += int(bytes_of[targets].sum())
    kl = torch.cat(divergences)
    bits = (nats / math.log(2) / max(1, total_bytes)).tolist()
    return LogitComparison(max(differences), equal, len(kl), float(kl.mean()), (bits[0], bits[1]))


def compare_ids(tokenizer: Tokenizer, engine: LlamaCppEngine, text: str) -> int:
    """Return the number of lines of a text to which llama.cpp gives other ids, and print the first."""

    def engine_ids(part: str) -> list[int]:
        ids: list[int] = engine.post("/tokenize", {"content": part, "parse_special": False}).json()["tokens"]
        return ids

    if engine_ids(text) == tokenizer.encode(text):
        return 0
    num_different = 0
    for line in text.splitlines(keepends=True):
        ours, theirs = tokenizer.encode(line), engine_ids(line)
        if ours != theirs:
            num_different += 1
            if num_different == 1:
                print0(f"first other line: {line!r}: nanochat {ours}, llama.cpp {theirs}")
    return num_different


def count_equal_completions(engine: Engine, other: LlamaCppEngine, prompts: list[list[int]], max_tokens: int) -> int:
    """Return the number of prompts whose greedy completions are equal, tool results included."""
    params = SamplingParams(temperature=0, max_tokens=max_tokens)
    equal = 0
    for prompt in prompts:
        ours, theirs = ([column[0][0] for column in e.stream(prompt, params)] for e in (engine, other))
        equal += ours == theirs
    return equal


def cut_windows(ids: list[int], bos: int, length: int) -> list[list[int]]:
    """Cut a text's ids into windows of at most `length`, each with bos in front."""
    return [[bos, *ids[i : i + length - 1]] for i in range(0, len(ids), length - 1)]


@torch.inference_mode()
def main(config: Config) -> LogitComparison:
    """Print the comparison. Exits with code 1 if ids differ, or the logits of a float32 file."""
    assert config.gguf is not None, "__post_init__ has checked it"
    file = GGUFFile.open(config.gguf)
    text = TEXT if config.text is None else read_regular_file(config.text, MAX_TEXT_BYTES).decode(errors="replace")
    runtime = Runtime.without_setup(torch.device("cpu"), compute_dtype=torch.float32)
    model, tokenizer, _ = load_model(config.source, runtime, model_tag=config.model_tag, step=config.step)
    model.compute_dtype = torch.float32
    if tokenizer.get_vocab_size() != len(file.keys.get("tokenizer.ggml.tokens", [])):
        raise UserError(f"{config.gguf} has another vocabulary than the checkpoint: was it made from it?")
    bos = tokenizer.get_bos_token_id()
    ids = tokenizer.encode(text)
    windows = cut_windows(ids, bos, model.config.sequence_len)
    logits = compare_logits(model, GGUFTwin(file), windows, tokenizer.token_bytes())
    types = ", ".join(sorted({kind for name, kind in file.types.items() if "norm" not in name}))
    ours, theirs = logits.bits_per_byte
    rows = [
        ("weights", types),
        ("largest difference of a logit", f"{logits.max_difference:.2g}"),
        ("most likely token equal", f"{logits.num_argmax_equal:,} of {logits.num_positions:,}"),
        ("KL divergence, nats per token", f"{logits.kl:.2g}"),
        ("bits per byte, checkpoint and file", f"{ours:.4f}, {theirs:.4f}"),
    ]
    failed = set(file.types.values()) == {"F32"} and logits.max_difference > LOGIT_TOLERANCE
    if importlib.util.find_spec("xllamacpp") is None:
        print0("xllamacpp is not installed: ids and completions of llama.cpp are not compared")
    else:
        engine = LlamaCppEngine(config.gguf, file.tokenizer(), file.context_len, exact=True)
        num_different = compare_ids(tokenizer, engine, text)
        rows.append(("lines with other ids", f"{num_different:,} of {len(text.splitlines()):,}"))
        length = max(1, min(32, len(ids) // max(1, config.num_prompts)))
        prompts = [[bos, *ids[i * length : (i + 1) * length]] for i in range(config.num_prompts)]
        equal = count_equal_completions(Engine(model, tokenizer), engine, prompts, config.max_new_tokens)
        rows.append(("greedy completions equal", f"{equal} of {len(prompts)}"))
        failed |= num_different > 0
    width = max(len(name) for name, _ in rows)
    print0(*(f"{name:<{width}}  {value}" for name, value in rows), sep="\n")
    if failed:
        sys.exit(1)
    return logits


if __name__ == "__main__":
    cli(Config, main, __doc__)
