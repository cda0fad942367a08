"""Our tokenizer beside the packages of PyPI that do the same, in turn in one run: speed and memory.

    pip install '.[bench]'
    python -m dev.bench_tokenizer --data=../shared/data/text              # every corpus, 1 and 2 threads: some minutes
    python -m dev.bench_tokenizer --data=../shared/data/text --corpora=textbooks --threads=2 --rounds=3
    python -m dev.bench_tokenizer --worst_cases                           # time for 4 MB over time for 1 MB
    python -m dev.bench_tokenizer --data=../shared/data/text --repeat=32 --vocab_size=65536     # 1 GB: its memory

Each figure is the best of `rounds` fresh processes: cold is the first pass over the text there, warm the third; then
the processor's time of the first pass, all threads together, which a busy machine disturbs less. Memory is the peak
beyond what the process held with the text loaded and the encoder made. Encoders get the vocabulary that we have
trained, so that their ids can be compared: "same" says whether they are ours. Packages that are not installed are left
out.
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
from nanochat.system.environment import peak_memory_bytes
from nanochat.tokenization import _rustbpe
from nanochat.tokenizer import MIN_VOCAB_SIZE, SPLIT_PATTERN

GPT4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPORA = {"textbooks": "textbooks/*", "russian": "tokenizer/russian", "chinese": "tokenizer/chinese"}
CORPORA["python"] = "tokenizer/python"


@dataclass(frozen=True)
class Config(Settings):
    data: Path = setting(Path("../shared/data/text"), "folder of the corpora, parquet files with a column `text`")
    corpora: str = setting("textbooks,russian,chinese,python", "which of them, with commas")
    vocab_size: int = setting(32768, "tokens to train", at_least=MIN_VOCAB_SIZE)
    threads: str = setting("1,2", "numbers of threads, with commas")
    rounds: int = setting(3, "fresh processes per figure", at_least=1)
    only: str = setting("", "only lines that contain this")
    repeat: int = setting(1, "only train, on the first corpus so often, with other letters each time", at_least=1)
    worst_cases: bool = setting(False, "measure how our time grows with the text instead")


# Training: (texts, vocab_size, threads) -> tokens by id, or None where they cannot be compared


def train_nanochat(texts: Any, vocab_size: int, threads: int) -> list[bytes]:
    return _rustbpe.train(texts, vocab_size, SPLIT_PATTERN, num_threads=threads)


def train_rustbpe(texts: list[str], vocab_size: int, _threads: int) -> list[bytes]:
    from rustbpe import Tokenizer  # type: ignore[attr-defined]  # mypy takes our folder of that name for it

    tokenizer = Tokenizer()
    tokenizer.train_from_iterator(iter(texts), vocab_size, pattern=SPLIT_PATTERN)
    return [bytes(token) for token, _ in sorted(tokenizer.get_mergeable_ranks(), key=lambda item: item[1])]


def train_tokenizers(texts: list[str], vocab_size: int, _threads: int) -> None:
    from nanochat.tokenization.hugging_face_bpe import train_hugging_face

    train_hugging_face(iter(texts), vocab_size, SPLIT_PATTERN, None)


def train_bpeasy(texts: list[str], vocab_size: int, _threads: int) -> None:
    import bpeasy

    bpeasy.train_bpe(iter(texts), SPLIT_PATTERN, 128, vocab_size)


def train_gigatoken(texts: list[str], vocab_size: int, _threads: int) -> None:
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

# Encoding: (column, tokens, threads) -> a function that encodes everything and gives all ids


def encode_nanochat(column: Any, tokens: list[bytes], threads: int, pattern: str, arrow: bool = False) -> Any:
    encoder = _rustbpe.Encoder(pattern, tokens, [])
    texts = column if arrow else column.to_pylist()
    return lambda: np.asarray(encoder.encode_batch(texts, threads)[0])


def encode_tiktoken(column: Any, tokens: list[bytes], threads: int, pattern: str) -> Any:
    ranks = {token: rank for rank, token in enumerate(tokens)}
    encoding = tiktoken.Encoding("bench", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    texts = column.to_pylist()
    return lambda: encoding.encode_ordinary_batch(texts, num_threads=threads)


def rank_file(tokens: list[bytes]) -> str:
    path = Path(tempfile.mkdtemp(prefix="bench")) / "bench.tiktoken"
    path.write_text("".join(f"{base64.b64encode(t).decode()} {i}\n" for i, t in enumerate(tokens)), encoding="utf-8")
    return str(path)


def encode_fastokens(column: Any, tokens: list[bytes], _threads: int, pattern: str) -> Any:
    import fastokens

    tokenizer = fastokens.Tokenizer.from_tiktoken(rank_file(tokens), pattern=pattern)
    texts = column.to_pylist()
    return lambda: np.frombuffer(tokenizer.encode_batch_flat(texts)[0], np.uint32)


def encode_gigatoken(column: Any, tokens: list[bytes], threads: int, pattern: str) -> Any:
    import gigatoken

    assert pattern == GPT4_PATTERN, "the only one of ours that gigatoken has"

    tokenizer = gigatoken.Tokenizer.from_tiktoken(rank_file(tokens), pretokenizer="cl100k")
    texts = column.to_pylist()
    return lambda: tokenizer.encode_batch(texts, parallel=threads > 1)


def encode_tokenizers(column: Any, tokens: list[bytes], _threads: int, pattern: str) -> Any:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    from nanochat.tokenization.hugging_face_bpe import byte_level_alphabet

    alphabet = byte_level_alphabet()
    names = ["".join(alphabet[byte] for byte in token) for token in tokens]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    merges = []
    for token in tokens[256:]:  # the two parts that a token was made of: what merges of lower rank leave of it
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            _, i = min((ranks.get(parts[i] + parts[i + 1], len(ranks)), i) for i in range(len(parts) - 1))
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        merges.append((names[ranks[parts[0]]], names[ranks[parts[1]]]))
    model = Tokenizer(models.BPE({name: i for i, name in enumerate(names)}, merges))
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    texts = column.to_pylist()
    return lambda: [i for row in model.encode_batch_fast(texts) for i in row.ids]


ENCODERS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "nanochat": (encode_nanochat, {"pattern": SPLIT_PATTERN}),
    "nanochat, Arrow": (encode_nanochat, {"pattern": SPLIT_PATTERN, "arrow": True}),
    "tiktoken": (encode_tiktoken, {"pattern": SPLIT_PATTERN}),
    "tokenizers": (encode_tokenizers, {"pattern": SPLIT_PATTERN}),
    "fastokens": (encode_fastokens, {"pattern": SPLIT_PATTERN}),
    "nanochat, GPT-4's pattern": (encode_nanochat, {"pattern": GPT4_PATTERN}),
    "fastokens, GPT-4's pattern": (encode_fastokens, {"pattern": GPT4_PATTERN}),
    "gigatoken, GPT-4's pattern": (encode_gigatoken, {"pattern": GPT4_PATTERN}),
}


def flat(ids: Any) -> np.ndarray:
    """All ids in one array, whatever shape they came in."""
    if isinstance(ids, list):
        ids = np.concatenate([np.asarray(row, np.uint32) for row in ids]) if isinstance(ids[0], list) else ids
    elif not isinstance(ids, np.ndarray):
        ids = np.concatenate([np.asarray(row, np.uint32) for row in ids])
    return np.asarray(ids, np.uint32)


def read(files: list[str]) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for file in files for chunk in pq.read_table(file)["text"].chunks])


def measure(kind: str, name: str, files: list[str], job: Any, threads: int, channel: Any) -> None:
    """In a fresh process: send {cold, warm, cpu: seconds, megabytes, checksum}.

    `job`: how many tokens to train, or those to encode with.
    """
    column = read(files)
    if kind == "train":
        texts = column if "Arrow" in name else column.to_pylist()
        run = functools.partial(TRAINERS[name], texts, job, threads)
    else:
        make, options = ENCODERS[name]
        run = make(column, job, threads, **options)
    held = forget_peak()
    seconds, cpu_seconds, result = [], [], None
    for _ in range(1 if kind == "train" else 3):
        result = None  # one at a time in memory
        start, cpu = time.perf_counter(), time.process_time()
        result = run()
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu)
    peak = peak_megabytes() - held
    if kind == "train":
        checksum = None if result is None else hash(tuple(result))
    else:
        checksum = hash(flat(result).tobytes())
    times = {"cold": seconds[0], "warm": seconds[-1], "cpu": cpu_seconds[0]}
    channel.send({**times, "megabytes": peak, "checksum": checksum})


def peak_megabytes() -> float:
    return peak_memory_bytes() / 2**20


def forget_peak() -> float:
    """Megabytes held now. On Linux the peak begins anew with them: it was that of reading the texts."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return peak_megabytes()


