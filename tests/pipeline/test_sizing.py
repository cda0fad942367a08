"""The sizing rule at its corners: little and much text, a minute and hours, a CPU and a GPU."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.gpt import GPT, GPTConfig
from nanochat.pipeline import sizing
from nanochat.pipeline.sizing import CONTEXT, DEPTHS, HEAD_DIM, MAX_PASSES, RunSize, size_run

CPU, GPU = 3e11, 1e14  # FLOP/s of a training step: two cores, a large GPU
KB, MB = 1000, 1_000_000


@pytest.mark.parametrize("depth", [2, 6])
@pytest.mark.parametrize("vocab_size", [512, 1344])
def test_costs_are_those_of_the_model(depth: int, vocab_size: int) -> None:
    with torch.device("meta"):
        shape = GPTConfig.from_depth(depth, vocab_size=vocab_size, sequence_len=CONTEXT, head_dim=HEAD_DIM)
        model = GPT(shape)
    assert sizing.flops_per_token(depth, vocab_size) == model.estimate_flops()
    assert sizing.num_params(depth, vocab_size) == model.num_params()


def seconds_of(size: RunSize, speed: float) -> float:
    """Seconds of pretraining by the count of FLOPs, without compiling."""
    return size.num_tokens * sizing.flops_per_token(size.depth, size.vocab_size, size.max_seq_len) / speed


@given(
    st.integers(sizing.MIN_BYTES, 10**12),
    st.floats(1, 10_000),
    st.floats(1e10, 1e15),
    st.sampled_from(["cpu", "cuda", "mps"]),
    st.sampled_from([CONTEXT, sizing.GROUNDED_CONTEXT]),
)
def test_any_run_is_possible(num_bytes: int, minutes: float, speed: float, device: str, context: int) -> None:
    size = size_run(num_bytes, minutes, speed, device, context)
    assert 512 <= size.vocab_size <= 8192
    assert size.vocab_size % 64 == 0
    assert size.depth in DEPTHS
    assert size.total_batch_size % size.max_seq_len == 0
    assert 1 <= size.eval_every <= size.num_iterations
    assert size.fine_tuning_steps >= 1
    floor = sizing.MIN_STEPS * size.total_batch_size
    text_tokens = num_bytes / sizing.bytes_per_token(size.vocab_size)
    assert size.num_tokens <= max(floor, MAX_PASSES * text_tokens + size.total_batch_size)
    if size.num_tokens > floor and size.compile == "off":
        assert seconds_of(size, speed) <= 60 * minutes * sizing.BASE_SHARE * 1.1 + 1


CORNERS = {  # (bytes, minutes, device): vocabulary, depth, steps
    (20 * KB, 1, "cpu"): (512, 4, 78),
    (20 * KB, 1, "cuda"): (512, 4, 78),
    (20 * KB, 15, "cpu"): (512, 4, 78),
    (20 * KB, 15, "cuda"): (512, 4, 78),
    (20 * KB, 120, "cpu"): (512, 4, 78),
    (20 * KB, 120, "cuda"): (512, 4, 78),
    (500 * KB, 1, "cpu"): (1344, 2, 487),
    (500 * KB, 1, "cuda"): (1344, 6, 689),
    (500 * KB, 15, "cpu"): (1344, 6, 689),
    (500 * KB, 15, "cuda"): (1344, 6, 689),
    (500 * KB, 120, "cpu"): (1344, 6, 689),
    (500 * KB, 120, "cuda"): (1344, 6, 689),
    (20 * MB, 1, "cpu"): (4096, 2, 341),
    (20 * MB, 1, "cuda"): (4096, 4, 2570),
    (20 * MB, 15, "cpu"): (4096, 2, 1575),
    (20 * MB, 15, "cuda"): (4096, 8, 2570),
    (20 * MB, 120, "cpu"): (4096, 4, 2570),
    (20 * MB, 120, "cuda"): (4096, 8, 2570),
}


def test_corners() -> None:
    """The results of the rule are written down here: a change of it changes this table."""
    rows = {
        (num_bytes, minutes, device): size_run(num_bytes, minutes, CPU if device == "cpu" else GPU, device)
        for num_bytes in (20 * KB, 500 * KB, 20 * MB)
        for minutes in (1, 15, 120)
        for device in ("cpu", "cuda")
    }
    table = {key: (size.vocab_size, size.depth, size.num_iterations) for key, size in rows.items()}
    assert table == CORNERS


def test_evaluations_take_a_small_part_of_the_run() -> None:
    for size in (size_run(num_bytes, minutes, CPU) for num_bytes in (20 * KB, 20 * MB) for minutes in (1, 15, 120)):
        assert sizing.EVAL_TOKENS[0] <= size.eval_tokens <= sizing.EVAL_TOKENS[1]
        forward_passes = sizing.EVALUATIONS * size.eval_tokens / 3  # a third of a training pass
        assert forward_passes < 0.06 * size.num_tokens or size.eval_tokens == sizing.EVAL_TOKENS[0]


def test_more_minutes_never_give_a_smaller_model() -> None:
    for num_bytes in (20 * KB, 500 * KB, 20 * MB):
        depths = [size_run(num_bytes, minutes, CPU).depth for minutes in (1, 5, 15, 60, 120, 1000)]
        assert depths == sorted(depths)


def test_a_model_of_little_text_is_fine_tuned_at_low_rates() -> None:
    rates = [size_run(num_bytes, 15, CPU).fine_tuning_lr for num_bytes in (20 * KB, 100 * KB, 101 * KB, 1 * MB, 2 * MB)]
    assert rates == [0.2, 0.2, 0.4, 0.4, 0.6]


def test_too_little_text() -> None:
    with pytest.raises(UserError, match="has 12 bytes: at least 200"):
        size_run(12, 15, CPU)
