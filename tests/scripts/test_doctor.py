"""The doctor as a user calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nanochat.system import checkup
from scripts import doctor

ROOT = Path(__file__).resolve().parents[2]
PARTS = ["versions", "machine", "bf16", "device", "attention", "compile", "trainer", "disk", "data", "tokenizer"]


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "scripts.doctor", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=200)


def test_this_machine_can_train(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    done = run("--device=cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    lines = done.stdout.splitlines()
    found = {line[8:20].strip(): line[:8].strip() for line in lines if line[:6].strip() in ("ok", "notice", "FAIL")}
    assert list(found) == [*PARTS, "checkpoints"]
    assert found["device"] == found["attention"] == found["disk"] == "ok"
    assert found["data"] == found["tokenizer"] == "notice"
    assert "cpu, computing in float32" in done.stdout
    assert lines[-1] == "Ready to train."
    assert {path.name for path in base_dir.iterdir()} <= {"cpu.json"}


def test_an_obstacle_is_named_and_the_exit_code_is_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    findings = [("device", ("FAIL", "no such device")), ("disk", ("ok", "room"))]
    monkeypatch.setattr(doctor, "checkup", lambda _: findings)
    with pytest.raises(SystemExit) as stop:
        doctor.main(doctor.Config(device="cpu"))
    assert stop.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        "FAIL    device       no such device",
        "ok      disk         room",
        "Training is impossible here until this is mended: device.",
    ]


@pytest.mark.usefixtures("base_dir")
def test_an_impossible_setting_is_a_finding_and_a_wrong_one_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_DTYPE", "float8")
    monkeypatch.setattr(checkup, "NEEDED", (checkup.check_device,))
    assert dict(checkup.checkup("cpu"))["device"][0] == "FAIL"
    wrong = run("--device=tpu")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