def in_fresh_process(kind: str, name: str, files: list[str], job: Any, threads: int) -> dict[str, Any] | None:
    os.environ.update(RAYON_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM="true", PYTHONHASHSEED="0")
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(kind, name, files, job, threads, sender))
    process.start()
    sender.close()
    try:
        result: dict[str, Any] = receiver.recv()
        return result
    except EOFError:
        return None
    finally:
        process.join()


def compare(config: Config, corpus: str, threads: int) -> None:
    files = sorted(glob.glob(str(config.data / f"{CORPORA[corpus]}.parquet")))
    size = sum(len(text.encode()) for file in files for text in pq.read_table(file)["text"].to_pylist()) / 1e6
    patterns = {options["pattern"] for _, options in ENCODERS.values()}
    vocabularies = {pattern: _rustbpe.train(read(files), config.vocab_size, pattern) for pattern in patterns}
    for kind, candidates in (("train", TRAINERS), ("encode", ENCODERS)):
        best: dict[str, dict[str, Any]] = {}
        for _ in range(config.rounds):
            for name in candidates:
                package = name.replace(",", " ").split()[0]
                if config.only not in f"{kind} {name}" or importlib.util.find_spec(package) is None:
                    continue
                job = config.vocab_size if kind == "train" else vocabularies[ENCODERS[name][1]["pattern"]]
                result = in_fresh_process(kind, name, files, job, threads)
                if result:
                    known = best.setdefault(name, result)
                    known.update({key: min(known[key], result[key]) for key in ("cold", "warm", "cpu", "megabytes")})
        print(f"\n{kind}, {corpus} ({size:.1f} MB), {threads} threads, vocabulary {config.vocab_size:,}", flush=True)
        ours = {"GPT-4" in name: r["checksum"] for name, r in best.items() if name.startswith("nanochat")}
        for name, r in best.items():
            our = ours.get("GPT-4" in name)
            same = "" if None in (our, r["checksum"]) else f"  same: {r['checksum'] == our}"
            warm = f"{size / r['warm']:8.1f} warm" if kind == "encode" else ""
            speeds = f"{size / r['cold']:8.1f} cold{warm} MB/s {r['cpu']:8.2f} CPU s"
            print(f"  {name:28}{speeds} {r['megabytes']:7.0f} MB{same}", flush=True)


