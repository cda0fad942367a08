"""The training curves of the model and of its plain twin, on a small scale."""

from __future__ import annotations

from pathlib import Path

import pytest

from dev import check_twin


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_learns_as_its_twin_does(
    base_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], dtype: str
) -> None:
    """The curves differ by no more than rounding makes two runs of the twin differ."""
    assert base_dir.is_dir()  # the speed of bf16 is noted there
    monkeypatch.setenv("NANOCHAT_DTYPE", dtype)
    config = check_twin.Config(
        device="cpu", depth=1, head_dim=16, vocab_size=64, max_seq_len=32, batch_size=8, steps=60, compile="off"
    )
    curves = check_twin.main(config)
    assert "changed twin - twin" in capsys.readouterr().out

    def distance(run: str) -> float:
        return max(abs(a - b) for a, b in zip(curves[run], curves["twin"], strict=True))

    assert curves["twin"][-1] < curves["twin"][0] - 1, "nothing was learnt"
    assert distance("model") <= 5 * distance("changed twin") + 1e-5
