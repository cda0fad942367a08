"""The benchmark of CORE's scorer: it runs, and both methods give the same scores. No test checks their speed."""

from __future__ import annotations

import importlib
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.common import UserError
from nanochat.eval.core_prompts import EncodedExample, EncodedOption
from nanochat.gpt import GPTConfig
from nanochat.runtime import Runtime
from tests.support.bundles import write_bundle

bench_eval: Any = importlib.import_module("dev.bench_eval")  # dev/ is not a package


@pytest.mark.slow
@pytest.mark.usefixtures("run_here")
def test_bench_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(write_bundle(tmp_path / "bundle"))
    config = bench_eval.Config(
        eval_bundle=bundle, max_per_task=4, depth=1, head_dim=32, max_seq_len=32, vocab_size=300, batch_tokens=200
    )
    rows, memory = bench_eval.main(config)
    assert [(row.label, row.num_examples) for row in rows] == [("choice", 4), ("schema", 4), ("words", 4)]
    assert all(0 <= row.max_loss_difference < 1e-5 for row in rows)
    assert not any(row.num_different_decisions or row.num_different_greedy for row in rows)
    assert all(row.fewest_flops[0] > row.fewest_flops[1] > 0 for row in rows)
    assert len(memory) == 2
    out = capsys.readouterr().out
    for words in ("ratio", "arithmetic", "memory, one at a time", "memory, batched", "all "):
        assert words in out
    assert sum(line.startswith(("choice", "schema", "words", "all")) for line in out.splitlines()) == 4


@pytest.mark.parametrize("method", ["one at a time", "batched"])
def test_it_computes_in_float32(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a machine whose default is another dtype (float64 in place of bf16)."""
    runtime = Runtime(0, 0, 1, torch.device("cpu"), torch.float64, 42)
    config = bench_eval.Config(depth=1, head_dim=32, max_seq_len=32)
    model = bench_eval.random_model(config.model_config(300), runtime)
    monkeypatch.setattr(Runtime, "start", lambda *_: runtime)
    monkeypatch.setattr(bench_eval, "random_model", lambda *_: model)
    seen, read = [], type(model).hidden_states
    monkeypatch.setattr(
        type(model), "hidden_states", lambda gpt, *rest: seen.append(gpt.compute_dtype) or read(gpt, *rest)
    )
    pipe, child_pipe = multiprocessing.Pipe()
    pipe.send([EncodedExample(0, [EncodedOption([1, 2, 3, 4], 2)], False)])
    pipe.send(None)
    bench_eval.serve(method, config, 300, child_pipe)
    assert set(seen) == {torch.float32}


def test_fewest_flops_by_hand() -> None:
    """Two options of 5 and 6 tokens share the first 3; the last token of each is only predicted."""
    model_config = GPTConfig(sequence_len=8, vocab_size=64, n_layer=1, n_head=2, n_kv_head=1, n_embd=4)
    example = EncodedExample(0, [EncodedOption([1, 2, 3, 4, 5], 1), EncodedOption([1, 2, 3, 4, 6, 7], 2)], False)
    assert example.prefix_len == 3
    matrices = 2 * (4 * 4 + 2 * 2 * 4 + 4 * 4 + 2 * 4 * 16)  # q, k and v of one head of two, o, the MLP
    pair = 4 * 4
    logits = 2 * 4 * 64
    plain, batched = bench_eval.count_fewest_flops([example], model_config)
    assert plain == 9 * (matrices + logits) + pair * (10 + 15)
    assert batched == 6 * matrices + 3 * logits + pair * (6 + 4 + 4 + 5)


def test_impossible_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_tokens is 0"):
        bench_eval.Config(batch_tokens=0)
    with pytest.raises(UserError, match="max_per_task is 0"):
        bench_eval.Config(max_per_task=0)
    with pytest.raises(UserError, match="no task nonsense"):
        bench_eval.main(bench_eval.Config(eval_bundle=str(write_bundle(tmp_path)), tasks="choice|nonsense"))