def worst_cases() -> None:
    """Our processor time for one long word and the like: four times the text should take about four times as long."""
    rng = random.Random(0)
    letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=4_000_000))
    texts = {"a...a": "a" * 4_000_000, "random letters": letters, "spaces": " " * 4_000_000}
    texts["words of 300"] = " ".join(letters[i : i + 300] for i in range(0, len(letters), 301))
    texts |= {"newlines": "\n" * 4_000_000, "abab": "ab" * 2_000_000, "a1a1": "a1" * 2_000_000, "'''": "'" * 4_000_000}
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


def repeated(config: Config) -> None:
    """Train on a corpus again and again, each time with two other letters exchanged: memory follows the words."""
    files = sorted(glob.glob(str(config.data / f"{CORPORA[config.corpora.split(',')[0]]}.parquet")))
    texts = [text.encode() for text in read(files).to_pylist()]
    pairs = itertools.islice(itertools.cycle(itertools.combinations(string.ascii_lowercase.encode(), 2)), config.repeat)
    tables = [bytes.maketrans(bytes((a, b)), bytes((b, a))) for a, b in pairs]
    held = forget_peak()
    start = time.perf_counter()
    varied = (text.translate(table).decode() for table in tables for text in texts)
    tokens = _rustbpe.train(varied, config.vocab_size, SPLIT_PATTERN)
    seconds = time.perf_counter() - start
    size = sum(map(len, texts)) * config.repeat
    print(
        f"{size / 1e6:,.0f} MB, vocabulary {len(tokens):,}: {seconds:.1f} s, exchanging letters included, "
        f"{peak_megabytes() - held:,.0f} MB more memory than with the corpus loaded"
    )


def main(config: Config) -> None:
    """Print the tables."""
    if config.repeat > 1:
        repeated(config)
        return
    if config.worst_cases:
        worst_cases()
        return
    print(json.dumps({"cpus": os.cpu_count(), "load": os.getloadavg()}), flush=True)
    for corpus in config.corpora.split(","):
        for threads in map(int, config.threads.split(",")):
            compare(config, corpus, threads)


if __name__ == "__main__":
    cli(Config, main, __doc__)
