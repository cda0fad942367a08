"""The packer against slow twins: best fit by trying all rows, and the rows taken apart again."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanochat.common import UserError
from nanochat.data import packing
from nanochat.data.packing import (
    PackedRow,
    PackingCursor,
    best_fit,
    conversation_batches,
    conversation_eval_rows,
    count_rows,
    packed_batches,
    packed_rows,
)
from nanochat.dataloader import MicroBatch
from nanochat.gpt import GPT
from nanochat.optim import build_optimizer
from nanochat.runtime import Runtime
from nanochat.train import Rates, step
from tests.support.models import random_model
from tests.support.processes import Forker
from tests.support.talks import BOS, MIXTURES, TOKENIZER, Talk, sums, talk

SIZES = st.sampled_from([64, 100, 256, 512])
RenderedConversation = tuple[tuple[int, ...], tuple[int, ...]]


def runtime(rank: int = 0, world_size: int = 1) -> Runtime:
    return Runtime(rank, rank, world_size, torch.device("cpu"), torch.float32, 0)


def rendered(talks: Sequence[Talk], sequence_len: int) -> Counter[RenderedConversation]:
    """What there is to learn in an epoch."""
    found = (TOKENIZER.render_conversation(one, sequence_len + 1) for one in talks)
    return Counter((tuple(ids), tuple(mask)) for ids, mask in found if ids)


def taken_apart(tokens: Sequence[int], targets: Sequence[int]) -> list[RenderedConversation]:
    """The conversations of a row with their masks; what is left must be padding."""
    starts = [i for i, token in enumerate(tokens) if token == BOS]
    found = []
    for start, end in itertools.pairwise([*starts, len(tokens)]):
        mask = [int(target != -1) for target in targets[start : end - 1]]
        assert [t for t in targets[start : end - 1] if t != -1] == [
            token for token, trained in zip(tokens[start + 1 : end], mask, strict=True) if trained
        ]
        if end < len(tokens):
            assert targets[end - 1] == -1, "what begins a conversation is not learnt from the one before it"
        if end - start > 1:
            found.append((tuple(tokens[start:end]), (0, *mask)))
    return found


def conversations_of(rows: Sequence[PackedRow]) -> Counter[RenderedConversation]:
    return Counter(one for row in rows for one in taken_apart(row.tokens.tolist(), row.targets.tolist()))


@pytest.fixture(params=[3, 2048], ids="chunk{}".format)
def chunk(request: pytest.FixtureRequest) -> Iterator[int]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "CHUNK_SIZE", request.param)
        yield request.param


# --- best fit ---------------------------------------------------------------------------------------------------------


@given(lengths=st.lists(st.integers(1, 30), max_size=60), capacity=st.integers(30, 40))
def test_best_fit(lengths: list[int], capacity: int) -> None:
    """The longest first, each into the fullest row that has room."""
    rows: list[list[int]] = []

    def room(row: list[int]) -> int:
        return capacity - sum(lengths[i] for i in row)

    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [row for row in rows if room(row) >= lengths[index]]
        if fitting:
            min(fitting, key=lambda row: (room(row), rows.index(row))).append(index)
        else:
            rows.append([index])
    assert best_fit(lengths, capacity) == rows
    assert sorted(itertools.chain.from_iterable(rows)) == list(range(len(lengths)))


def test_best_fit_wastes_little() -> None:
    """Of 2,048 lengths as a chat mixture has them, under 2% of the room."""
    lengths = np.random.default_rng(0).lognormal(4.0, 0.8, 2048).astype(int).clip(8, 257).tolist()
    assert sum(lengths) / (257 * len(best_fit(lengths, 257))) > 0.98


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("chunk")
@given(talks=MIXTURES, sequence_len=SIZES, seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_every_conversation_once_and_whole(talks: list[Talk], sequence_len: int, seed: int) -> None:
    """In each of three epochs; every trained token is a target once; nothing else is; no row is without one."""
    expected = rendered(talks, sequence_len)
    assume(expected)
    rows = list(packed_rows(talks, TOKENIZER, sequence_len, seed, num_epochs=3))
    for epoch in range(3):
        mine = [row for row in rows if row.cursor.epoch == epoch]
        assert conversations_of(mine) == expected
        assert all(row.tokens.shape == (sequence_len + 1,) and row.targets.shape == (sequence_len,) for row in mine)
        assert all((row.targets != -1).any() for row in mine)
    last = rows[-1].cursor
    assert last.rows == len(rows)
    assert last.tokens == 3 * sum(len(ids) * count for (ids, _), count in expected.items())
    assert last.trained == 3 * sum(sum(mask) * count for (_, mask), count in expected.items())
    assert last.left_out <= 3 * (len(talks) - expected.total())
    assert [row.progress for row in rows] == sorted({row.progress for row in rows})
    assert rows[0].progress < 1 / 3
    assert rows[-1].progress < 1


@given(talks=MIXTURES, sequence_len=SIZES)
@settings(max_examples=25, deadline=None)
def test_resumes_at_every_row(talks: list[Talk], sequence_len: int) -> None:
    """Over two epochs, in small chunks: what comes after a cursor is what came after it."""
    assume(rendered(talks, sequence_len))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing, "CHUNK_SIZE", 4)
        rows = list(packed_rows(talks, TOKENIZER, sequence_len, 5, num_epochs=2))
        for index, row in enumerate(rows):
            again = list(packed_rows(talks, TOKENIZER, sequence_len, 5, 2, PackingCursor(**asdict(row.cursor))))
            assert [one.cursor for one in again] == [one.cursor for one in rows[index + 1 :]]
            assert [one.progress for one in again] == [one.progress for one in rows[index + 1 :]]
            for one, twin in zip(again, rows[index + 1 :], strict=True):
                assert one.tokens.tolist() == twin.tokens.tolist()
                assert one.targets.tolist() == twin.targets.tolist()


def test_orders() -> None:
    """An epoch, the next and another seed: the same conversations in other rows. Neither rows nor what is in them are
    sorted by length."""
    talks = [talk("q" * (3 * i % 70), "a" * (7 * i % 50 + 1)) for i in range(300)]
    rows = list(packed_rows(talks, TOKENIZER, 128, 0, num_epochs=2))
    other = list(packed_rows(talks, TOKENIZER, 128, 1, num_epochs=1))
    epochs = [[row.tokens.tolist() for row in rows if row.cursor.epoch == epoch] for epoch in (0, 1)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != [row.tokens.tolist() for row in other]
    first = [[len(ids) for ids, _ in taken_apart(row.tokens.tolist(), row.targets.tolist())] for row in rows]
    assert 0.3 < np.mean([lengths[0] == max(lengths) for lengths in first if len(set(lengths)) > 1]) < 0.7
    longest = [max(lengths) for lengths in first[: len(epochs[0])]]
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.3


def test_nothing_to_learn() -> None:
    """Questions without an answer, or answers that are out of reach: told, not waited for."""
    for talks in ([talk("a question")], [talk("q" * 100, "a")] * 3, []):
        with pytest.raises(UserError, match=f"none of {len(talks)} conversations has an answer that fits into 64"):
            next(packed_rows(talks, TOKENIZER, 64, 0))


def test_left_out_are_counted() -> None:
    talks = [talk("no answer"), *sums(5), talk("q" * 99, "a"), talk("no answer")]
    assert list(packed_rows(talks, TOKENIZER, 64, 0, num_epochs=2))[-1].cursor.left_out == 6


def test_what_is_no_conversation_is_named() -> None:
    talks = [*sums(7), {"messages": [{"role": "user", "content": "a"}] * 2}]
    with pytest.raises(UserError, match="conversation 7: message 2: role 'user' where 'assistant' is due"):
        next(packed_rows(talks, TOKENIZER, 64, 0))


def test_count_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted where there are few conversations, estimated where there are many."""
    monkeypatch.setattr(packing, "CHUNK_SIZE", 50)
    talks = sums(1000)
    exact = len(list(packed_rows(talks, TOKENIZER, 100, 3, num_epochs=1)))
    assert count_rows(talks, TOKENIZER, 100) == exact
    monkeypatch.setattr(packing, "MAX_EXACT_COUNT", 999)
    monkeypatch.setattr(packing, "COUNT_SAMPLE_SIZE", 200)
    assert count_rows(talks, TOKENIZER, 100) == pytest.approx(exact, rel=0.1)


