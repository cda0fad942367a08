"""The checks of the doctor: each sees what is wrong, and none brings the others down."""

from __future__ import annotations

import json
import re
import shutil
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nanochat.common import UserError
from nanochat.system import checkup, cpu, environment
from nanochat.system.checkup import FAIL, NOTICE, OK


def test_whatever_a_check_raises_is_a_finding() -> None:
    def absent(_: str) -> checkup.Finding:
        raise UserError("there is no tokenizer")

    def broken(_: str) -> checkup.Finding:
        raise OSError("libcudart.so: no such file\nand more")

    assert checkup.examine(absent, "cpu", NOTICE) == (NOTICE, "there is no tokenizer")
    assert checkup.examine(absent, "cpu", FAIL) == (FAIL, "there is no tokenizer")
    assert checkup.examine(broken, "cpu", NOTICE) == (FAIL, "OSError: libcudart.so: no such file")


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    grade, told = checkup.check_versions("cpu")
    assert grade == OK
    assert f"torch {torch.__version__.split('+')[0]}" in told
    monkeypatch.setattr(environment, "package_version", lambda name: None if name == "tiktoken" else "2.9.0")
    grade, told = checkup.check_versions("cpu")
    assert (grade, told.split(";")[0]) == (FAIL, "not installed: tiktoken")
    monkeypatch.setattr(environment, "package_version", lambda _: "2.8.1")
    assert checkup.check_versions("cpu")[0] == FAIL
    monkeypatch.setattr(environment, "package_version", lambda _: "2.10.0rc1+cu128")
    assert checkup.check_versions("cpu")[0] == OK


def test_the_libraries_are_those_that_are_declared() -> None:
    root = Path(__file__).resolve().parents[2]
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    declared = text.partition("\ndependencies = [")[2].partition("\n]")[0]
    names = set(re.findall(r'^ *"([A-Za-z0-9_-]+)', declared, re.MULTILINE))
    assert set(checkup.LIBRARIES) == names - {"torch", "tomli"}


def test_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "num_usable_cores", lambda: 2)
    monkeypatch.setattr(environment, "total_memory_gb", lambda: 16.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert checkup.check_machine("cpu")[0] == OK
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    grade, told = checkup.check_machine("cpu")
    assert grade == NOTICE
    assert "OMP_NUM_THREADS=2" in told
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(environment, "total_memory_gb", lambda: 2.0)
    assert checkup.check_machine("cpu")[0] == NOTICE


def test_bf16_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cpu.ISA_VARIABLE, raising=False)
    monkeypatch.setattr(cpu, "cpu_flags", lambda: {"avx2"})
    assert checkup.check_bf16("cpu")[0] == OK
    monkeypatch.setattr(cpu, "cpu_flags", lambda: {"avx512_bf16", "amx_bf16"})
    monkeypatch.setattr(cpu, "prepare_bf16", lambda: 1.8)
    assert checkup.check_bf16("cpu") == (OK, "AVX512-BF16 and AMX; bf16 products run at 1.8 times the speed of float32")
    monkeypatch.setattr(cpu, "prepare_bf16", lambda: None)
    assert checkup.check_bf16("cpu")[0] == NOTICE
    monkeypatch.setattr(cpu, "prepare_bf16", lambda: 0.7)
    monkeypatch.setenv(cpu.ISA_VARIABLE, "AVX512_CORE_BF16")
    grade, told = checkup.check_bf16("cpu")
    assert grade == NOTICE
    assert "AVX512_CORE_BF16" in told


def test_compile_needs_a_compiler_and_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers = tmp_path / "include"
    headers.mkdir()
    (headers / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(headers)})
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert checkup.check_compile("cpu")[0] == NOTICE
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\n", encoding="utf-8")
    compiler.chmod(0o755)
    assert checkup.check_compile("cpu") == (OK, str(compiler))
    (headers / "Python.h").unlink()
    grade, told = checkup.check_compile("cpu")
    assert grade == NOTICE
    assert "Python's headers" in told


def test_without_the_rust_extension_there_is_a_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nanochat.tokenization._rustbpe", None)
    monkeypatch.delattr("nanochat.tokenization._rustbpe", raising=False)
    grade, told = checkup.check_trainer("cpu")
    assert grade == NOTICE
    assert "Hugging Face" in told


@pytest.mark.parametrize(("free", "grade"), [(1e12, OK), (2e9, NOTICE), (1e8, FAIL)])
def test_disk(free: float, grade: str, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(base_dir / "not" / "yet"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert checkup.check_disk("cpu")[0] == grade
    assert not list(base_dir.iterdir())


def test_a_base_folder_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "file"))
    grade, told = checkup.check_disk("cpu")
    assert grade == FAIL
    assert "NANOCHAT_BASE_DIR" in told


def test_what_a_run_has_made_is_found(base_dir: Path) -> None:
    assert checkup.check_checkpoints("cpu") == (OK, "none yet")
    with pytest.raises(UserError):
        checkup.check_data("cpu")
    with pytest.raises(UserError):
        checkup.check_tokenizer("cpu")
    for step in ("step_000010", "step_000020"):
        folder = base_dir / "base_checkpoints" / "d4" / step
        folder.mkdir(parents=True)
        (folder / "meta.json").write_text(json.dumps({}), encoding="utf-8")
    (base_dir / "base_checkpoints" / "d4" / "step_000030").mkdir()
    found = checkup.check_checkpoints("cpu")[1].split(", ")
    assert found == [str(Path("base_checkpoints", "d4", step)) for step in ("step_000010", "step_000020")]
