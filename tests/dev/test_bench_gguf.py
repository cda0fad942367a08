"""dev.bench_gguf: its model and tokenizer can be exported, and each way generates as many tokens as it says."""

from __future__ import annotations

import pytest

from dev import bench_gguf
from nanochat.common import UserError
from nanochat.engine import Engine
from nanochat.export.gguf_tokenizer import choose_splitting, gguf_merges
from nanochat.inference.tool_use import Tool

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = bench_gguf.Config(depth=1, vocab_size=600, max_seq_len=256, tokens=8, rounds=2, threads=1)


@pytest.mark.parametrize("vocab_size", [512, 1000, 20_000])
def test_the_tokenizer_has_merges_for_all_tokens(vocab_size: int) -> None:
    tokenizer = bench_gguf.random_tokenizer(vocab_size)
    assert tokenizer.get_vocab_size() == vocab_size
    assert len(gguf_merges(tokenizer)) == vocab_size - 256 - 9
    assert choose_splitting(tokenizer, False).is_exact


def test_ways_generate_what_is_asked_for() -> None:
    tokenizer = bench_gguf.random_tokenizer(TINY.vocab_size)
    model = bench_gguf.random_model(TINY.depth, tokenizer, TINY.max_seq_len, head_dim=64)
    way = bench_gguf.engine_way("ours", Engine(model, tokenizer), num_bytes=1)
    assert way.generate(200) == 200
    assert not {*tokenizer.special_tokens.values()} - {*range(591, 600)}
    assert Tool(tokenizer).end_ids <= {*tokenizer.special_tokens.values()}


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp (the package xllamacpp) is not installed")
    monkeypatch.setattr("nanochat.inference.native_step.fastest_cpu", lambda _dtype: None)  # tried in a child process
    monkeypatch.setattr(bench_gguf, "native_way", lambda _path, _threads: None)  # it may be installed, or not
    medians = bench_gguf.main(TINY)
    out = capsys.readouterr().out
    assert list(medians) == [
        *("nanochat, bfloat16", "nanochat, float32", "llama.cpp (xllamacpp), bf16", "llama.cpp (xllamacpp), q8_0")
    ]
    assert all(speed > 0 for speed in medians.values())
    assert all(f"\n{name}" in out for name in medians)
    assert out.splitlines()[2].split()[3] == "1.00"


def test_more_tokens_than_the_context_holds() -> None:
    with pytest.raises(UserError, match="tokens is 300: must be at most 240"):
        bench_gguf.main(bench_gguf.Config(tokens=300))
