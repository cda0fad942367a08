"""Requests together give the completions that each has alone, whatever joins, leaves, or is sent back.

The step is a fake one whose logits follow from the whole prefix (`tests/support/fake_step.py`), and the completions are
compared with a slow generator that has neither cache nor company.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.inference.generation_request import FinishEvent, GenerationRequest, TokenEvent
from nanochat.inference.native_step import NativeStep, is_available
from nanochat.inference.scheduler import Scheduler
from nanochat.layers.sampler import NO_PROBABILITIES, rng_keys
from nanochat.layers.sampling_params import SamplingParams
from tests.support.fake_step import (
    BOS,
    CALL,
    END,
    TOOL,
    FakeStep,
    Receiver,
    completion_alone,
    make_request,
    prefix_logits,
)
from tests.support.models import random_model

PARAMS = st.sampled_from(
    [
        SamplingParams(0.0),
        SamplingParams(0.0, max_tokens=3),
        SamplingParams(1.0),
        SamplingParams(0.7, top_k=20),
        SamplingParams(0.7, top_k=20, max_tokens=9),
        SamplingParams(1.3, top_p=0.6),
        SamplingParams(0.5, top_k=30, top_p=0.8, max_tokens=1),
    ]
)
# Prompts with much in common: a stem, cut anywhere, and a few tokens.
STEM = [BOS, *(7 * i % 250 for i in range(40))]
PROMPTS = st.builds(
    lambda length, rest: STEM[:length] + rest, st.integers(1, 40), st.lists(st.integers(0, 2), max_size=6)
)


def run(scheduler: Scheduler, max_steps: int = 10_000) -> None:
    for _ in range(max_steps):
        if not scheduler.step():
            return
    raise AssertionError("requests do not end")


def assert_free(scheduler: Scheduler) -> None:
    """All blocks are free, and nothing waits or runs."""
    stats = scheduler.stats()
    assert stats["blocks_used"] == stats["running"] == stats["waiting"] == stats["prefilling"] == 0
    assert scheduler._generations == {}


def assert_as_alone(request: GenerationRequest, receiver: Receiver, context_len: int) -> None:
    tokens, reason = completion_alone(request, context_len)
    assert receiver.tokens == tokens
    assert receiver.finish == FinishEvent(reason)  # type: ignore[arg-type]


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_every_completion_is_what_it_is_alone(data: st.DataObject) -> None:
    """Arrivals and cancellations at any step, any budget of tokens, rows and blocks."""
    block_len = data.draw(st.integers(1, 5), label="block_len")
    context_len = 48
    for_one = math.ceil(context_len / block_len)
    num_blocks = for_one + data.draw(st.sampled_from([0, 1, 3, for_one, 5 * for_one]), label="more blocks")
    step = FakeStep(num_blocks, block_len, context_len)
    scheduler = Scheduler(
        step,
        TOOL,
        max_running=data.draw(st.integers(1, 9), label="max_running"),
        max_prefill_tokens=data.draw(st.integers(1, 40), label="max_prefill_tokens"),
    )
    requests: list[tuple[GenerationRequest, Receiver]] = []
    cancelled = set()
    arrivals = data.draw(
        st.lists(st.tuples(PROMPTS, PARAMS, st.integers(1, 3)), min_size=1, max_size=8), label="arrivals"
    )
    for prompt, params, count in arrivals:
        for _ in range(data.draw(st.integers(0, 6), label="steps")):
            scheduler.step()
        for _ in range(count):  # several completions of a prompt
            requests.append(make_request(prompt, params, key=len(requests)))
            scheduler.submit(requests[-1][0])
        if data.draw(st.integers(0, 3), label="cancel one?") == 0:
            request, receiver = data.draw(st.sampled_from(requests), label="cancelled")
            if receiver.finish is None:
                scheduler.cancel(request)
                assert receiver.finish == FinishEvent("cancelled")
                cancelled.add(request)
    run(scheduler)
    for request, receiver in requests:
        if request in cancelled:
            tokens, _ = completion_alone(request, context_len)
            assert receiver.tokens == tokens[: len(receiver.tokens)]
        else:
            assert_as_alone(request, receiver, context_len)
    assert_free(scheduler)


def test_a_long_prompt_does_not_hold_up_the_others() -> None:
    """Rows that decode get a token at every step, and prompts have the rest of their budget."""
    step = FakeStep(100, sequence_len=64)
    scheduler = Scheduler(step, TOOL, max_prefill_tokens=8)
    short, receiver = make_request([BOS, 1], SamplingParams(0.0, max_tokens=20))
    scheduler.submit(short)
    scheduler.step()
    long, _ = make_request(STEM, SamplingParams(0.0, max_tokens=20))
    scheduler.submit(long)
    for num_steps in range(1, 5):
        before = len(receiver.tokens)
        scheduler.step()
        assert len(receiver.tokens) == before + 1
        assert step.shapes[-1] == (9, 2)
        assert scheduler.stats()["prefilled_tokens"] == 2 + 8 * num_steps


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    """Prompts share the tokens of a step."""
    step = FakeStep(100, sequence_len=64)
    scheduler = Scheduler(step, TOOL, max_prefill_tokens=8)
    long, _ = make_request(STEM, SamplingParams(0.0))
    scheduler.submit(long)
    scheduler.step()
    short, receiver = make_request([BOS, 1, 2, 3, 5], SamplingParams(0.0))
    scheduler.submit(short)
    scheduler.step()
    assert not receiver.tokens
    scheduler.step()
    assert len(receiver.tokens) == 1
    assert scheduler.stats()["prefilled_tokens"] == 8 * 3
    run(scheduler)
    assert_as_alone(short, receiver, 64)


def test_the_longest_waiting_request_is_served_first() -> None:
    step = FakeStep(100)
    scheduler = Scheduler(step, TOOL, max_running=2)
    requests = [make_request([BOS, i], SamplingParams(0.0, max_tokens=3 + i)) for i in range(5)]
    for request, _ in requests:
        scheduler.submit(request)
    assert [scheduler.place(request) for request, _ in requests] == [1, 2, 3, 4, 5]
    scheduler.step()
    assert [scheduler.place(request) for request, _ in requests] == [0, 0, 1, 2, 3]
    first_tokens = []
    while scheduler.step():
        first_tokens += [
            i for i, (_, receiver) in enumerate(requests) if len(receiver.events) == 1 and i not in first_tokens
        ]
    run(scheduler)
    assert first_tokens == sorted(first_tokens)
    assert [scheduler.place(request) for request, _ in requests] == [0] * 5


def test_without_room_the_youngest_waits_and_loses_nothing() -> None:
    """The oldest gets a token at every step, and those that wait stand in order of arrival."""
    step = FakeStep(16, block_len=4, sequence_len=64)  # room for one full context
    scheduler = Scheduler(step, TOOL)
    requests = [make_request([BOS, i, *STEM[:9]], SamplingParams(0.9, top_k=200), key=i) for i in range(12)]
    for request, _ in requests:
        scheduler.submit(request)
    arrivals = {request: number for number, (request, _) in enumerate(requests)}
    is_running = True
    while is_running:
        oldest = next((receiver for _, receiver in requests if receiver.finish is None), None)
        num_events = len(oldest.events) if oldest else 0
        is_running = scheduler.step()
        assert oldest is None or len(oldest.events) > num_events
        numbers = [arrivals[request] for request in scheduler.waiting]
        assert numbers == sorted(numbers)
    for request, receiver in requests:
        assert_as_alone(request, receiver, 64)
    assert scheduler.stats()["preemptions"] > 0
    assert_free(scheduler)


def test_completions_of_one_prompt_prefill_it_once() -> None:
    step = FakeStep(100, block_len=4)
    scheduler = Scheduler(step, TOOL, max_prefill_tokens=5)
    requests = [make_request(STEM[:10], SamplingParams(1.0, max_tokens=5), key=key) for key in (3, 1, 4, 1)]
    for request, _ in requests:
        scheduler.submit(request)
    run(scheduler)
    assert scheduler.stats()["prefilled_tokens"] == 10
    assert scheduler.stats()["shared_tokens"] == 30
    assert [request.num_cached for request, _ in requests] == [0, 10, 10, 10]
    assert step.shapes[:3] == [(5, 1), (5, 1), (4, 4)]
    for request, receiver in requests:
        assert_as_alone(request, receiver, 64)
    assert requests[1][1].events == requests[3][1].events


def test_the_next_turn_does_not_read_its_history_again() -> None:
    step = FakeStep(100, block_len=4)
    scheduler = Scheduler(step, TOOL)
    request, receiver = make_request(STEM[:10], SamplingParams(0.0, max_tokens=11))
    scheduler.submit(request)
    run(scheduler)
    history = request.tokens + [token for token, _ in receiver.tokens]
    assert len(history) >= 20
    following, following_receiver = make_request([*history, 5, 6, 7], SamplingParams(0.0))
    scheduler.submit(following)
    run(scheduler)
    num_cached = (len(history) - 1) // 4 * 4  # the last token was never computed
    assert following.num_cached == num_cached
    assert scheduler.stats()["prefilled_tokens"] == 10 + len(history) + 3 - num_cached
    assert_as_alone(following, following_receiver, 64)


def test_requests_with_a_common_beginning_wait_until_one_has_computed_it() -> None:
    step = FakeStep(100, block_len=4)
    scheduler = Scheduler(step, TOOL)
    requests = [make_request([*STEM[:30], i, i], SamplingParams(0.0, max_tokens=2)) for i in range(6)]
    for request, _ in requests:
        scheduler.submit(request)
    run(scheduler)
    assert scheduler.stats()["prefilled_tokens"] == 32 + 5 * 4  # 28 are shared
    for request, receiver in requests:
        assert_as_alone(request, receiver, 64)


def test_the_leader_of_a_prefix_can_be_cancelled() -> None:
    scheduler = Scheduler(FakeStep(100, block_len=4), TOOL, max_prefill_tokens=4)
    requests = [make_request(STEM[:30], SamplingParams(1.0), key=key) for key in range(3)]
    for request, _ in requests:
        scheduler.submit(request)
    scheduler.step()
    scheduler.cancel(requests[0][0])
    run(scheduler)
    for request, receiver in requests[1:]:
        assert_as_alone(request, receiver, 64)
    assert_free(scheduler)


# Ends


def test_a_full_context_ends_with_length() -> None:
    scheduler = Scheduler(FakeStep(100, sequence_len=32), TOOL)
    never_ends = next(key for key in range(100) if len(completion_alone(make_request([BOS], key=key)[0], 32)[0]) == 31)
    request, receiver = make_request([BOS], key=never_ends)
    scheduler.submit(request)
    full, full_receiver = make_request([BOS] * 32)
    scheduler.submit(full)
    run(scheduler)
    assert len(receiver.tokens) == 31
    assert receiver.finish == full_receiver.finish == FinishEvent("length")
    assert full_receiver.tokens == []
    assert_free(scheduler)


def test_a_cache_smaller_than_the_context_ends_with_length_too() -> None:
    scheduler = Scheduler(FakeStep(5, block_len=4, sequence_len=64), TOOL)
    assert scheduler.context_len == 20
    requests = [make_request([BOS, i], SamplingParams(1.0), key=i) for i in range(20)]
    for request, _ in requests:
        scheduler.submit(request)
    run(scheduler)
    for request, receiver in requests:
        assert_as_alone(request, receiver, 20)
    with pytest.raises(UserError, match="21 tokens, but the cache has room for 20"):
        scheduler.submit(make_request([BOS] * 21)[0])


def test_prompts_that_cannot_be_continued_are_refused() -> None:
    scheduler = Scheduler(FakeStep(100, sequence_len=32), TOOL)
    with pytest.raises(UserError, match="the prompt is empty"):
        scheduler.submit(make_request([])[0])
    with pytest.raises(UserError, match="33 tokens, but the context of this model is 32"):
        scheduler.submit(make_request([BOS] * 33)[0])
    assert_free(scheduler)
    assert not scheduler.step()


def test_tool_calls_are_forced_row_by_row() -> None:
    """Among many completions there are calls, whose results come as forced tokens, at different steps."""
    scheduler = Scheduler(FakeStep(200, sequence_len=64), TOOL)
    requests = [
        make_request([BOS, CALL, ord("1"), ord("+")], SamplingParams(0.8), key=int(key)) for key in rng_keys(1, 200)
    ]
    for request, _ in requests:
        scheduler.submit(request)
    run(scheduler)
    starts = set()
    for request, receiver in requests:
        assert_as_alone(request, receiver, 64)
        forced = [index for index, (_, is_forced) in enumerate(receiver.tokens) if is_forced]
        starts |= {forced[0]} if forced else set()
    assert len(starts) > 3


# Log-probabilities


def test_log_probabilities_only_for_those_who_ask() -> None:
    scheduler = Scheduler(FakeStep(100), TOOL)
    params = SamplingParams(0.3, top_k=5, max_tokens=6)
    asked = {count: make_request([BOS, 1], params, 1, count) for count in (None, 0, 3)}
    for request, _ in asked.values():
        scheduler.submit(request)
    run(scheduler)
    for count, (request, receiver) in asked.items():
        prefix = list(request.tokens)
        for event in receiver.events[:-1]:
            assert isinstance(event, TokenEvent)
            logits = torch.from_numpy(prefix_logits(prefix, 265))
            expected = logits.double().log_softmax(-1)
            if count is None:
                assert event.logprob is event.top_logprobs is None
            else:
                assert event.logprob == pytest.approx(float(expected[event.token]), abs=1e-5)
                assert event.top_logprobs is not None
                assert [token for token, _ in event.top_logprobs] == expected.topk(count).indices.tolist()
            prefix.append(event.token)


# Errors


def test_an_error_of_the_step_ends_what_ran_and_nothing_else() -> None:
    step = FakeStep(100)
    scheduler = Scheduler(step, TOOL, max_running=2)
    requests = [make_request([BOS, i], SamplingParams(1.0), key=i) for i in range(4)]
    for request, _ in requests:
        scheduler.submit(request)
    scheduler.step()
    step.fail = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        scheduler.step()
    scheduler.fail_running("the model failed")
    assert [receiver.finish for _, receiver in requests[:2]] == [FinishEvent("error", "the model failed")] * 2
    assert scheduler.stats()["blocks_kept"] == 0
    run(scheduler)
    for request, receiver in requests[2:]:
        assert_as_alone(request, receiver, 64)
    assert_free(scheduler)


def test_an_error_while_a_prompt_is_shared_leaves_those_that_wait_as_they_were() -> None:
    class FailingStep(FakeStep):
        num_copies = 0

        def copy_block(self, source: int, target: int) -> None:
            self.num_copies += 1
            if self.num_copies == 2:
                raise RuntimeError("out of memory")
            super().copy_block(source, target)

    scheduler = Scheduler(FailingStep(100), TOOL)
    requests = [make_request(STEM[:6], SamplingParams(1.0), key=key) for key in range(4)]
    for request, _ in requests:
        scheduler.submit(request)
    with pytest.raises(RuntimeError, match="out of memory"):
        scheduler.step()
    scheduler.fail_running("the model failed")
    assert requests[0][1].finish == FinishEvent("error", "the model failed")
    scheduler.cancel(requests[1][0])
    run(scheduler)
    for request, receiver in requests[2:]:
        assert_as_alone(request, receiver, 64)
    assert_free(scheduler)


def test_a_receiver_that_fails_ends_its_own_request_only() -> None:
    scheduler = Scheduler(FakeStep(100), TOOL)
    requests = [make_request([BOS, i], SamplingParams(1.0), key=i) for i in range(4)]

    def broken(_: TokenEvent | FinishEvent) -> None:
        raise ValueError("closed")

    requests[1][0].on_event = broken
    for request, _ in requests:
        scheduler.submit(request)
    run(scheduler)
    for request, receiver in [requests[0], *requests[2:]]:
        assert_as_alone(request, receiver, 64)
    assert_free(scheduler)


@pytest.mark.parametrize(("temperature", "num_logprobs"), [(1.0, None), (0.0, None), (0.0, 0)])
def test_logits_that_are_not_finite_end_their_row_only(temperature: float, num_logprobs: int | None) -> None:
    class NaNStep(FakeStep):
        def forward(self, step: Any) -> torch.Tensor:
            logits = super().forward(step)
            logits[torch.from_numpy(step.tokens[step.wanted] == 77)] = torch.nan
            return logits

    scheduler = Scheduler(NaNStep(100), TOOL)
    params = SamplingParams(temperature, max_tokens=1)
    requests = [make_request([BOS, token], params, 0, num_logprobs) for token in (5, 77, 6)]
    for request, _ in requests:
        scheduler.submit(request)
    run(scheduler)
    assert requests[1][1].events == [FinishEvent("error", NO_PROBABILITIES)]
    for request, receiver in requests[::2]:
        assert_as_alone(request, receiver, 64)
    assert_free(scheduler)


@pytest.mark.parametrize(("max_running", "places"), [(2, [0, 1, 2, 3]), (3, [0, 1, 0, 2]), (4, [0, 1, 0, 0])])
def test_further_samples_take_no_row_that_an_earlier_request_waits_for(max_running: int, places: list[int]) -> None:
    scheduler = Scheduler(FakeStep(100), TOOL, max_running=max_running, max_prefill_tokens=1)
    prompt = [BOS, 1, 2, 3]
    requests = [make_request(tokens, SamplingParams(1.0)) for tokens in (prompt, [BOS, 9], prompt, prompt)]
    scheduler.submit(requests[0][0])
    scheduler.step()  # one prompt takes all tokens of the steps, so the next one waits though there are rows
    for request, _ in requests[1:]:
        scheduler.submit(request)
    while not requests[0][1].events:
        scheduler.step()
    assert [scheduler.place(request) for request, _ in requests] == places
    run(scheduler)
    for request, receiver in requests:
        assert_as_alone(request, receiver, 64)
    assert_free(scheduler)


def test_all_or_those_that_have_not_begun_can_be_cancelled() -> None:
    scheduler = Scheduler(FakeStep(100), TOOL, max_running=2)
    requests = [make_request([BOS, i], SamplingParams(0.0)) for i in range(5)]
    for request, _ in requests:
        scheduler.submit(request)
    scheduler.step()
    scheduler.cancel_all("shutdown", "closing", only_waiting=True)
    assert [receiver.finish for _, receiver in requests] == [None] * 2 + [FinishEvent("shutdown", "closing")] * 3
    scheduler.cancel_all("cancelled")
    assert [receiver.finish for _, receiver in requests[:2]] == [FinishEvent("cancelled")] * 2
    assert_free(scheduler)
    scheduler.cancel(requests[0][0])  # it is done: nothing happens
    assert requests[0][1].events.count(FinishEvent("cancelled")) == 1


def test_drawing_for_all_rows_together() -> None:
    """`draw` sees a row of logits for each completion, in order, and gives each its token."""
    drawn: list[int] = []

    def draw(logits: torch.Tensor) -> list[int]:
        drawn.append(len(logits))
        return [10 * len(drawn) + row for row in range(len(logits))] if len(drawn) < 3 else [END] * len(logits)

    scheduler = Scheduler(FakeStep(100), TOOL, draw=draw)
    requests = [make_request(STEM[:6], SamplingParams(1.0)) for _ in range(3)]
    states = [scheduler.submit(request) for request, _ in requests]
    run(scheduler)
    assert [state.tokens for state in states] == [[10, 20, END], [11, 21, END], [12, 22, END]]
    assert drawn == [3, 3, 3]


def test_a_wrong_block_is_seen() -> None:
    """The comparison with completions alone can fail: here a block is not copied."""

    class ForgetfulStep(FakeStep):
        def copy_block(self, source: int, target: int) -> None:
            pass

    scheduler = Scheduler(ForgetfulStep(100), TOOL)
    requests = [make_request(STEM[:6], SamplingParams(1.0), key=key) for key in range(3)]
    for request, _ in requests:
        scheduler.submit(request)
    run(scheduler)
    assert any(receiver.tokens != completion_alone(request, 64)[0] for request, receiver in requests)


# On the native step


@pytest.mark.skipif(not is_available(), reason="the Rust extension is not built")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_the_native_step_events_are_equal_to_the_last_bit(dtype: torch.dtype) -> None:
    """Log-probabilities too: in a crowd with a small cache, and alone with nothing in the cache."""
    model = random_model(96, n_layer=2, n_head=4, n_kv_head=2, n_embd=64, scale=0.25, seed=1)

    def make_all() -> list[tuple[GenerationRequest, Receiver]]:
        rng = random.Random(2)
        requests = []
        for key in range(40):
            prompt = STEM[: rng.randint(1, 40)] + [rng.randint(0, 250) for _ in range(rng.randint(0, 20))]
            params = rng.choice([SamplingParams(0.0), SamplingParams(1.0), SamplingParams(0.8, top_k=50, top_p=0.9)])
            requests.append(make_request(prompt, replace(params, max_tokens=rng.randint(20, 60)), key, 2))
        return requests

    crowd = Scheduler(NativeStep(model, 12, dtype), TOOL, max_running=16, max_prefill_tokens=24)
    together, alone = make_all(), make_all()
    rng = random.Random(3)
    for request, _ in together:
        crowd.submit(request)
        for _ in range(rng.choice([0, 0, 0, 1, 5])):
            crowd.step()
    run(crowd)
    assert crowd.stats()["preemptions"] > 0
    assert crowd.stats()["shared_tokens"] > 100
    assert_free(crowd)
    step = NativeStep(model, 6, dtype)
    for request, _ in alone:
        scheduler = Scheduler(step, TOOL, max_prefill_tokens=1000)
        scheduler.submit(request)
        run(scheduler)
    assert [receiver.events for _, receiver in together] == [receiver.events for _, receiver in alone]
    assert len({len(receiver.events) for _, receiver in alone}) > 5
