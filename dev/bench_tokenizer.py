"""Benchmark of the tokenizer: speed and memory of training and encoding, compared with packages of PyPI.

    pip install '.[bench]'
    python -m dev.bench_tokenizer --data=../shared/data/text              # all corpora, 1 and 2 threads: some minutes
    python -m dev.bench_tokenizer --data=../shared/data/text --corpora=textbooks --threads=2 --rounds=3
    python -m dev.bench_tokenizer --worst_cases                           # how the time grows from 1 MB to 4 MB
    python -m dev.bench_tokenizer --data=../shared/data/text --repeat=32 --vocab_size=65536     # memory for 1 GB

Each figure is the best of `rounds` fresh processes, which run the packages in turn. "cold" is the first pass over the
text in a process, "warm" the third. "CPU s" is the processor time of all threads in the first pass, which other
processes on the machine disturb less. Memory is the peak above that of the process with the text loaded and the encoder
built. All encoders get the vocabulary that nanochat has trained; "same" is True if their ids are those of nanochat.
Packages that are not installed are left out.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import glob
import importlib.util
import itertools
import json
import multiprocessing
import os
import random
import string
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiktoken

from nanochat.configurator import Settings, cli, setting
from nanochat.system.environment import num_usable_cores, peak_memory_bytes
from nanochat.tokenization import _rustbpe
from nanochat.tokenizer import MIN_VOCAB_SIZE, SPLIT_PATTERN

GPT4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPORA = {
    "textbooks": "textbooks/*",
    "russian": "tokenizer/russian",
    "chinese": "tokenizer/chinese",
    "python": "tokenizer/python",
}


@dataclass(frozen=True)
class Config(Settings):
    data: Path = setting(Path("../shared/data/text"), "folder of the corpora, parquet files with a column `text`")
    corpora: str = setting("textbooks,russian,chinese,python", "names of corpora, separated by commas")
    vocab_size: int = setting(32768, "number of tokens", at_least=MIN_VOCAB_SIZE)
    threads: str = setting("1,2", "numbers of threads, separated by commas")
    rounds: int = setting(3, "fresh processes per figure", at_least=1)
    only: str = setting("", "measure only lines that contain this text")
    repeat: int = setting(1, "if above 1: only train, on so many variants of the first corpus", at_least=1)
    worst_cases: bool = setting(False, "measure instead how the time grows with the length of the text")


# --- trainers: (texts, vocab_size, num_threads) -> tokens by id, or None if they cannot be compared -------------------


def train_nanochat(texts: Any, vocab_size: int, num_threads: int) -> list[bytes]:
    return _rustbpe.train(texts, vocab_size, SPLIT_PATTERN, num_threads=num_threads)


def train_rustbpe(texts: list[str], vocab_size: int, _num_threads: int) -> list[bytes]:
    from rustbpe import Tokenizer  # type: ignore[attr-defined]  # mypy finds the folder of that name instead

    tokenizer = Tokenizer()
    tokenizer.train_from_iterator(iter(texts), vocab_size, pattern=SPLIT_PATTERN)
    return [bytes(token) for token, _ in sorted(tokenizer.get_mergeable_ranks(), key=lambda item: item[1])]


def train_tokenizers(texts: list[str], vocab_size: int, _num_threads: int) -> None:
    from nanochat.tokenization.hugging_face_bpe import train_hugging_face

    train_hugging_face(iter(texts), vocab_size, SPLIT_PATTERN, None)


def train_bpeasy(texts: list[str], vocab_size: int, _num_threads: int) -> None:
    import bpeasy

    bpeasy.train_bpe(iter(texts), SPLIT_PATTERN, 128, vocab_size)


def train_gigatoken(texts: list[str], vocab_size: int, _num_threads: int) -> None:
    import gigatoken

    gigatoken.train_bpe("\0".join(texts).encode(), vocab_size, [], separator=b"\0")


TRAINERS: dict[str, Callable[[Any, int, int], list[bytes] | None]] = {
    "nanochat": train_nanochat,
    "nanochat, Arrow": train_nanochat,
    "rustbpe": train_rustbpe,
    "tokenizers": train_tokenizers,
    "bpeasy": train_bpeasy,
    "gigatoken (its own pattern)": train_gigatoken,
}

# --- encoders: (column, tokens, num_threads, pattern) -> a function that returns the ids of the whole column ----------


def encode_nanochat(
    column: Any, tokens: list[bytes], num_threads: int, pattern: str, use_arrow: bool = False
) -> Callable[[], Any]:
    encoder = _rustbpe.Encoder(pattern, tokens, [])
    texts = column if use_arrow else column.to_pylist()
    return lambda: np.asarray(encoder.encode_batch(texts, num_threads)[0])


def encode_tiktoken(column: Any, tokens: list[bytes], num_threads: int, pattern: str) -> Callable[[], Any]:
    ranks = {token: rank for rank, token in enumerate(tokens)}
    encoding = tiktoken.Encoding("bench", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    texts = column.to_pylist()
    return lambda: encoding.encode_ordinary_batch(texts, num_threads=num_threads)


def write_rank_file(tokens: list[bytes]) -> str:
    """Write the vocabulary in tiktoken's format and return the path."""
    path = Path(tempfile.mkdtemp(prefix="bench")) / "bench.tiktoken"
    path.write_text("".join(f"{base64.b64encode(t).decode()} {i}\n" for i, t in enumerate(tokens)), encoding="utf-8")
    return str(path)


