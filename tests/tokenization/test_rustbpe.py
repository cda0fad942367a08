"""The Rust trainer, compared with the readable reference and with the PyPI package of the same name."""

from __future__ import annotations

import ast
import doctest
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.tokenization.bpe_reference import train as reference_train
from nanochat.tokenizer import SPLIT_PATTERN

_rustbpe = pytest.importorskip(
    "nanochat.tokenization._rustbpe", reason="the Rust extension is not built: bash dev/setup.sh"
)
ROOT = Path(__file__).resolve().parents[2]

# Few characters, so that pairs repeat, with ties, runs and every branch of the pattern.
texts_strategy = st.lists(st.text(st.sampled_from("aab b\n'sS1é! \té你"), max_size=60), max_size=8)


def peer_train(texts: list[str], vocab_size: int) -> list[bytes]:
    peer = pytest.importorskip("rustbpe").Tokenizer()
    peer.train_from_iterator(iter(texts), vocab_size, pattern=SPLIT_PATTERN)
    return [bytes(token) for token, _ in sorted(peer.get_mergeable_ranks(), key=lambda item: item[1])]


def read_text(path: Path, max_chars: int) -> list[str]:
    documents: list[str] = []
    for document in pq.read_table(path)["text"].to_pylist():
        documents.append(document[:max_chars])
        max_chars -= len(documents[-1])
    return documents


@given(texts_strategy, st.integers(256, 300))
@settings(deadline=None, max_examples=150)
def test_equals_the_reference_and_the_peer(texts: list[str], vocab_size: int) -> None:
    if not any(texts):
        with pytest.raises(ValueError, match="nothing to train on"):
            _rustbpe.train(texts, vocab_size, SPLIT_PATTERN)
        return
    tokens = _rustbpe.train(texts, vocab_size, SPLIT_PATTERN)
    assert tokens == reference_train(texts, vocab_size)
    assert tokens == peer_train(texts, vocab_size)
    assert len(set(tokens)) == len(tokens)


@given(st.lists(st.text(st.sampled_from("ab"), min_size=1, max_size=40), min_size=1, max_size=5))
@settings(deadline=None, max_examples=150)
def test_runs_and_overlaps(texts: list[str]) -> None:
    assert _rustbpe.train(texts, 290, SPLIT_PATTERN) == reference_train(texts, 290)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "name", ["textbooks/shard_00000", "tokenizer/russian", "tokenizer/chinese", "tokenizer/python"]
)
def test_real_text(shared_data: Path, name: str) -> None:
    texts = read_text(shared_data / "text" / f"{name}.parquet", max_chars=1_000_000)
    tokens = _rustbpe.train(texts, 3000, SPLIT_PATTERN, num_threads=1)
    assert tokens == peer_train(texts, 3000)
    assert tokens == _rustbpe.train(reversed(texts), 3000, SPLIT_PATTERN, num_threads=2)
    assert tokens == _rustbpe.train(pa.array(texts), 3000, SPLIT_PATTERN, num_threads=7)
    few = [text[:2000] for text in texts[:10]]
    assert _rustbpe.train(few, 330, SPLIT_PATTERN) == reference_train(few, 330)


@given(texts_strategy, st.data())
@settings(deadline=None, max_examples=80)
def test_arrow_trains_like_strings(texts: list[str], data: st.DataObject) -> None:
    """One array, several chunks, and an iterator that mixes strings with sliced and empty arrays."""
    texts = [*texts, "abc abc"]
    kind = data.draw(st.sampled_from([pa.string(), pa.large_string(), pa.binary(), pa.large_binary()]))
    array = pa.array([text.encode() for text in texts], pa.binary()).cast(kind)
    cut = data.draw(st.integers(0, len(texts)))
    mixture = [array[:cut], *texts[cut:], array[:0], pa.chunked_array([], kind)]
    expected = _rustbpe.train(texts, 290, SPLIT_PATTERN)
    for given_texts in (array, pa.chunked_array([array[:cut], array[cut:]], kind), iter(mixture)):
        assert _rustbpe.train(given_texts, 290, SPLIT_PATTERN) == expected


