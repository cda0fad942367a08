"""meta.json: damage of every kind is one line, and meta.json of earlier versions is read as before."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat.checkpoint_manager import Checkpoint
from nanochat.checkpoints.meta import META_FILE, read_meta, seal
from nanochat.common import UserError
from tests.support.damage import damaged_bytes, mutated_json, outcome
from tests.support.training import META

WHOLE: Any = {
    "format": 1,
    "arch": "classic",
    "step": 400,
    "serial": 3,
    **META,
    "settings": {"depth": 4, "name": "ä run", "max_seq_len": 16, "total_batch_size": 64, "seed": 42, "run": None},
    "data_hash": "12",
    "world_size": 1,
    "loop": {"step": 400, "progress": 0.5, "history": [{"step": 4, "loss": 1.5}], "cursor": {"epoch": 0}},
    "files": {"model.safetensors": {"bytes": 12, "sha256_of_blocks": "ab"}},
}
PLAIN = {key: value for key, value in WHOLE.items() if key != "files"}  # as earlier versions wrote it


def write(folder: Path, content: bytes | str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / META_FILE).write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return folder


def test_round_trip(tmp_path: Path) -> None:
    text = seal(WHOLE)
    read: Any = read_meta(write(tmp_path / "a", text))
    assert {key: value for key, value in read.items() if key != "sha256"} == WHOLE
    assert json.loads(text)["sha256"] == read["sha256"]
    assert len(read["sha256"]) == 64


def test_earlier_versions(tmp_path: Path) -> None:
    """No hashes, any layout of the text, no soft cap, and a loss that was not a number."""
    for indent in (None, 2):
        assert read_meta(write(tmp_path / "a", json.dumps(PLAIN, indent=indent))) == PLAIN
    shape = {name: value for name, value in META["model_config"].items() if name != "softcap"}
    older = read_meta(write(tmp_path / "a", json.dumps({**PLAIN, "model_config": shape})))
    assert Checkpoint(tmp_path / "a", older).shape.softcap == 15
    path = write(tmp_path / "a", json.dumps({**PLAIN, "loop": {"recent": [math.nan, math.inf]}}))
    assert str(read_meta(path)["loop"]["recent"]) == "[nan, inf]"


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(content=damaged_bytes(seal(WHOLE).encode("utf-8")))
def test_damage_is_never_silent(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """A flipped bit anywhere, in a space or in the hash itself too; a cut end; zeros."""
    path = write(tmp_path_factory.getbasetemp() / "damaged", content)
    if content == seal(WHOLE).encode("utf-8"):  # zeros that were none before are always a change
        return
    with pytest.raises(UserError) as failure:
        read_meta(path)
    assert str(path) in str(failure.value)
    assert str(failure.value).isprintable()


@settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(meta=mutated_json(PLAIN), is_sealed=st.booleans())
def test_wrong_types(tmp_path_factory: pytest.TempPathFactory, meta: Any, is_sealed: bool) -> None:
    """Refused in one line, or of the types that readers rely on; also if somebody has made the hash anew."""
    path = write(tmp_path_factory.getbasetemp() / "mutated", seal(meta) if is_sealed else json.dumps(meta))
    read, message = outcome(lambda: read_meta(path))
    if read is None:
        assert str(path) in message
        return
    assert all(type(read[key]) is int for key in ("step", "serial"))  # type: ignore[literal-required]
    assert read["step"] >= 0
    shape = dict(read["model_config"])
    assert 0 <= shape.pop("softcap", 15.0) <= 64
    assert set(shape) == set(META["model_config"]) - {"softcap"}
    assert all(type(value) is int and 0 < value < 2**23 for value in shape.values())
    assert read["compute_dtype"] in ("float32", "bfloat16")
    assert isinstance(read.get("settings", {}).get("total_batch_size", 0), int)
    assert isinstance(read.get("loop", {}), dict)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"step": None}, "step is None: must be a whole number"),
        ({"step": True}, "step is True: must be a whole number"),
        ({"serial": -1}, "serial is -1: must be at least 0"),
        ({"compute_dtype": "float16"}, "compute_dtype is 'float16': must be one of float32, bfloat16"),
        ({"model_config": {}}, "model_config.n_embd is missing"),
        ({"model_config": {**META["model_config"], "n_layer": 10**9}}, "n_layer is 1,000,000,000: it must be at most"),
        ({"model_config": {**META["model_config"], "sequence_len": 10**12}}, "sequence_len is 1,000,000,000,000"),
        ({"model_config": {**META["model_config"], "softcap": "15"}}, "softcap is '15': must be a number"),
        ({"model_config": {**META["model_config"], "softcap": 0.5}}, "softcap is 0.5: it must be 0 .* or from 1 to 64"),
        ({"model_config": {**META["model_config"], "softcap": -15}}, "softcap is -15: it must be 0"),
        ({"model_config": {**META["model_config"], "softcap": 1e300}}, r"softcap is 1e\+300: it must be 0"),
        ({"model_config": {**META["model_config"], "depth": 4}}, "model_config.depth is not a known key"),
        ({"settings": {"max_seq_len": "16"}}, "settings.max_seq_len is '16': must be a whole number"),
        ({"loop": []}, r"loop is \[\]: must be an object"),
        ({"files": {"model.safetensors": {"bytes": 1}}}, "the SHA-256 at its end is missing"),
    ],
)
def test_messages(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    path = write(tmp_path / "step_000004", json.dumps({**PLAIN, **change}))
    with pytest.raises(
        UserError, match=rf"step_000004.meta.json is damaged.*{words}.*\(remove .*step_000004, or choose"
    ):
        read_meta(path)
