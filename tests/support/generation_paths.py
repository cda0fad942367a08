"""The two ways in which an engine generates on a CPU, for tests that run both."""

from __future__ import annotations

import pytest

from nanochat.inference import decode_batch, kv_cache, native_step

DECODE_BATCH, NATIVE = "decode batch", "native step"
GENERATION_PATHS = [
    DECODE_BATCH,
    pytest.param(
        NATIVE, marks=pytest.mark.skipif(not native_step.is_available(), reason="the Rust extension is not built")
    ),
]


def use_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generate in a `DecodeBatch`, with limits so small that its cache grows several times, or in the native step."""
    monkeypatch.setattr(kv_cache, "CACHE_CHUNK", 4)
    monkeypatch.setattr(decode_batch, "MAX_PREFILL_TOKENS", 60)
    if name == DECODE_BATCH:
        monkeypatch.setattr(native_step, "is_available", lambda: False)
