"""Tensor files: every damage is found by the hash, without one by the format; values that are not finite are found."""

from __future__ import annotations

import hashlib
import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from safetensors.torch import save_file

from nanochat.checkpoints import tensors
from nanochat.checkpoints.tensors import (
    file_facts,
    find_non_finite,
    find_weight_fault,
    hash_blocks,
    load_tensors,
    tensor_shapes,
)
from nanochat.common import UserError
from tests.support.damage import damaged_bytes, outcome

SMALL = {"a": torch.arange(12.0).view(3, 4), "b": torch.ones(2, dtype=torch.bfloat16), "c": torch.tensor(7)}


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 350])
def test_the_hash_of_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Compared with one computed block by block in memory; any number of threads gives the same."""
    monkeypatch.setattr(tensors, "BLOCK_BYTES", 100)
    content = bytes(range(256)) * 2
    (tmp_path / "a").write_bytes(content[:size])
    blocks = [hashlib.sha256(content[start : min(size, start + 100)]).digest() for start in range(0, size, 100)]
    expected = hashlib.sha256(b"".join(blocks)).hexdigest()
    for num_processes in ("1", "64"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", num_processes)
        assert hash_blocks(tmp_path / "a") == expected
    assert file_facts(tmp_path / "a") == {"bytes": size, "sha256_of_blocks": expected}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tensors") / "a.safetensors"
    save_file(SMALL, path)
    return path


def test_shapes(saved: Path) -> None:
    assert tensor_shapes(saved) == {"a": (3, 4), "b": (2,), "c": ()}
    loaded = load_tensors(saved, file_facts(saved))
    assert all(torch.equal(loaded[name], SMALL[name]) for name in SMALL)


def content() -> bytes:
    from safetensors.torch import save

    return save(SMALL)


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(damaged=damaged_bytes(content()))
def test_damage(saved: Path, damaged: bytes) -> None:
    """With a hash it is never silent. Without one the file is read or refused, in one line."""
    facts = file_facts(saved)
    other = saved.with_name("damaged.safetensors")
    other.write_bytes(damaged)
    if damaged != saved.read_bytes():
        with pytest.raises(UserError, match=rf"^{other} cannot be read \(.*remove its folder"):
            load_tensors(other, facts)
    for read in (load_tensors, tensor_shapes):
        result, message = outcome(partial(read, other))
        assert result is not None or message.startswith(f"{other} cannot be read (")


def test_sizes_are_bounded_by_the_file(tmp_path: Path) -> None:
    """A header that promises a tensor of 4 TB is refused before anything is allocated."""
    header = {"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}
    text = json.dumps(header).encode("utf-8")
    (tmp_path / "a").write_bytes(len(text).to_bytes(8, "little") + text + bytes(16))
    for read in (load_tensors, tensor_shapes):
        with pytest.raises(UserError, match="cannot be read"):
            read(tmp_path / "a")


def test_unusual_files(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError, match="cannot be read"):
            load_tensors(path, {"bytes": 1, "sha256_of_blocks": ""})
        with pytest.raises(UserError, match="cannot be read"):
            tensor_shapes(path)
    (tmp_path / "empty").touch()
    with pytest.raises(UserError, match="cannot be read"):
        load_tensors(tmp_path / "empty")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float8_e5m2])
def test_values_that_are_not_finite(value: float, dtype: torch.dtype) -> None:
    fine = {"a": torch.ones(3, 4).to(dtype), "n": torch.arange(3), "empty": torch.ones(0)}
    assert find_non_finite(fine) is None
    bad = torch.ones(3, 4)
    bad[1, 2] = value
    assert find_non_finite({**fine, "b": bad.to(dtype)}) == "b"
    bad[2, 1] = -value  # infinities that cancel in a sum
    assert find_non_finite({**fine, "b": bad.to(dtype)}) == "b"


def test_a_sum_that_is_too_large() -> None:
    """Large values are finite, even if their sum is not."""
    assert find_non_finite({"a": torch.full((4,), 3e38), "b": torch.full((4,), -3e38)}) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -3e38, 1e25])
def test_weights_without_a_norm(value: float) -> None:
    """As `Optimizer.weights_norm`: a square that overflows float32 is refused, also of a sum over several tensors."""
    fine = {"a": torch.full((3, 4), 1e18), "n": torch.arange(3), "empty": torch.ones(0)}
    assert find_weight_fault(fine) is None
    bad = torch.ones(3, 4)
    bad[1, 2] = value
    name, words = find_weight_fault({**fine, "b": bad}) or ("", "")
    assert name == "b"
    assert words == ("too large: the squares overflow" if math.isfinite(value) else "not finite")
    many = {str(i): torch.full((1,), 1.5e19) for i in range(4)}
    assert find_weight_fault({"0": many["0"]}) is None
    assert not torch.linalg.vector_norm(torch.cat(list(many.values()))).isfinite()
    assert find_weight_fault(many) is not None
