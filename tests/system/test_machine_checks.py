"""Each check of the machine finds the fault it is for.

Faults are real where a process can be given them: a missing library, many threads, a PATH without a compiler. Replaced
is only the machine itself: its memory, its processor, its free disk space, its headers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nanochat.common import UserError
from nanochat.system import cpu, environment, gpu, machine_checks
from nanochat.system.machine_checks import FAIL, NOTICE, OK, Finding

ROOT = Path(__file__).resolve().parents[2]
SITE_PACKAGES = Path(sysconfig.get_paths()["purelib"])


def finding_in_process(check: Callable[[str], Finding], path: str | None = None, **variables: str) -> Finding:
    """Result of a check in a process with these environment variables; `path` replaces its library folders."""
    program = (
        "import json; from nanochat.system import machine_checks as m;"
        f"print(json.dumps(m.run_check(m.{check.__name__}, 'cpu')))"
    )
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{path or ''}", **variables}
    command = [sys.executable, *(["-S"] if path is not None else []), "-c", program]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, encoding="utf-8", timeout=200)
    assert done.returncode == 0, done.stderr
    return Finding(*json.loads(done.stdout.splitlines()[-1]))


def test_an_exception_is_a_finding() -> None:
    def absent(_: str) -> Finding:
        raise UserError("there is no tokenizer")

    def broken(_: str) -> Finding:
        raise OSError("libcudart.so: no such file\nand more")

    assert machine_checks.run_check(absent, "cpu", NOTICE) == (NOTICE, "there is no tokenizer")
    assert machine_checks.run_check(absent, "cpu") == (FAIL, "there is no tokenizer")
    assert machine_checks.run_check(broken, "cpu", NOTICE) == (FAIL, "OSError: libcudart.so: no such file")


def test_versions() -> None:
    grade, message = machine_checks.check_versions("cpu")
    assert grade == OK
    assert f"torch {torch.__version__.split('+')[0]}" in message
    assert f"Python {sys.version.split()[0]}" in message


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    """A process whose library folder holds everything that is installed here but tiktoken."""
    for entry in SITE_PACKAGES.iterdir():
        if not entry.name.startswith("tiktoken"):
            (tmp_path / entry.name).symlink_to(entry)
    grade, message = finding_in_process(machine_checks.check_versions, str(tmp_path))
    assert (grade, message.split(";")[0]) == (FAIL, "not installed: tiktoken")


@pytest.mark.parametrize(("version", "grade"), [("2.8.1", FAIL), ("2.9.0", OK), ("2.10.0rc1+cu128", OK)])
def test_the_version_of_torch(tmp_path: Path, version: str, grade: str) -> None:
    """A process that finds another version's metadata before those of the installed torch."""
    folder = tmp_path / f"torch-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n", encoding="utf-8")
    finding = finding_in_process(machine_checks.check_versions, f"{tmp_path}{os.pathsep}{SITE_PACKAGES}")
    assert finding.grade == grade
    assert f"torch {version}" in finding.message
    assert grade == OK or "torch 2.9 or newer" in finding.message


def test_the_libraries_are_those_that_are_declared() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = text.partition("\ndependencies = [")[2].partition("\n]")[0]
    names = set(re.findall(r'^ *"([A-Za-z0-9_-]+)', declared, re.MULTILINE))
    assert set(machine_checks.LIBRARIES) == names - {"torch", "tomli"}


@pytest.mark.slow
@pytest.mark.parametrize("surplus", [0, 62])
def test_more_threads_than_cores(surplus: int) -> None:
    num_cores = environment.num_usable_cores()
    variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(num_cores + surplus))
    # By default MKL lowers the number to that of the cores by itself, where torch is built with it.
    grade, message = finding_in_process(machine_checks.check_machine, **variables, MKL_DYNAMIC="FALSE")
    assert f"{num_cores} cores, {num_cores + surplus} threads" in message
    assert (f"set OMP_NUM_THREADS={num_cores}" in message) == (surplus > 0)
    assert grade == (NOTICE if surplus or environment.total_memory_gb() < 4 else OK)


@pytest.mark.parametrize(("memory_gb", "grade"), [(16.0, OK), (2.0, NOTICE)])
def test_little_memory(monkeypatch: pytest.MonkeyPatch, memory_gb: float, grade: str) -> None:
    monkeypatch.setattr(environment, "total_memory_gb", lambda: memory_gb)
    finding = machine_checks.check_machine("cpu")
    assert finding.grade == grade
    assert f"{memory_gb} GB of memory" in finding.message