def encode_fastokens(column: Any, tokens: list[bytes], _num_threads: int, pattern: str) -> Callable[[], Any]:
    import fastokens

    tokenizer = fastokens.Tokenizer.from_tiktoken(write_rank_file(tokens), pattern=pattern)
    texts = column.to_pylist()
    return lambda: np.frombuffer(tokenizer.encode_batch_flat(texts)[0], np.uint32)


def encode_gigatoken(column: Any, tokens: list[bytes], num_threads: int, pattern: str) -> Callable[[], Any]:
    import gigatoken

    assert pattern == GPT4_PATTERN, "gigatoken supports only GPT-4's pattern of these"
    tokenizer = gigatoken.Tokenizer.from_tiktoken(write_rank_file(tokens), pretokenizer="cl100k")
    texts = column.to_pylist()
    return lambda: tokenizer.encode_batch(texts, parallel=num_threads > 1)


def encode_tokenizers(column: Any, tokens: list[bytes], _num_threads: int, pattern: str) -> Callable[[], Any]:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    from nanochat.export.hf_tokenizer import last_merge
    from nanochat.tokenization.hugging_face_bpe import byte_level_alphabet

    alphabet = byte_level_alphabet()
    ranks = {token: rank for rank, token in enumerate(tokens)}
    names = {token: "".join(alphabet[byte] for byte in token) for token in tokens}
    pairs = filter(None, (last_merge(token, ranks) for token in tokens))
    merges = [(names[left], names[right]) for left, right in pairs]
    model = Tokenizer(models.BPE({name: ranks[token] for token, name in names.items()}, merges))
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    texts = column.to_pylist()
    return lambda: [i for row in model.encode_batch_fast(texts) for i in row.ids]


ENCODERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "nanochat": (encode_nanochat, {"pattern": SPLIT_PATTERN}),
    "nanochat, Arrow": (encode_nanochat, {"pattern": SPLIT_PATTERN, "use_arrow": True}),
    "tiktoken": (encode_tiktoken, {"pattern": SPLIT_PATTERN}),
    "tokenizers": (encode_tokenizers, {"pattern": SPLIT_PATTERN}),
    "fastokens": (encode_fastokens, {"pattern": SPLIT_PATTERN}),
    "nanochat, GPT-4's pattern": (encode_nanochat, {"pattern": GPT4_PATTERN}),
    "fastokens, GPT-4's pattern": (encode_fastokens, {"pattern": GPT4_PATTERN}),
    "gigatoken, GPT-4's pattern": (encode_gigatoken, {"pattern": GPT4_PATTERN}),
}


