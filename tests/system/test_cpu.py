"""Probing bf16 products: its results, what is stored of them, and when it happens; and the allocator's settings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.system import cpu
from nanochat.system.cpu import ISA_VARIABLE, ISA_WITHOUT_AMX

ROOT = Path(__file__).resolve().parents[2]
Outcome = Callable[[str], "float | str | int | None"]


class Processor:
    """Replaces `subprocess.run`: `outcome(limit)` is the output of a probe under that value of ISA_VARIABLE.

    An int is an exit code instead (negative: the signal that ended the probe), None a timeout.
    """

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.limits: list[str] = []  # of all probes so far

    def run(self, command: list[str], *, env: dict[str, str], timeout: float, **_: object) -> object:
        limit = env.get(ISA_VARIABLE, "")
        self.limits.append(limit)
        outcome = self.outcome(limit)
        if outcome is None:
            raise subprocess.TimeoutExpired(command, timeout)
        if isinstance(outcome, int):
            return subprocess.CompletedProcess(command, outcome, stdout="", stderr="")
        # Generation gains half as much as training; a text is printed as it is.
        stdout = outcome if isinstance(outcome, str) else f"{outcome} {outcome / 2}"
        return subprocess.CompletedProcess(command, 0, stdout=f"{stdout}\n", stderr="")


@pytest.fixture
def machine(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Outcome], Processor]:
    """Return a function that replaces the processor by one with AMX and AVX512-BF16; the environment sets no limit."""
    assert not list(base_dir.iterdir())  # no stored results
    monkeypatch.setenv(ISA_VARIABLE, "")  # pytest restores the variable even if the test sets it
    monkeypatch.delenv(ISA_VARIABLE)
    monkeypatch.setattr(cpu, "cpu_flags", lambda: {"sse", "avx512_bf16", "amx_bf16"})

    def replace(outcome: Outcome) -> Processor:
        processor = Processor(outcome)
        monkeypatch.setattr(cpu.subprocess, "run", processor.run)
        return processor

    return replace


ILLEGAL_INSTRUCTION = -4


def broken_amx(limit: str) -> float | int:
    return 1.5 if limit == ISA_WITHOUT_AMX else ILLEGAL_INSTRUCTION


def test_working_products_need_no_limit(machine: Callable[[Outcome], Processor]) -> None:
    processor = machine(lambda _: 3.25)
    assert cpu.measure_bf16_speedup() == 3.25
    assert processor.limits == [""]
    assert ISA_VARIABLE not in os.environ


def test_an_illegal_instruction_leads_to_a_limit(
    machine: Callable[[Outcome], Processor], capsys: pytest.CaptureFixture[str]
) -> None:
    processor = machine(broken_amx)
    assert cpu.measure_bf16_speedup() == 1.5
    assert processor.limits == ["", ISA_WITHOUT_AMX]
    assert os.environ[ISA_VARIABLE] == ISA_WITHOUT_AMX
    assert capsys.readouterr().out.count("Trying bf16") == 1


@pytest.mark.parametrize("outcome", [ILLEGAL_INSTRUCTION, 1, None, "no number", "", "1.5"])
def test_products_that_never_work_are_not_used(
    machine: Callable[[Outcome], Processor], outcome: float | str | int | None
) -> None:
    processor = machine(lambda _: outcome)
    assert cpu.measure_bf16_speedup() is None
    assert cpu.measure_bf16_decode_speedup() is None
    assert processor.limits == ["", ISA_WITHOUT_AMX]


def test_generation_is_measured_with_training(machine: Callable[[Outcome], Processor]) -> None:
    processor = machine(lambda _: 1.5)
    assert cpu.measure_bf16_decode_speedup() == 0.75
    assert cpu.measure_bf16_speedup() == 1.5
    assert processor.limits == [""]  # one measurement for both


@pytest.mark.parametrize("ended", [None, -9, -24, -15])  # a timeout, SIGKILL, SIGXCPU, SIGTERM
def test_a_measurement_that_was_ended_is_not_stored(
    machine: Callable[[Outcome], Processor], ended: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A busy machine or a limit of memory says nothing of the processor: the next process measures again."""
    processor = machine(lambda limit: 1.5 if limit == ISA_WITHOUT_AMX else ended)
    assert cpu.measure_bf16_speedup() == 1.5
    assert cpu.measure_bf16_speedup() == 1.5
    assert len(processor.limits) == 2
    monkeypatch.delenv(ISA_VARIABLE)
    monkeypatch.setattr(cpu, "_uncertain", {})
    processor = machine(lambda _: 3.25)
    assert cpu.measure_bf16_speedup() == 3.25
    assert processor.limits == [""]