# --- batches ----------------------------------------------------------------------------------------------------------


def batches_of(
    talks: list[Talk], rank: int, world_size: int, batch_size: int, num_rows: int | None = None
) -> list[MicroBatch]:
    rows = packed_rows(talks, TOKENIZER, 64, 0, None if num_rows else 2)
    return list(packed_batches(rows, runtime(rank, world_size), batch_size, num_rows))


@given(talks=MIXTURES, world_size=st.integers(1, 3), batch_size=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_the_same_rows_for_every_number_of_processes(talks: list[Talk], world_size: int, batch_size: int) -> None:
    """Side by side they are the rows of the run; what fills the last batch is nobody's target."""
    assume(rendered(talks, 64))
    rows = list(packed_rows(talks, TOKENIZER, 64, 0, num_epochs=2))
    ranks = [batches_of(talks, rank, world_size, batch_size) for rank in range(world_size)]
    for batches in ranks:
        assert [(b.progress, b.cursor) for b in batches] == [(b.progress, b.cursor) for b in ranks[0]]
        assert all(batch.inputs.shape == batch.targets.shape == (batch_size, 64) for batch in batches)
    both = [torch.stack([batch.inputs, batch.targets]) for group in zip(*ranks, strict=True) for batch in group]
    inputs, targets = torch.cat(both, dim=1)
    assert inputs[: len(rows)].tolist() == [row.tokens[:-1].tolist() for row in rows]
    assert targets[: len(rows)].tolist() == [row.targets.tolist() for row in rows]
    assert len(inputs) - len(rows) < world_size * batch_size
    assert (targets[len(rows) :] == -1).all()
    assert (inputs[len(rows) :] == BOS).all()
    step_rows = world_size * batch_size
    assert [batch.progress for batch in ranks[0]] == [rows[i].progress for i in range(0, len(rows), step_rows)]
    assert ranks[0][-1].cursor == asdict(rows[-1].cursor)


def test_a_horizon_in_rows() -> None:
    """As many as asked for, over as many epochs as that takes; progress counts rows."""
    talks = sums(10)
    per_epoch = count_rows(talks, TOKENIZER, 64)
    batches = batches_of(talks, 0, 2, 2, num_rows=3 * per_epoch // 4 * 4)
    assert [batch.progress for batch in batches] == [i / len(batches) for i in range(len(batches))]
    assert batches[-1].cursor["rows"] == 3 * per_epoch // 4 * 4
    assert batches[-1].cursor["epoch"] == 2
    assert all((batch.targets != -1).any(dim=1).all() for batch in batches)


def test_the_thread_changes_nothing() -> None:
    talks = sums(50)
    plain = batches_of(talks, 1, 2, 2)
    for skipped in (0, 4):
        cursor = plain[skipped - 1].cursor if skipped else None
        loader = conversation_batches(talks, TOKENIZER, runtime(1, 2), 2, 64, num_epochs=2, cursor=cursor)
        for batch, twin in zip(loader, plain[skipped:], strict=True):
            assert batch.inputs.equal(twin.inputs)
            assert batch.targets.equal(twin.targets)
            assert (batch.progress, batch.cursor) == (twin.progress, twin.cursor)


def test_conversation_eval_rows() -> None:
    talks = [*sums(30), talk("no answer")]
    inputs, targets = conversation_eval_rows(talks, TOKENIZER, 64, 10**6)
    assert len(inputs) == len(targets) == count_rows(talks, TOKENIZER, 64)
    assert int((targets != -1).sum()) == sum(sum(mask) for _, mask in rendered(talks, 64).elements())
    few, few_targets = conversation_eval_rows(talks, TOKENIZER, 64, 3 * 64 + 63)
    assert few.equal(inputs[:3])
    assert few_targets.equal(targets[:3])
    for empty in ([], [talk("no answer"), talk("q" * 99, "out of reach")]):
        nothing, none = conversation_eval_rows(empty, TOKENIZER, 64, 10**6)
        assert nothing.shape == none.shape == (0, 64)


def test_conversation_eval_rows_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """From as many chunks as it takes, and no more."""
    monkeypatch.setattr(packing, "CHUNK_SIZE", 10)
    talks = sums(60)
    inputs, _ = conversation_eval_rows(talks, TOKENIZER, 64, 10**6)
    assert len(inputs) == count_rows(talks, TOKENIZER, 64)
    per_chunk = count_rows(talks[:10], TOKENIZER, 64)
    few, _ = conversation_eval_rows([*talks[:20], {}], TOKENIZER, 64, (per_chunk + 1) * 64)
    assert few.equal(inputs[: per_chunk + 1])


# --- steps ------------------------------------------------------------------------------------------------------------


def tiny_model(sequence_len: int) -> GPT:
    return random_model(sequence_len, seed=7)


@given(talks=MIXTURES, sequence_len=SIZES, micro=st.sampled_from([1, 3]))
@settings(max_examples=15, deadline=None)
def test_no_step_gives_nan(talks: list[Talk], sequence_len: int, micro: int) -> None:
    """Whatever is in a mixture, also in the last step, where most rows may be padding."""
    assume(rendered(talks, sequence_len))
    model = tiny_model(sequence_len)
    optimizer = build_optimizer(model, runtime())
    rows = packed_rows(talks, TOKENIZER, sequence_len, 0, num_epochs=1)
    batches = packed_batches(rows, runtime(), 4, None)
    while group := list(itertools.islice(batches, micro)):
        loss, norm, _ = step(model, optimizer, group, Rates(1.0, 0.9), lambda: 0)
        assert 0 < loss < 100
        assert 0 < norm < 1000
    assert all(param.isfinite().all() for param in model.parameters())


def gradients(micro: int, here: Runtime) -> dict[str, Tensor]:
    """Gradients and loss of one step on eight rows: what the optimizer makes of the processes'."""
    model = tiny_model(64)
    optimizer = build_optimizer(model, here)
    found: dict[str, Tensor] = {}

    def spy(*_: float) -> Tensor:
        for name, param in model.named_parameters():
            assert param.grad is not None
            found[name] = here.sum(param.grad.clone()) / here.world_size
        return torch.zeros(())

    optimizer.step = spy  # type: ignore[method-assign]
    rows = packed_rows(sums(17), TOKENIZER, 64, 0, num_epochs=1)  # seven rows, and one of padding
    batches = list(packed_batches(rows, here, 8 // micro // here.world_size, None))
    assert len(batches) == micro
    found["loss"] = torch.tensor(step(model, optimizer, batches, Rates(1.0, 0.9), lambda: 0)[0])
    return found


def test_micro_batches_and_processes_change_nothing(forker: Forker, tmp_path: Path) -> None:
    """A step's gradients with 1, 2 and 4 micro-batches, on 1 and 2 processes: to rounding, those of the mean over all
    trained tokens."""
    model = tiny_model(64)
    rows = list(packed_rows(sums(17), TOKENIZER, 64, 0, num_epochs=1))
    assert len(rows) == 7
    inputs = torch.tensor(np.stack([row.tokens[:-1] for row in rows]))
    targets = torch.tensor(np.stack([row.targets for row in rows]))
    nats = [model(one[None], wanted[None], loss_reduction="sum") for one, wanted in zip(inputs, targets, strict=True)]
    loss = torch.stack(nats).sum() / (targets != -1).sum()
    loss.backward()
    expected = {name: param.grad for name, param in model.named_parameters()} | {"loss": loss.detach()}
    found = {f"1 process, {micro}": gradients(micro, runtime()) for micro in (1, 2, 4)}
    forker.together(save_gradients, tmp_path, NANOCHAT_DTYPE="float32")
    for micro in (1, 2, 4):
        found[f"2 processes, {micro}"] = torch.load(tmp_path / f"{micro}.pt", weights_only=True)
    for name, one in found.items():
        for key, value in expected.items():
            torch.testing.assert_close(one[key], value, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


def save_gradients(folder: Path) -> None:
    """What one of two processes does."""
    here = Runtime.start(device="cpu")
    for micro in (1, 2, 4):
        found = gradients(micro, here)
        if here.is_main:
            torch.save(found, folder / f"{micro}.pt")
    here.finish()