def test_bf16_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors without them, with fast ones, with broken ones, and with slow ones under a limit."""
    monkeypatch.delenv(cpu.ISA_VARIABLE, raising=False)
    monkeypatch.setattr(cpu, "cpu_flags", lambda: {"avx2"})
    assert machine_checks.check_bf16("cpu").grade == OK
    monkeypatch.setattr(cpu, "cpu_flags", lambda: {"avx512_bf16", "amx_bf16"})
    monkeypatch.setattr(cpu, "measure_bf16_speedup", lambda: 1.8)
    message = "AVX512-BF16 and AMX; bf16 products run at 1.8 times the speed of float32"
    assert machine_checks.check_bf16("cpu") == (OK, message)
    monkeypatch.setattr(cpu, "measure_bf16_speedup", lambda: None)
    assert machine_checks.check_bf16("cpu").grade == NOTICE
    monkeypatch.setattr(cpu, "measure_bf16_speedup", lambda: 0.7)
    monkeypatch.setenv(cpu.ISA_VARIABLE, "AVX512_CORE_BF16")
    grade, message = machine_checks.check_bf16("cpu")
    assert grade == NOTICE
    assert "AVX512_CORE_BF16" in message


@pytest.mark.slow
@pytest.mark.skipif("avx512_bf16" not in cpu.cpu_flags(), reason="needs a processor with AVX512-BF16")
def test_bf16_under_a_limit_of_the_users(base_dir: Path) -> None:
    limit = {cpu.ISA_VARIABLE: cpu.ISA_WITHOUT_AMX}
    grade, message = finding_in_process(machine_checks.check_bf16, **limit)
    assert grade == NOTICE
    assert re.search(rf"AVX512-BF16.* [0-9.]+ times .*{cpu.ISA_VARIABLE}={cpu.ISA_WITHOUT_AMX}", message)
    assert [path.name for path in base_dir.iterdir()] == ["cpu.json"]


@pytest.mark.slow
def test_device() -> None:
    finding = finding_in_process(machine_checks.check_device, NANOCHAT_DTYPE="float32")
    assert finding == (OK, "cpu, computing in float32")
    grade, message = finding_in_process(machine_checks.check_device, NANOCHAT_DTYPE="float8")
    assert grade == FAIL
    assert "'float8'" in message


@pytest.mark.usefixtures("run_here")
def test_gpus_that_torch_cannot_use(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A notice with the reason, once: a run would take the CPU. If the CPU is asked for, there is nothing to notice."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "find_gpu_problem", lambda: "8 NVIDIA GPUs here, but torch cannot use them")
    finding = machine_checks.check_device("auto")
    assert finding == (NOTICE, "cpu, computing in float32; 8 NVIDIA GPUs here, but torch cannot use them")
    assert machine_checks.check_device("cpu") == (OK, "cpu, computing in float32")
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_compile_needs_a_compiler(tmp_path: Path) -> None:
    has_headers = Path(sysconfig.get_paths()["include"], "Python.h").is_file()
    variables = {"PATH": str(tmp_path), "CXX": ""}
    grade, message = finding_in_process(machine_checks.check_compile, **variables)
    assert grade == NOTICE
    assert "a C++ compiler (g++ or clang++)" in message
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\n", encoding="utf-8")
    compiler.chmod(0o755)
    finding = finding_in_process(machine_checks.check_compile, **variables)
    assert (finding == (OK, str(compiler))) == has_headers
    assert "a C++ compiler" not in finding.message


def test_compile_needs_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\n", encoding="utf-8")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    grade, message = machine_checks.check_compile("cpu")
    assert grade == NOTICE
    assert "Python's headers" in message
    (tmp_path / "Python.h").touch()
    assert machine_checks.check_compile("cpu") == (OK, str(compiler))


@pytest.mark.parametrize(("free", "grade"), [(1e12, OK), (2e9, NOTICE), (1e8, FAIL)])
def test_disk(free: float, grade: str, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base_dir / "not" / "yet"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert machine_checks.check_disk("cpu").grade == grade
    assert not list(base_dir.iterdir())


def test_a_base_folder_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "file"))
    grade, message = machine_checks.check_disk("cpu")
    assert grade == FAIL
    assert "NANOCHAT_BASE_DIR" in message
