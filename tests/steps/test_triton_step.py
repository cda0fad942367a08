"""The step on GPUs, its kernels replaced by torch's: tiles, padding, captured steps, and waits on a fake GPU.

The kernels themselves are compared in tests/steps/interpreted.py.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor

from nanochat.gpt import GPT
from nanochat.inference.scheduler import Scheduler
from nanochat.layers.sampling_params import SamplingParams
from tests.support.block_steps import logits_in_chunks, make_step
from tests.support.fake_cuda import fake_cuda, fake_model
from tests.support.fake_step import TOOL, make_request
from tests.support.models import random_model
from tests.support.torch_kernels import use_torch_kernels

pytest.importorskip("triton")
from nanochat.steps import triton_step
from nanochat.steps.launch import tokens_of_a_tile
from nanochat.steps.triton_step import BUCKETS, CapturedStep, TritonStep, attention_tiles, packed, unpacked

VOCAB = 201  # padded to 256
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {"n_layer": 2, "n_head": 2, "n_kv_head": 2, "n_embd": 32},
    "grouped": {"n_layer": 2, "n_head": 6, "n_kv_head": 2, "n_embd": 60},
    "one key-value head, not capped": {"n_layer": 1, "n_head": 3, "n_kv_head": 1, "n_embd": 24, "softcap": 0.0},
}


class Replays:
    """In place of a CUDA graph: runs the step again and writes to the same logits."""

    def __init__(self, step: TritonStep, flat: torch.Tensor, arrays: list[Any]) -> None:
        self.step, self.inputs, self.count = step, unpacked(flat, arrays), 0
        self.logits = step._run(self.inputs)

    def replay(self) -> None:
        self.count += 1
        self.logits.copy_(self.step._run(self.inputs))


class CapturingStep(TritonStep):
    """A step on a CPU that "captures"."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._is_captured = True

    def _capture(self, arrays: list[Any]) -> CapturedStep:
        flat = torch.from_numpy(packed(arrays).copy())
        graph: Any = Replays(self, flat, arrays)
        return CapturedStep(flat, graph, graph.logits)


@pytest.fixture(autouse=True)
def _torch_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    use_torch_kernels(monkeypatch)
    if not torch.cuda.is_available():
        monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
        monkeypatch.setattr(FakeTensor, "pin_memory", lambda tensor: tensor)


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> GPT:
    return random_model(40, VOCAB, **SHAPES[request.param])


def sequences(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(VOCAB, (length,), generator=generator).tolist() for length in lengths]


def whole(model: GPT, tokens: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([tokens]))[0]