def test_a_long_text_cut_for_several_threads_gives_the_same_tokens() -> None:
    """A document of some megabytes is cut for the threads, and its words are counted as if it had not been."""
    rng = random.Random(5)
    words = ["it's", "SEEN", "été", "12345", "你好", "\n\n ", "a\tb", "  x", "!!", "\u3000", "'ll"]
    text = " ".join(rng.choices(words, k=400_000))
    assert len(text) > 1 << 20
    expected = _rustbpe.train(text.splitlines(keepends=True), 400, r"\w+|\W", num_threads=1)
    assert _rustbpe.train([text], 400, r"\w+|\W") == expected  # a regex, which leaves the text whole
    whole = _rustbpe.train([text], 400, "(?:" + SPLIT_PATTERN + ")", num_threads=1)  # a regex again
    for num_threads in (1, 2, 7):
        assert _rustbpe.train([text], 400, SPLIT_PATTERN, num_threads=num_threads) == whole
        assert _rustbpe.train(pa.array([text]), 400, SPLIT_PATTERN, num_threads=num_threads) == whole


def test_another_pattern() -> None:
    texts = ["key=value; key = other", "key=value"]
    assert _rustbpe.train(texts, 280, r"[^=;]+|[=;]") == reference_train(texts, 280, r"[^=;]+|[=;]")


def test_fewer_tokens_when_no_pair_is_left() -> None:
    assert _rustbpe.train(["abc abc"], 1000, SPLIT_PATTERN)[256:] == [b"ab", b"abc", b" abc"]


