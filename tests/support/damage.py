"""Harm to files, by hypothesis: flipped bits, cuts, zeros, and JSON whose values have other types."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from nanochat.common import UserError

T = TypeVar("T")

# What people, disks and programs put in the place of a value.
OTHER_VALUES: list[Any] = [
    *(None, True, 0, -1, 1, 10**9, 2**63, 1.5, -0.0, 1e308, "", "x", "../x", "\x1b[31m", "1" * 5000),
    *([], [0], ["a"], [[]], {}, {"a": 1}, {"": None}),
]


def outcome(read: Callable[[], T]) -> tuple[T | None, str]:
    """Call `read`; return its result and "", or None and the message of its UserError, which must be one plain line."""
    try:
        return read(), ""
    except UserError as error:
        message = str(error)
    assert message.isprintable()
    assert len(message) < 1000
    return None, message


def as_earlier_version(checkpoint: Path) -> None:
    """Make a checkpoint one of a version that wrote no hashes."""
    path = checkpoint / "meta.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps({key: meta[key] for key in meta if key not in ("files", "sha256")}, indent=2), encoding="utf-8"
    )


def diverge(checkpoint: Path) -> None:
    """Make a checkpoint one of a version that saved weights that are not finite, in the last layer's last matrix."""
    as_earlier_version(checkpoint)
    weights = load_file(checkpoint / "model.safetensors")
    weights["head.weight"][1, 1] = torch.nan
    save_file(weights, checkpoint / "model.safetensors")


@st.composite
def damaged_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """`content` with one flipped bit, a cut end, or zeros in the place of a part."""
    kind = draw(st.sampled_from(["flip", "cut", "zeros"]))
    place = draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        changed = content[place] ^ (1 << draw(st.integers(0, 7)))
        return content[:place] + bytes([changed]) + content[place + 1 :]
    if kind == "cut":
        return content[:place]
    end = min(len(content), place + draw(st.sampled_from([1, 16, 4096])))
    return content[:place] + bytes(end - place) + content[end:]


@st.composite
def mutated_json(draw: st.DrawFn, value: Any) -> Any:
    """`value`, of JSON, with one value at any depth that is another one, missing, or under another key."""
    value = copy.deepcopy(value)
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(keys))
        child = place[key]
        if isinstance(child, (dict, list)) and child and draw(st.booleans()):
            place = child
            continue
        kind = draw(st.sampled_from(["other", "other", "other", "missing", "renamed"]))
        if kind == "other":
            place[key] = draw(st.sampled_from(OTHER_VALUES))
        elif kind == "missing" or isinstance(place, list):
            del place[key]
        else:
            place[f"{key}_"] = place.pop(key)
        return value
