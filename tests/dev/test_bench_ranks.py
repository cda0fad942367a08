"""The benchmark of several processes runs, and its table is consistent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLAGS = "--depth=1 --head_dim=32 --vocab_size=300 --max_seq_len=16 --device_batch_size=2 --total_batch_size=64"


@pytest.mark.slow
@pytest.mark.usefixtures("base_dir")
def test_bench_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    command = [sys.executable, "-m", "dev.bench_ranks", *FLAGS.split(), "--compile=off", "--rounds=2", "--steps=2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    if "cores can be used" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    rows = {line[:12].strip(): line[12:].replace(",", "").split() for line in done.stdout.splitlines()[-4:]}
    assert list(rows) == ["one core", "ranks", "no overlap", "threads"]
    assert rows["one core"][1:] == ["1.00", "1.00", "to", "1.00"]
    for speed, ratio, lowest, _, highest in rows.values():
        assert float(speed) > 0
        assert float(lowest) <= float(ratio) <= float(highest)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    command = [sys.executable, "-m", "dev.bench_ranks", "--total_batch_size=4096", "--device_batch_size=16"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "cores can be used" in done.stderr or "does not divide" in done.stderr
