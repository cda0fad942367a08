"""The facts about the environment are right, and absent where they cannot be determined."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nanochat.common import UserError, command
from nanochat.system import environment


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout.strip()


def test_facts_are_json_without_null() -> None:
    facts = environment.describe_environment()
    assert json.loads(json.dumps(facts)) == facts
    assert None not in facts.values()
    assert facts["Python"] == platform.python_version()
    assert {"system", "processor", "cores", "memory (GB)", "torch"} <= set(facts)


def test_package_versions() -> None:
    import torch

    assert environment.package_version("torch") == torch.__version__.split("+")[0]
    assert environment.package_version("no-such-package-anywhere") is None
    assert environment.describe_environment()["threads"] == torch.get_num_threads()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only on Linux does the peak survive exec")
def test_peak_memory_is_that_of_this_process() -> None:
    """The peak of a child process does not include that of its larger parent."""
    block = b"x" * 300_000_000
    assert environment.peak_memory_bytes() > len(block)
    program = (
        "from nanochat.system.environment import peak_memory_bytes as peak; "
        "a = peak(); b = b'x' * 50_000_000; print(a, peak() - a)"
    )
    before, more = map(int, subprocess.check_output([sys.executable, "-c", program]).split())
    assert 1_000_000 < before < 150_000_000
    assert 40_000_000 < more < 60_000_000


def test_memory_and_cores() -> None:
    assert 1 <= environment.num_usable_cores() <= (os.cpu_count() or 1)
    if hasattr(os, "sysconf"):
        physical_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
        assert 0 < environment.total_memory_gb() <= physical_gb + 0.06
        assert 0 < environment.free_memory_bytes() < physical_gb * 1e9


@pytest.mark.parametrize(
    ("limit", "share"), [("max 100000", 1.0), ("50000 100000", 0.0), ("150000 100000", 0.25), ("99900000 100000", 1.0)]
)
def test_the_cores_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, share: float) -> None:
    monkeypatch.setattr(environment, "CGROUP", tmp_path)
    monkeypatch.setattr(environment.os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    assert environment.num_usable_cores() == 8  # no file: no container
    (tmp_path / "cpu.max").write_text(f"{limit}\n", encoding="utf-8")
    assert environment.num_usable_cores() == max(1, int(8 * share))


def test_the_memory_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "CGROUP", tmp_path)
    free = environment.free_memory_bytes()
    assert free > 100_000_000
    values = {"max": "90000000\n", "current": "80000000\n", "stat": "anon 50\nfile 7\ninactive_file 30000000\n"}
    for name, value in values.items():
        (tmp_path / f"memory.{name}").write_text(value, encoding="utf-8")
    assert environment.total_memory_gb() == 0.1
    assert environment.free_memory_bytes() == 40_000_000  # what files have filled can be had
    (tmp_path / "memory.max").write_text("max\n", encoding="utf-8")
    assert environment.free_memory_bytes() > 100_000_000


def test_the_commit_is_marked_if_files_differ_from_it(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("one", encoding="utf-8")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "one")
    head = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert environment.git_commit(tmp_path) == head
    (tmp_path / "file").write_text("two", encoding="utf-8")
    assert environment.git_commit(tmp_path) == f"{head} with uncommitted changes"


def test_a_package_inside_another_repository_has_no_commit(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "another project")
    installed = tmp_path / ".venv" / "site-packages"
    installed.mkdir(parents=True)
    assert environment.git_commit(installed) is None


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.git_commit(tmp_path) is None
    assert "commit" not in environment.describe_environment()


def test_the_facts_do_not_import_torch() -> None:
    program = (
        "import sys; from nanochat.system import environment; facts = environment.describe_environment();"
        "assert facts['threads'] == 3, facts; assert 'torch' not in sys.modules; assert 'GPU' not in facts"
    )
    variables = {**os.environ, "OMP_NUM_THREADS": "3"}
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root, env=variables)


# --- variables of launchers -------------------------------------------------------------------------------------------

OF_A_RUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Function that sets these variables of a launcher, and no others."""

    def set_variables(**values: str) -> None:
        for name in (*OF_A_RUN, "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_variables


def test_process_numbers(variables: Callable[..., None]) -> None:
    variables()
    assert environment.process_numbers() == (0, 0, 1)
    variables(**OF_A_RUN)
    assert environment.process_numbers() == (1, 1, 2)
    variables(**OF_A_RUN | {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})  # two machines
    assert environment.process_numbers() == (1, 0, 2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"RANK": "1"}, "RANK=1 LOCAL_RANK=0 WORLD_SIZE=1 LOCAL_WORLD_SIZE=1 in the environment: ranks must be below"),
        ({"LOCAL_RANK": "3"}, "LOCAL_RANK=3 WORLD_SIZE=1"),
        (OF_A_RUN | {"RANK": "2"}, "RANK=2"),
        (OF_A_RUN | {"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        (OF_A_RUN | {"RANK": "-1"}, "RANK is '-1' in the environment, but must be a number"),
        (OF_A_RUN | {"RANK": ""}, "RANK is ''"),
        (OF_A_RUN | {"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two'"),
        (OF_A_RUN | {"LOCAL_RANK": "0x1"}, "LOCAL_RANK is '0x1'"),
        ({"LOCAL_WORLD_SIZE": "8.0"}, "LOCAL_WORLD_SIZE is '8.0'"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 in the environment without RANK, MASTER_ADDR, MASTER_PORT"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "without MASTER_ADDR, MASTER_PORT"),
        (OF_A_RUN | {"MASTER_PORT": "auto"}, "MASTER_PORT is 'auto'"),
    ],
)
def test_variables_that_describe_no_process(variables: Callable[..., None], values: dict[str, str], words: str) -> None:
    """They may have been left in a shell: each message says what to do for a run of one process."""
    variables(**values)
    with pytest.raises(UserError, match=re.escape(words)) as error:
        environment.process_numbers()
    assert "for a run of one process, unset RANK LOCAL_RANK WORLD_SIZE" in str(error.value)


def test_a_rank_that_was_left_does_not_silence_a_command(variables: Callable[..., None]) -> None:
    """Only rank 0 prints, so a command without a run would print nothing, and end with code 0."""
    variables(RANK="1")
    with pytest.raises(SystemExit) as end, command():
        pytest.fail("the command began")
    assert end.value.code == 2
