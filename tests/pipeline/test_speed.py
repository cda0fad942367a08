"""The speed of this machine: measured, written and read, and refused if the file is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.common import UserError
from nanochat.configurator import parse
from nanochat.pipeline import speed
from nanochat.pipeline.speed import Config, Round, main, read_speed, speed_path
from nanochat.runtime import Runtime


@pytest.mark.slow
def test_measured(run_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "DEPTH", 2)
    monkeypatch.setattr(speed, "REPEATS", 1)
    monkeypatch.setattr(speed, "MAX_SECONDS", 1.0)
    measured = main(parse(Config, ["--device=cpu"]))
    assert measured["flops_per_second"] > 1e6
    assert read_speed() == measured
    assert speed_path() == run_here / "speed.json"


@pytest.mark.usefixtures("run_here")
@pytest.mark.parametrize(
    ("shares", "chosen", "is_busy"),
    [((0.9,), 0, False), ((0.1, 0.2, 0.8), 2, False), ((0.1, 0.3, 0.2), 1, True)],
    ids=["quiet", "quiet later", "busy"],
)
def test_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    shares: tuple[float, ...],
    chosen: int,
    is_busy: bool,
) -> None:
    """A burst of other work does not decide the size of a run; work that stays does, and is named."""
    rounds = iter([Round(1.0, 0.0), *(Round(1e9 * share, share) for share in shares)])  # the first one is not used
    clock = iter([0.0, *[1.0] * (len(shares) - 1), 100.0])
    runtime = Runtime.start(device="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(speed, "build_model", lambda *_: None)
        patch.setattr(speed, "measure_round", lambda *_: next(rounds))
        patch.setattr(speed.time, "monotonic", lambda: next(clock))
        measured = speed.measure_speed(runtime)
    runtime.finish()
    assert measured.share == shares[chosen]
    monkeypatch.setattr(speed, "measure_speed", lambda _: measured)
    main(parse(Config, ["--device=cpu"]))
    assert ("NOTICE: training had only" in capsys.readouterr().out) == is_busy


@pytest.mark.parametrize("content", ["[]", "{}", '{"device": "cpu", "flops_per_second": 0}', '{"device": 3}', "x"])
def test_a_damaged_file(base_dir: Path, content: str) -> None:
    (base_dir / "speed.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError):
        read_speed()