# --- measurement ------------------------------------------------------------------------------------------------------


def flatten(ids: Any) -> np.ndarray:
    """Return all ids in one array, from an array, a list of ids, or a sequence of rows."""
    if isinstance(ids, list):
        ids = np.concatenate([np.asarray(row, np.uint32) for row in ids]) if isinstance(ids[0], list) else ids
    elif not isinstance(ids, np.ndarray):
        ids = np.concatenate([np.asarray(row, np.uint32) for row in ids])
    return np.asarray(ids, np.uint32)


def read_corpus(files: list[str]) -> pa.ChunkedArray:
    """Return the documents of parquet files as one Arrow column."""
    return pa.chunked_array([chunk for file in files for chunk in pq.read_table(file)["text"].chunks])


def measure(kind: str, name: str, files: list[str], vocabulary: Any, num_threads: int, channel: Any) -> None:
    """Measure one package in this process and send {cold, warm, cpu: seconds, megabytes, checksum}.

    `vocabulary`: the number of tokens to train, or the tokens to encode with.
    """
    column = read_corpus(files)
    if kind == "train":
        texts = column if "Arrow" in name else column.to_pylist()
        run = functools.partial(TRAINERS[name], texts, vocabulary, num_threads)
    else:
        make_encoder, options = ENCODERS[name]
        run = make_encoder(column, vocabulary, num_threads, **options)
    megabytes_before = reset_peak()
    seconds = []
    cpu_seconds = []
    result = None
    for _ in range(1 if kind == "train" else 3):
        result = None  # frees the previous one
        start = time.perf_counter()
        cpu_start = time.process_time()
        result = run()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    peak = peak_megabytes() - megabytes_before
    if kind == "train":
        checksum = None if result is None else hash(tuple(result))
    else:
        checksum = hash(flatten(result).tobytes())
    times = {"cold": seconds[0], "warm": seconds[-1], "cpu": cpu_seconds[0]}
    channel.send({**times, "megabytes": peak, "checksum": checksum})


def peak_megabytes() -> float:
    return peak_memory_bytes() / 2**20


