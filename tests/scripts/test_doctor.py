"""The doctor as a user calls it, on a healthy machine and with real faults."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanochat.common import UserError
from nanochat.system.machine_checks import OK
from scripts import doctor
from tests.support.talks import TOKENIZER

ROOT = Path(__file__).resolve().parents[2]
PARTS = [
    "versions",
    "machine",
    "bf16",
    "device",
    "attention",
    "generation",
    "compile",
    "memory",
    "trainer",
    "disk",
    "data",
    "tokenizer",
]
WITHOUT_EXTENSION = """
import sys
class Hook:
    def find_spec(self, name, path, target=None):
        if name == "nanochat.tokenization._rustbpe":
            raise ImportError("undefined symbol: PyObject")
sys.meta_path.insert(0, Hook())
from scripts import doctor
print(*doctor.check_tokenizer_trainer("cpu"))
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "scripts.doctor", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", timeout=200)


def grades(output: str) -> dict[str, str]:
    """The grade of each part in the doctor's output."""
    lines = output.splitlines()
    return {line[8:20].strip(): line[:8].strip() for line in lines if line[:6].strip() in ("ok", "notice", "FAIL")}


@pytest.mark.slow
def test_this_machine_can_train(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    done = run("--device=cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    grade_of = grades(done.stdout)
    assert list(grade_of) == [*PARTS, "checkpoints"]
    assert grade_of["device"] == grade_of["attention"] == grade_of["disk"] == "ok"
    assert grade_of["data"] == grade_of["tokenizer"] == "notice"
    assert "cpu, computing in float32" in done.stdout
    assert done.stdout.splitlines()[-1] == "Ready to train."
    assert {path.name for path in base_dir.iterdir()} <= {"cpu.json"}


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["a base folder that is a file", "an unknown dtype"])
def test_a_fault_is_named_and_the_exit_code_is_1(base_dir: Path, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    if fault == "an unknown dtype":
        monkeypatch.setenv("NANOCHAT_DTYPE", "float8")
        part, word = "device", "float8"
    else:
        (base_dir / "file").touch()
        monkeypatch.setenv("NANOCHAT_DTYPE", "float32")  # else bf16 is measured anew for each check that asks
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base_dir / "file"))
        part, word = "disk", "NANOCHAT_BASE_DIR"
    done = run("--device=cpu")
    assert done.returncode == 1
    assert not done.stderr
    grade_of = grades(done.stdout)
    assert list(grade_of) == [*PARTS, "checkpoints"], "the other checks still run"
    assert grade_of[part] == "FAIL"
    assert word in done.stdout
    failed = [name for name, grade in grade_of.items() if grade == "FAIL"]
    assert done.stdout.splitlines()[-1] == f"Training is impossible here until this is fixed: {', '.join(failed)}."


def test_a_wrong_setting_is_an_error() -> None:
    wrong = run("--device=tpu")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "tpu" in wrong.stderr


def test_without_the_rust_extension_there_is_a_notice() -> None:
    command = [sys.executable, "-c", WITHOUT_EXTENSION]
    output = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=200).stdout
    assert output.startswith("notice the Rust extension is not built (undefined symbol: PyObject)")
    assert "Hugging Face" in output


def test_what_a_run_has_made_is_found(base_dir: Path) -> None:
    assert doctor.check_checkpoints("cpu") == (OK, "none yet")
    with pytest.raises(UserError):
        doctor.check_data("cpu")
    with pytest.raises(UserError):
        doctor.check_trained_tokenizer("cpu")
    for step in ("step_000010", "step_000020"):
        folder = base_dir / "base_checkpoints" / "d4" / step
        folder.mkdir(parents=True)
        (folder / "meta.json").write_text(json.dumps({}), encoding="utf-8")
    (base_dir / "base_checkpoints" / "d4" / "step_000030").mkdir()
    paths = doctor.check_checkpoints("cpu").message.split(", ")
    assert paths == [str(Path("base_checkpoints", "d4", step)) for step in ("step_000010", "step_000020")]
    TOKENIZER.save(base_dir / "tokenizer")
    assert doctor.check_trained_tokenizer("cpu") == (OK, f"{TOKENIZER.get_vocab_size():,} tokens")


@pytest.mark.slow
def test_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of each depth that fits, as computed for a GPU of this size."""
    monkeypatch.setattr("nanochat.runtime.resolve_device", lambda *_: torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    for total, words in ((80e9, "d20 fits with 16 rows"), (1e9, "not even d12")):
        monkeypatch.setattr("nanochat.training.batch_size.memory_limit", lambda _, total=total: 0.9 * total)
        assert words in doctor.check_training_memory("cuda").message
