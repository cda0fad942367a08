"""What the processor is asked, what is remembered of the answer, and the allocator's settings."""

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
Answer = Callable[[str], "float | str | int | None"]


class Processor:
    """A processor as `subprocess.run` shows it: `answer(limit)` is what the probe prints under that oneDNN limit.

    An int is an exit code instead (negative: the signal that ended the probe), None a probe that never ends.
    """

    def __init__(self, answer: Answer) -> None:
        self.answer, self.limits = answer, list[str]()

    def run(self, command: list[str], *, env: dict[str, str], timeout: float, **_: object) -> object:
        limit = env.get(ISA_VARIABLE, "")
        self.limits.append(limit)
        answer = self.answer(limit)
        if answer is None:
            raise subprocess.TimeoutExpired(command, timeout)
        if isinstance(answer, int):
            return subprocess.CompletedProcess(command, answer, stdout="", stderr="")
        return subprocess.CompletedProcess(command, 0, stdout=f"{answer}\n", stderr="")


@pytest.fixture
def machine(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Answer], Processor]:
    """Put a processor with AMX and AVX512-BF16 in this one's place, and no limit from the environment."""
    assert not list(base_dir.iterdir())  # nothing is remembered
    monkeypatch.setenv(ISA_VARIABLE, "")  # so that pytest brings back whatever was there
    monkeypatch.delenv(ISA_VARIABLE)
    monkeypatch.setattr(cpu, "cpu_flags", lambda: {"sse", "avx512_bf16", "amx_bf16"})

    def put(answer: Answer) -> Processor:
        processor = Processor(answer)
        monkeypatch.setattr(cpu.subprocess, "run", processor.run)
        return processor

    return put


ILLEGAL_INSTRUCTION = -4


def broken_amx(limit: str) -> float | int:
    return 1.5 if limit == ISA_WITHOUT_AMX else ILLEGAL_INSTRUCTION


def test_working_products_need_no_limit(machine: Callable[[Answer], Processor]) -> None:
    processor = machine(lambda _: 3.25)
    assert cpu.prepare_bf16() == 3.25
    assert processor.limits == [""]
    assert ISA_VARIABLE not in os.environ


def test_an_illegal_instruction_leads_to_a_limit(
    machine: Callable[[Answer], Processor], capsys: pytest.CaptureFixture[str]
) -> None:
    processor = machine(broken_amx)
    assert cpu.prepare_bf16() == 1.5
    assert processor.limits == ["", ISA_WITHOUT_AMX]
    assert os.environ[ISA_VARIABLE] == ISA_WITHOUT_AMX
    assert capsys.readouterr().out.count("Trying bf16") == 1


@pytest.mark.parametrize("answer", [ILLEGAL_INSTRUCTION, 1, None, "no number"])
def test_products_that_never_work_are_not_used(
    machine: Callable[[Answer], Processor], answer: float | str | int | None
) -> None:
    processor = machine(lambda _: answer)
    assert cpu.prepare_bf16() is None
    assert processor.limits == ["", ISA_WITHOUT_AMX]


def test_the_answer_is_remembered(
    machine: Callable[[Answer], Processor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    processor = machine(broken_amx)
    assert cpu.prepare_bf16() == 1.5
    capsys.readouterr()
    assert cpu.prepare_bf16() == 1.5  # in this process, where the limit is set now
    monkeypatch.delenv(ISA_VARIABLE)
    assert cpu.prepare_bf16() == 1.5  # in a later process, which begins without it
    assert os.environ[ISA_VARIABLE] == ISA_WITHOUT_AMX
    assert len(processor.limits) == 2
    assert capsys.readouterr().out == ""


def test_an_answer_under_a_users_limit_is_none_without_it(
    machine: Callable[[Answer], Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = machine(broken_amx)
    monkeypatch.setenv(ISA_VARIABLE, ISA_WITHOUT_AMX)
    assert cpu.prepare_bf16() == 1.5
    monkeypatch.delenv(ISA_VARIABLE)
    assert cpu.prepare_bf16() == 1.5
    assert processor.limits == [ISA_WITHOUT_AMX, "", ISA_WITHOUT_AMX]
    assert os.environ[ISA_VARIABLE] == ISA_WITHOUT_AMX


def test_a_users_limit_that_crashes_is_replaced(
    machine: Callable[[Answer], Processor], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(broken_amx)
    monkeypatch.setenv(ISA_VARIABLE, "AVX512_CORE_AMX")
    assert cpu.prepare_bf16() == 1.5
    assert os.environ[ISA_VARIABLE] == ISA_WITHOUT_AMX


def test_processors_are_told_apart(
    machine: Callable[[Answer], Processor], base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(lambda _: 3.0)
    assert cpu.prepare_bf16() == 3.0
    processor = machine(lambda _: 0.5)
    monkeypatch.setattr(cpu, "cpu_flags", lambda: {"avx512_bf16"})
    assert cpu.prepare_bf16() == 0.5
    assert processor.limits == [""]
    assert len(json.loads((base_dir / "cpu.json").read_text(encoding="utf-8"))) == 2  # neither forgets the other


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"x": 3}', '{"x": {}}', "\x00"])
def test_a_damaged_file_is_measured_anew(machine: Callable[[Answer], Processor], base_dir: Path, content: str) -> None:
    processor = machine(lambda _: 2.0)
    (base_dir / "cpu.json").write_text(content, encoding="utf-8")
    assert cpu.prepare_bf16() == 2.0
    assert cpu.prepare_bf16() == 2.0
    assert len(processor.limits) == 1


def test_a_processor_without_bf16_is_not_asked(
    machine: Callable[[Answer], Processor], base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = machine(lambda _: 9.0)
    monkeypatch.setattr(cpu, "cpu_flags", lambda: {"sse", "avx2"})
    assert cpu.prepare_bf16() is None
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
    for content in ("", "Features: fp asimd\n", None):  # no Linux on x86
        text(content)
        assert cpu.cpu_flags() == set()


def test_the_probe_and_the_allocator_work_on_this_machine() -> None:
    """The real probe prints a number or dies; the allocator's settings leave a process that computes as before."""
    plain = "from nanochat.system.cpu import keep_freed_memory as k; k(); k(); print(sum([1.0] * 10**6))"
    done = subprocess.run(
        [sys.executable, "-c", plain], cwd=ROOT, capture_output=True, text=True, timeout=200, check=True
    )
    assert done.stdout == "1000000.0\n"
    speedup = cpu.measure_bf16_speedup({**os.environ, ISA_VARIABLE: ISA_WITHOUT_AMX})
    assert speedup is not None
    assert speedup > 0