def reset_peak() -> float:
    """Reset the peak of memory, which reading the texts has raised, and return it. Only Linux can reset it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return peak_megabytes()


def measure_in_process(
    kind: str, name: str, files: list[str], vocabulary: Any, num_threads: int
) -> dict[str, Any] | None:
    """Run `measure` in a fresh process and return its result, or None if the process failed."""
    os.environ.update(RAYON_NUM_THREADS=str(num_threads), TOKENIZERS_PARALLELISM="true", PYTHONHASHSEED="0")
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(kind, name, files, vocabulary, num_threads, sender))
    process.start()
    sender.close()
    try:
        result: dict[str, Any] = receiver.recv()
        return result
    except EOFError:
        return None
    finally:
        process.join()


def compare(config: Config, corpus: str, num_threads: int) -> None:
    """Print a table of training and one of encoding, for a corpus and a number of threads."""
    files = sorted(glob.glob(str(config.data / f"{CORPORA[corpus]}.parquet")))
    size = sum(len(text.encode()) for file in files for text in pq.read_table(file)["text"].to_pylist()) / 1e6
    patterns = {options["pattern"] for _, options in ENCODERS.values()}
    vocabularies = {pattern: _rustbpe.train(read_corpus(files), config.vocab_size, pattern) for pattern in patterns}
    for kind, packages in (("train", TRAINERS), ("encode", ENCODERS)):
        best: dict[str, dict[str, Any]] = {}
        for _ in range(config.rounds):
            for name in packages:
                package = name.replace(",", " ").split()[0]
                if config.only not in f"{kind} {name}" or importlib.util.find_spec(package) is None:
                    continue
                vocabulary = config.vocab_size if kind == "train" else vocabularies[ENCODERS[name][1]["pattern"]]
                result = measure_in_process(kind, name, files, vocabulary, num_threads)
                if result:
                    figures = best.setdefault(name, result)
                    for key in ("cold", "warm", "cpu", "megabytes"):
                        figures[key] = min(figures[key], result[key])
        print(
            f"\n{kind}, {corpus} ({size:.1f} MB), {num_threads} threads, vocabulary {config.vocab_size:,}", flush=True
        )
        checksums = {"GPT-4" in name: row["checksum"] for name, row in best.items() if name.startswith("nanochat")}
        for name, row in best.items():
            expected = checksums.get("GPT-4" in name)
            same = "" if None in (expected, row["checksum"]) else f"  same: {row['checksum'] == expected}"
            warm = f"{size / row['warm']:8.1f} warm" if kind == "encode" else ""
            speeds = f"{size / row['cold']:8.1f} cold{warm} MB/s {row['cpu']:8.2f} CPU s"
            print(f"  {name:28}{speeds} {row['megabytes']:7.0f} MB{same}", flush=True)


def print_worst_cases() -> None:
    """Print the processor time for long words and other extremes of 1 MB and 4 MB; the ratio should be about 4."""
    rng = random.Random(0)
    letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=4_000_000))
    texts = {
        "a...a": "a" * 4_000_000,
        "random letters": letters,
        "spaces": " " * 4_000_000,
        "words of 300": " ".join(letters[i : i + 300] for i in range(0, len(letters), 301)),
        "newlines": "\n" * 4_000_000,
        "abab": "ab" * 2_000_000,
        "a1a1": "a1" * 2_000_000,
        "'''": "'" * 4_000_000,
    }
    tokens = _rustbpe.train([text[:2_000] for text in texts.values()] + [letters[:400_000]], 8192, SPLIT_PATTERN)
    for name, text in texts.items():
        seconds = []
        for part in (text[:1_000_000], text):
            runs = []
            for _ in range(5):
                encoder = _rustbpe.Encoder(SPLIT_PATTERN, tokens, [])
                start = time.process_time()
                encoder.encode_batch([part], 1)
                runs.append(time.process_time() - start)
            seconds.append(min(runs))
        ratio = seconds[1] / seconds[0]
        print(
            f"{name:16} 1 MB {seconds[0] * 1e3:7.1f} ms   4 MB {seconds[1] * 1e3:7.1f} ms   ratio {ratio:.2f}",
            flush=True,
        )


def train_on_variants(config: Config) -> None:
    """Train on variants of a corpus with two letters exchanged, which adds words and so memory."""
    files = sorted(glob.glob(str(config.data / f"{CORPORA[config.corpora.split(',')[0]]}.parquet")))
    texts = [text.encode() for text in read_corpus(files).to_pylist()]
    pairs = itertools.islice(itertools.cycle(itertools.combinations(string.ascii_lowercase.encode(), 2)), config.repeat)
    tables = [bytes.maketrans(bytes((a, b)), bytes((b, a))) for a, b in pairs]
    megabytes_before = reset_peak()
    start = time.perf_counter()
    variants = (text.translate(table).decode() for table in tables for text in texts)
    tokens = _rustbpe.train(variants, config.vocab_size, SPLIT_PATTERN)
    seconds = time.perf_counter() - start
    size = sum(map(len, texts)) * config.repeat
    print(
        f"{size / 1e6:,.0f} MB, vocabulary {len(tokens):,}: {seconds:.1f} s, exchanging letters included, "
        f"{peak_megabytes() - megabytes_before:,.0f} MB more memory than with the corpus loaded"
    )


def main(config: Config) -> None:
    """Print the tables of all corpora and numbers of threads."""
    if config.repeat > 1:
        train_on_variants(config)
        return
    if config.worst_cases:
        print_worst_cases()
        return
    print(json.dumps({"cpus": num_usable_cores(), "load": os.getloadavg()}), flush=True)
    for corpus in config.corpora.split(","):
        for num_threads in map(int, config.threads.split(",")):
            compare(config, corpus, num_threads)


if __name__ == "__main__":
    cli(Config, main, __doc__)