@pytest.mark.parametrize("kind", [TritonStep, CapturingStep])
@pytest.mark.parametrize("block_len", [1, 4, 16])
def test_chunks_in_blocks_give_the_logits_of_one_pass(model: GPT, block_len: int, kind: type[TritonStep]) -> None:
    texts = sequences(1, 40, 17, 8, 33)
    step = kind(model, 5 * -(-40 // block_len), block_len)
    for tokens, logits in zip(texts, logits_in_chunks(step, texts, seed=block_len), strict=True):
        torch.testing.assert_close(logits, whole(model, tokens), rtol=0, atol=2e-5)


def test_a_step_that_cannot_be_captured_runs(caplog: pytest.LogCaptureFixture) -> None:
    class NotCapturing(CapturingStep):
        def _capture(self, arrays: list[Any]) -> CapturedStep:
            raise RuntimeError(f"operation not permitted when {len(arrays)} arrays are captured")

    model = random_model(40, VOCAB, **SHAPES["grouped"])
    step = NotCapturing(model, 12, 4)
    for _ in range(2):
        logits = step.forward(make_step([([5], 0, [0]), ([7], 0, [1]), ([9], 0, [2])]))
        expected = torch.stack([whole(model, [token])[-1] for token in (5, 7, 9)])
        torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)
    assert caplog.text.count("cannot be captured, so all run more slowly") == 1


def test_a_captured_step_is_replayed_with_other_rows() -> None:
    """3 and then 4 rows in one bucket, then 1 in another: the rows of the step before leave nothing behind."""
    model = random_model(40, VOCAB, **SHAPES["grouped"])
    texts = sequences(12, 9, 5, 7)
    step = CapturingStep(model, 12, 4)
    tables = [[0, 5, 2], [3, 1, 4], [6, 8], [9, 7]]
    for tokens, table in zip(texts, tables, strict=True):
        step.forward(make_step([(tokens[:-1], 0, table)]))
    expected = torch.stack([whole(model, tokens)[-1] for tokens in texts])
    for rows in ([0, 1, 2], [3, 2, 1, 0], [1], [2, 3], [0, 2, 3]):
        decoding = make_step([(texts[row][-1:], len(texts[row]) - 1, tables[row]) for row in rows])
        logits = step.forward(decoding)
        assert logits.shape == (len(rows), VOCAB)
        torch.testing.assert_close(logits, expected[rows], rtol=0, atol=2e-5)
    counts = {bucket: captured.graph.count for bucket, captured in step._captured.items()}  # type: ignore[attr-defined]
    assert counts == {4: 3, 1: 1, 2: 1}


def test_only_the_wanted_logits_are_returned(model: GPT) -> None:
    [tokens] = sequences(9)
    step = TritonStep(model, 4, 4)
    made = make_step([(tokens[:8], 0, [2, 0]), (tokens[:1], 0, [1])], wanted=[3, 7, 8])
    expected = whole(model, tokens)[[3, 7, 0]]
    torch.testing.assert_close(step.forward(made), expected, rtol=0, atol=2e-5)
    assert step.forward(replace(made, wanted=made.wanted[:0])).shape == (0, VOCAB)


def test_a_copy_of_a_block(model: GPT) -> None:
    [common, rest] = sequences(6, 3)
    step = TritonStep(model, 4, 4)
    step.forward(make_step([(common, 0, [3, 1])]))
    step.copy_block(1, 0)
    step.forward(make_step([([7, 7], 6, [3, 1])]))
    logits = step.forward(make_step([(rest, 6, [3, 0, 2])]))
    torch.testing.assert_close(logits, whole(model, common + rest)[6:], rtol=0, atol=2e-5)


def test_more_rows_than_the_largest_bucket() -> None:
    model = random_model(8, VOCAB, n_embd=16)
    rows = BUCKETS[-1] + 3
    step = CapturingStep(model, rows, 8)
    tokens = [index % VOCAB for index in range(rows)]
    logits = step.forward(make_step([([token], 0, [index]) for index, token in enumerate(tokens)]))
    expected = torch.stack([whole(model, [token])[0] for token in range(VOCAB)])
    torch.testing.assert_close(logits, expected[tokens], rtol=0, atol=2e-5)
    assert not step._captured


@pytest.mark.parametrize("seed", range(20))
def test_attention_tiles_cover_each_token_once_and_mix_no_sequences(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = np.repeat(np.arange(6), rng.choice([1, 1, 2, 5, 16, 33], 6)).astype(np.int32)
    size = tokens_of_a_tile(*[(10, 10), (12, 4), (64, 2)][seed % 3])
    starts, lengths = attention_tiles(rows, size)
    covered = [index for start, length in zip(starts, lengths, strict=True) for index in range(start, start + length)]
    assert covered == list(range(len(rows)))
    assert all(1 <= length <= size for length in lengths)
    assert all(len(set(rows[s : s + n].tolist())) == 1 for s, n in zip(starts, lengths, strict=True))
    assert len(starts) == sum(-(-count // size) for count in Counter(rows.tolist()).values())


def test_arrays_come_back_from_one_tensor_at_aligned_addresses() -> None:
    rng = np.random.default_rng(0)
    shapes = [(5,), (0,), (5,), (5,), (3, 7), (2,), (2,)]
    arrays = [rng.integers(0, 99, shape).astype(np.int32) for shape in shapes]
    flat = torch.from_numpy(packed(arrays))
    inputs = unpacked(flat, arrays)
    attention = inputs.attention
    views = [inputs.ids, inputs.wanted, attention.positions, attention.rows, attention.tables]
    views += [attention.tile_starts, attention.tile_lengths]
    for view, array in zip(views, arrays, strict=True):
        assert np.array_equal(view.numpy(), array)
        assert (view.data_ptr() - flat.data_ptr()) % 16 == 0 or not array.size


# --- on a fake GPU ----------------------------------------------------------------------------------------------------


class CountedGraph:
    """In place of a CUDA graph, on a fake device: it computes nothing."""

    replays = 0

    def pool(self) -> tuple[int, int]:
        return (1, 1)

    def replay(self) -> None:
        type(self).replays += 1


@pytest.mark.slow
@pytest.mark.parametrize("is_captured", [True, False])
def test_the_host_waits_for_the_tokens_only(is_captured: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of different settings and a prompt in chunks: a wait at each step with rows, for the ids."""
    monkeypatch.setattr(triton_step.torch.cuda, "CUDAGraph", CountedGraph)
    monkeypatch.setattr(triton_step.torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(TritonStep, "_on_device", lambda _: nullcontext())
    monkeypatch.setattr(CountedGraph, "replays", 0)

    def capture(graph: CountedGraph, *, pool: object, capture_error_mode: str) -> Any:
        assert isinstance(graph, CountedGraph)
        assert pool in (None, (1, 1))
        assert capture_error_mode == "thread_local"
        return nullcontext()

    monkeypatch.setattr(triton_step.torch.cuda, "graph", capture)
    steps = []
    with fake_cuda() as log:
        torch.cuda.current_stream().wait_stream = lambda _: None  # type: ignore[method-assign]
        monkeypatch.setattr(triton_step.torch.cuda, "Stream", torch.cuda.current_stream)
        step = TritonStep(fake_model(), 20, 4, is_captured=is_captured)
        scheduler = Scheduler(step, TOOL, max_prefill_tokens=5)
        params = [
            SamplingParams(0.0),
            SamplingParams(0.8, top_k=20),
            SamplingParams(1.0),
            SamplingParams(1.0, top_p=0.9),
        ]
        for key, one in enumerate(params):
            request, _ = make_request([key, 1, 2, *range(6 * key)], replace(one, max_tokens=9), key)
            scheduler.submit(request)
        log.clear()
        while scheduler.step():
            steps.append(dict(log.waits))
            log.clear()
    assert len(steps) > 9
    assert all(waits in ({}, {"tolist": 1}) for waits in steps), steps
    assert (CountedGraph.replays > 3) == is_captured