def test_the_result_is_stored(
    machine: Callable[[Outcome], Processor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    processor = machine(broken_amx)
    assert cpu.measure_bf16_speedup() == 1.5
    capsys.readouterr()
    assert cpu.measure_bf16_speedup() == 1.5  # in this process, in which the limit is set now
    monkeypatch.delenv(ISA_VARIABLE)
    assert cpu.measure_bf16_speedup() == 1.5  # in a later process, which starts without it
    assert os.environ[ISA_VARIABLE] == ISA_WITHOUT_AMX
    assert len(processor.limits) == 2
    assert capsys.readouterr().out == ""


def test_a_result_under_a_users_limit_does_not_hold_without_it(
    machine: Callable[[Outcome], Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = machine(broken_amx)
    monkeypatch.setenv(ISA_VARIABLE, ISA_WITHOUT_AMX)
    assert cpu.measure_bf16_speedup() == 1.5
    monkeypatch.delenv(ISA_VARIABLE)
    assert cpu.measure_bf16_speedup() == 1.5
    assert processor.limits == [ISA_WITHOUT_AMX, "", ISA_WITHOUT_AMX]
    assert os.environ[ISA_VARIABLE] == ISA_WITHOUT_AMX


def test_a_users_limit_that_crashes_is_replaced(
    machine: Callable[[Outcome], Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(broken_amx)
    monkeypatch.setenv(ISA_VARIABLE, "AVX512_CORE_AMX")
    assert cpu.measure_bf16_speedup() == 1.5
    assert os.environ[ISA_VARIABLE] == ISA_WITHOUT_AMX


def test_results_are_stored_by_processor(
    machine: Callable[[Outcome], Processor], base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(lambda _: 3.0)
    assert cpu.measure_bf16_speedup() == 3.0
    processor = machine(lambda _: 0.5)
    monkeypatch.setattr(cpu, "cpu_flags", lambda: {"avx512_bf16"})
    assert cpu.measure_bf16_speedup() == 0.5
    assert processor.limits == [""]
    assert len(json.loads((base_dir / "cpu.json").read_text(encoding="utf-8"))) == 2  # of both processors


OF_AN_OLDER_VERSION = '{"x": {"speedup": 2.0, "isa": ""}}'


WRONG_TYPES = [
    '{"x": {"speedup": "2", "decode_speedup": 2.0, "isa": ""}}',
    '{"x": {"speedup": 2.0, "decode_speedup": NaN, "isa": ""}}',
    '{"x": {"speedup": 2.0, "decode_speedup": true, "isa": ""}}',
    '{"x": {"speedup": 2.0, "decode_speedup": 2.0, "isa": 1}}',
    '{"x": {"speedup": 2.0, "decode_speedup": 2.0, "isa": "a\\u0000"}}',
    "[" * 100_000,
]


def test_a_result_without_a_base_folder(
    machine: Callable[[Outcome], Processor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "~nobody-of-this-name/x")
    machine(lambda _: 3.0)
    assert cpu.measure_bf16_speedup() == 3.0
    assert capsys.readouterr().out.count("\n") == 1


@pytest.mark.parametrize("content", WRONG_TYPES)
def test_a_stored_result_of_a_wrong_type_is_not_used(base_dir: Path, content: str) -> None:
    (base_dir / "cpu.json").write_text(content, encoding="utf-8")
    assert cpu.read_cached_probes(base_dir / "cpu.json") == {}


def test_a_result_that_cannot_be_stored_is_used(
    machine: Callable[[Outcome], Processor],
    base_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a disk that is full or read-only: one line, and the measurement."""
    processor = machine(broken_amx)
    (base_dir / "file").write_text("", encoding="utf-8")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base_dir / "file" / "below"))
    assert cpu.measure_bf16_speedup() == 1.5
    assert os.environ[ISA_VARIABLE] == ISA_WITHOUT_AMX
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["Trying", "NOTICE:"]
    monkeypatch.delenv(ISA_VARIABLE)
    assert cpu.measure_bf16_speedup() == 1.5  # measured again
    assert len(processor.limits) == 4


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"x": 3}', '{"x": {}}', "\x00", OF_AN_OLDER_VERSION])
def test_a_damaged_file_is_replaced(machine: Callable[[Outcome], Processor], base_dir: Path, content: str) -> None:
    processor = machine(lambda _: 2.0)
    (base_dir / "cpu.json").write_text(content, encoding="utf-8")
    assert cpu.measure_bf16_speedup() == 2.0
    assert cpu.measure_bf16_speedup() == 2.0
    assert len(processor.limits) == 1


def test_a_processor_without_bf16_is_not_probed(
    machine: Callable[[Outcome], Processor], base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = machine(lambda _: 9.0)
    monkeypatch.setattr(cpu, "cpu_flags", lambda: {"sse", "avx2"})
    assert cpu.measure_bf16_speedup() is None
    assert cpu.measure_bf16_decode_speedup() is None
    assert processor.limits == []
    assert list(base_dir.iterdir()) == []


def test_flags_are_read_or_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    def text(content: str | None) -> None:
        def read_text(_: Path, encoding: str) -> str:
            if content is None:
                raise FileNotFoundError(encoding)
            return content

        monkeypatch.setattr(cpu.Path, "read_text", read_text)

    text("processor\t: 0\nflags\t\t: fpu amx_bf16\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert cpu.cpu_flags() == {"fpu", "amx_bf16"}
    for content in ("", "Features: fp asimd\n", None):  # not Linux on x86
        text(content)
        assert cpu.cpu_flags() == set()


@pytest.mark.slow
def test_the_probe_and_the_allocator_work_on_this_machine() -> None:
    """The real probe returns two speed-ups, and a process with the allocator's settings computes the right result."""
    program = "from nanochat.system.cpu import keep_freed_memory as k; k(); k(); print(sum([1.0] * 10**6))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=200, check=True
    )
    assert done.stdout == "1000000.0\n"
    speedups = cpu.time_bf16_products({**os.environ, ISA_VARIABLE: ISA_WITHOUT_AMX})
    assert speedups is not None
    assert min(speedups) > 0
