"""Headers of GGUF files that are cut, lie about lengths, or are none."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.export.gguf_header import check_header
from tests.support.exports import loud_model
from tests.support.gguf import SHAPES, write


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file as it is written."""
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write(path, loud_model(SHAPES["one key-value head"]))
    return path.read_bytes()


def check(path: Path, content: bytes) -> None:
    """Write and check a file."""
    path.write_bytes(content)
    check_header(path, 1 << 30)


def header(*parts: tuple[str, int] | bytes) -> bytes:
    """Return a header of version 3 from numbers, as (layout, value), and bytes."""
    packed = [part if isinstance(part, bytes) else struct.pack("<" + part[0], part[1]) for part in parts]
    return b"GGUF" + struct.pack("<I", 3) + b"".join(packed)


KEY = [("Q", 1), b"k"]
FAULTS = {
    "empty": (b"", "it is empty"),
    "text": (b"no model at all", "begins with b'no m'"),
    "version": (b"GGUF" + struct.pack("<I", 99), "version is 99"),
    "keys": (header(("Q", 0), ("Q", 1 << 60)), "ends within its header"),
    "tensors": (header(("Q", 1 << 60), ("Q", 0)), "ends within its header"),
    "length of a name": (header(("Q", 0), ("Q", 1), ("Q", 1 << 63), b"k"), "9,223,372,036,854,775,808 bytes are due"),
    "type": (header(("Q", 0), ("Q", 1), *KEY, ("I", 77), b"1234"), "type 77"),
    "items": (header(("Q", 0), ("Q", 1), *KEY, ("I", 9), ("I", 6), ("Q", 1 << 61)), "ends within its header"),
    "texts": (header(("Q", 0), ("Q", 1), *KEY, ("I", 9), ("I", 8), ("Q", 1 << 61)), "ends within its header"),
    "arrays of arrays": (header(("Q", 0), ("Q", 1), *KEY, ("I", 9), ("I", 9), ("Q", 1)), "type 9"),
    "dimensions": (header(("Q", 1), ("Q", 0), *KEY, ("I", 1 << 31)), "2,147,483,648 dimensions"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault: str, tmp_path: Path) -> None:
    damaged, message = FAULTS[fault]
    with pytest.raises(UserError, match=message) as caught:
        check(tmp_path / "m.gguf", damaged)
    assert str(caught.value).startswith(f"{tmp_path / 'm.gguf'} cannot be read as GGUF: ")


def test_a_whole_file(content: bytes, tmp_path: Path) -> None:
    check(tmp_path / "m.gguf", content)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_cut_and_any_number(data: st.DataObject, content: bytes, tmp_path: Path) -> None:
    """A header that is cut is refused; eight other bytes anywhere in it end in a message or are passed over."""
    end = 4000 + data.draw(st.integers(0, len(content) - 4000))
    at = data.draw(st.integers(0, 4000))
    with pytest.raises(UserError, match="cannot be read as GGUF"):
        check(tmp_path / "m.gguf", content[:at])
    other = data.draw(st.binary(min_size=8, max_size=8))
    with contextlib.suppress(UserError):
        check(tmp_path / "m.gguf", content[:at] + other + content[at + 8 : end])
