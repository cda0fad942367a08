"""dev.bench_engine: every way generates what it is asked for, and the table has them all."""

from __future__ import annotations

import math

import pytest

from dev import bench_engine
from dev.bench_gguf import random_model, random_tokenizer
from nanochat.common import UserError
from nanochat.steps.make_step import is_native

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = bench_engine.Config(
    depth=1, head_dim=16, vocab_size=600, prompt=20, tokens=5, rows="1,3", rounds=2, threads=1, ways="nanochat,torch"
)


def test_the_tables(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.inference.native_step.fastest_cpu", lambda _dtype: None)  # tried in a child process
    tokenizer = random_tokenizer(TINY.vocab_size)
    model = random_model(1, tokenizer, TINY.context_len, head_dim=16)
    ways = bench_engine.nanochat_ways(TINY, model, tokenizer, max_rows=3)
    for way in ways:
        times = way.generate([[1, 2, 3], [4] * 20], 5)
        assert [len(row) for row in times] == [5, 5]
        assert all(row == sorted(row) for row in times)
    speeds = bench_engine.main(TINY)
    assert list(speeds) == [1, 3]
    num_native = sum(is_native(model.device, dtype) for dtype in bench_engine.DTYPES.values())
    for medians in speeds.values():
        assert len(medians) == 2 + num_native
        assert all(speed > 0 for speed in medians.values())
    out = capsys.readouterr().out
    assert out.count("torch step, bfloat16 ") == 2
    assert "20 + 5 tokens, 1 threads" in out


@pytest.mark.slow
def test_peers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("xllamacpp", reason="llama.cpp (the package xllamacpp) is not installed")
    monkeypatch.setattr(bench_engine, "native_llama_cpp_way", lambda *_: None)  # it may be installed, or not
    settings = {**vars(TINY), "ways": "hf,server"}
    speeds = bench_engine.main(bench_engine.Config(**settings))
    names = [
        "hf transformers, float32",
        "hf transformers, bfloat16",
        "llama.cpp server, bf16",
        "llama.cpp server, q8_0",
    ]
    assert list(speeds[3]) == names
    assert "hf transformers, bfloat16" in capsys.readouterr().out


def test_a_row_that_ends_before_all_have_begun() -> None:
    measurement = bench_engine.summarize([[1.0, 2.0], [3.0, 4.0]])
    assert math.isnan(measurement.speed)
    assert (measurement.first, measurement.speed_with_prompts) == (3.0, 1.0)


def test_wrong_rows() -> None:
    for rows in ("", "0", "1,a", "513"):
        with pytest.raises(UserError, match="rows is"):
            bench_engine.Config(rows=rows)