@pytest.mark.parametrize(
    ("texts", "vocab_size", "pattern", "message"),
    [
        (["a"], 255, SPLIT_PATTERN, "`vocab_size` is 255: must be at least 256"),
        (["a"], 300, "(unclosed", "split pattern"),
        ([], 300, SPLIT_PATTERN, "nothing to train on"),
        (["", ""], 300, SPLIT_PATTERN, "nothing to train on"),
        (["abc"], 300, r"\d+", "nothing to train on"),
        (["x" * 5000], 300, r"(x+)+\1y", "failed on a text"),
    ],
)
def test_mistakes_are_value_errors(texts: list[str], vocab_size: int, pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _rustbpe.train(texts, vocab_size, pattern)


def test_wrong_types_are_type_errors() -> None:
    with pytest.raises(TypeError):
        _rustbpe.train(7, 300, SPLIT_PATTERN)
    for wrong in (["text", b"bytes"], "text", b"bytes", [["text"]]):
        with pytest.raises(TypeError):
            _rustbpe.train(wrong, 300, SPLIT_PATTERN)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (pa.array(["a", None]), "row 1 is null"),
        ([pa.array([1, 2])], "expected a column of type string"),
        ([pa.table({"text": ["a"]})], "expected a column of type string"),
        (pa.array([b"ab", b"\xff"]), "a training text cannot be read: invalid utf-8"),
        (pa.array([b"ab " * 200_000 + b"\xff"]), "a training text cannot be read: invalid utf-8"),
    ],
)
def test_arrow_that_is_no_text(texts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _rustbpe.train(texts, 300, SPLIT_PATTERN)


def test_an_exception_of_the_iterator_reaches_the_caller() -> None:
    def texts() -> Iterator[str]:
        yield "some text " * 300_000  # more than one batch
        raise LookupError("the disk is gone")

    with pytest.raises(LookupError, match="the disk is gone"):
        _rustbpe.train(texts(), 300, SPLIT_PATTERN)


def test_progress_reports_bytes_and_merges_and_may_stop_the_training() -> None:
    calls: list[tuple[int, int]] = []
    _rustbpe.train(["été abcd"] * 10, 260, SPLIT_PATTERN, progress=lambda *counts: calls.append(counts))
    assert calls[-1] == (100, 4)

    def stop(_bytes_read: int, _merges: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _rustbpe.train(["abcd"], 300, SPLIT_PATTERN, progress=stop)


def test_other_threads_run_meanwhile() -> None:
    rng = random.Random(0)
    text = " ".join("".join(rng.choices("abcdefgh", k=8)) for _ in range(50_000))
    ticks, stopped = [0], threading.Event()

    def tick() -> None:
        while not stopped.is_set():
            ticks[0] += 1

    ticker = threading.Thread(target=tick)
    ticker.start()
    at_the_end = []

    def texts() -> Iterator[str]:
        yield text
        at_the_end.append(ticks[0])

    _rustbpe.train(texts(), 2000, SPLIT_PATTERN)
    after = ticks[0]
    stopped.set()
    ticker.join()
    assert after > at_the_end[0]


def test_everything_from_many_threads_at_once() -> None:
    """One encoder and several trainings in threads with different texts give the results of one thread."""
    rng = random.Random(1)
    words = ["the", "cat's", "été", "12", "你好", "\n", "never", "ending"]
    texts = [[" ".join(rng.choices(words, k=rng.randrange(3000))) for _ in range(20)] for _ in range(6)]
    encoder = _rustbpe.Encoder(SPLIT_PATTERN, _rustbpe.train(texts[0], 300, SPLIT_PATTERN), [])

    def work(documents: list[str]) -> list[Any]:
        ids, offsets = map(np.asarray, encoder.encode_batch(pa.array(documents), 2))
        lists = encoder.encode_lists(documents, 1)
        tokens = _rustbpe.train(pa.array(documents), 320, SPLIT_PATTERN, num_threads=2)
        decoded = encoder.decode_batch(lists)
        return [ids.tolist(), offsets.tolist(), lists, encoder.encode(documents[0]), decoded, tokens]

    alone = [work(documents) for documents in texts]
    assert alone[0] != alone[1]
    with ThreadPoolExecutor(len(texts)) as pool:
        for _ in range(3):
            assert list(pool.map(work, texts)) == alone


# Texts on which training does not end by itself (the last one: not for many minutes, as its regex backtracks).
ENDLESS = {
    "many strings": "itertools.repeat('never ending text ' * 1000)",
    "empty strings": "itertools.repeat('')",
    "many arrays": "itertools.repeat(pa.array(['never ending text ' * 1000]))",
    "empty arrays": "itertools.repeat(pa.array([], pa.string()))",
    "one long text": "[('x' * 24 + ' ') * 300_000]",
}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("texts", ENDLESS.values(), ids=ENDLESS)
def test_ctrl_c_stops_the_training(texts: str) -> None:
    pattern = r"(?:x|xx)+(?=y)|\w+|\W" if texts == ENDLESS["one long text"] else SPLIT_PATTERN
    program = (
        "import itertools, pyarrow as pa; from nanochat.tokenization import _rustbpe\n"
        f"texts = {texts}\n"
        "print('started', flush=True)\n"
        f"_rustbpe.train(texts, 300, {pattern!r})\n"
    )
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        time.sleep(0.1)  # training has most likely begun; if not, the interruption comes even earlier
        process.send_signal(signal.SIGINT)
        try:
            errors = process.communicate(timeout=60)[1]
        finally:
            process.kill()
    assert "KeyboardInterrupt" in errors


def test_everything_public_has_a_docstring() -> None:
    methods = [method for name, method in vars(_rustbpe.Encoder).items() if not name.startswith("_")]
    assert len(methods) == 5
    assert all(thing.__doc__ for thing in (_rustbpe.train, _rustbpe.Encoder, _rustbpe.IntArray, *methods))


def test_the_examples_in_the_stub() -> None:
    runner = doctest.DocTestRunner()
    source = (ROOT / "nanochat" / "tokenization" / "_rustbpe.pyi").read_text(encoding="utf-8")
    names = vars(_rustbpe).copy()
    for node in ast.walk(ast.parse(source)):  # visits a class before its methods, which use the names of its example
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and (text := ast.get_docstring(node)):
            examples = doctest.DocTestParser().get_doctest(text, names, node.name, None, None)
            names = examples.globs
            runner.run(examples, clear_globs=False)
    failed, attempted = runner.summarize()[:2]
    assert attempted >= 16
    assert not failed
