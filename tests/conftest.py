"""Fixtures of all tests: a temporary base folder, the real data if present, a guard for the user's home."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from tests.support.processes import Forker

if TYPE_CHECKING:
    from tests.support.exports import Exported

ROOT = Path(__file__).resolve().parent.parent
_DATA = Path(os.environ.get("NANOCHAT_SHARED_DATA") or ROOT.parent / "shared" / "data")


# The tests train many small models at the same time: one thread for each process, child processes included.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# A shell starts background jobs with SIGINT ignored, and child processes inherit that: tests of Ctrl-C would fail.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# nohup ignores SIGHUP, and a training that is started with it ignored rightly goes on.
for _name in ("SIGHUP", "SIGUSR1"):
    if signal.getsignal(getattr(signal, _name)) is signal.SIG_IGN:
        signal.signal(getattr(signal, _name), signal.SIG_DFL)


# Files with tests that take tens of seconds. They come first, so that with two workers neither begins a long test when
# the other has nothing left to do.
LONGEST = (
    "tests/dev/test_gpu_check.py",
    "tests/training/test_two_hosts.py",
    "tests/training/test_stop_and_resume.py",
    "tests/dev/test_faults.py",
    "tests/dev/test_shell.py",
    "tests/test_optim.py",
    "tests/dev/test_bench_ranks.py",
    "tests/architecture/test_patterns.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest tests first, file by file; all others keep their order."""
    place = {ROOT / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


# A collection visits every object of the program, of which the collected tests and their libraries have 600,000: half a
# second, in each test that trains. These objects live until the end, so they are exempt.
def pytest_collection_finish() -> None:
    """Exempt what has been imported and collected from garbage collection."""
    gc.collect()
    gc.freeze()


def pytest_runtest_logfinish() -> None:
    """Exempt it again after a test that has ended the exemption, as each run of `nanochat.train` does."""
    if not gc.get_freeze_count():
        gc.collect(1)  # what the test left: frozen, it would stay for ever
        gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries in C++ complain of objects that are alive at the end


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data next to the checkout, read only. Skips the test if it is absent."""
    if not _DATA.is_dir():
        pytest.skip(f"no shared data at {_DATA} ($NANOCHAT_SHARED_DATA names another folder)")
    return _DATA


@pytest.fixture(scope="session")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    """Starts processes quickly: forks of a process that has imported everything."""
    forker = Forker(tmp_path_factory.mktemp("forker"))
    yield forker
    forker.close()


@pytest.fixture
def base_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh, empty `$NANOCHAT_BASE_DIR` for this test and for the processes it starts."""
    folder = tmp_path / "nanochat"
    folder.mkdir()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _no_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that writes to the base folder without the fixture `base_dir`; the user's folder is never used."""
    forbidden = tmp_path_factory.getbasetemp() / "forbidden"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(forbidden))
    monkeypatch.setenv("WANDB_RUN", "dummy")
    if kernels := sys.modules.get(
        "nanochat.layers.cpu_kernels"
    ):  # else training in bfloat16 measures it, and stores it
        monkeypatch.setattr(kernels, "_amx", {"works": False})
    yield
    if forbidden.exists():
        shutil.rmtree(forbidden)
        pytest.fail("this test wrote to the base folder without the `base_dir` fixture")


@pytest.fixture
def mixture(run_here: Path, tmp_path: Path) -> str:
    """Save a base model in `run_here`; return the flag for a mixture of 80 conversations in `tmp_path/sums.jsonl`."""
    from tests.support.talks import save_model, sums, task_entry, write_mixture, write_talks

    save_model(run_here)
    talks = write_talks(tmp_path / "sums.jsonl", sums(80))
    return f"--mixture={write_mixture(tmp_path / 'mixture.toml', task_entry(talks))}"


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refusal(script, *flags)` runs a script that must fail with exit code 2, and returns its line on stderr."""

    def refusal(script: ModuleType, *flags: str) -> str:
        from nanochat.configurator import cli

        monkeypatch.setattr(sys, "argv", ["script", *flags])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_info:
            cli(script.Config, script.main, script.__doc__)
        error = capsys.readouterr().err
        assert exit_info.value.code == 2
        assert error.startswith("error: ")
        assert error.endswith("\n")
        assert error.count("\n") == 1
        return error

    return refusal


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a device is used."""
    from nanochat.runtime import Runtime

    def start(*_: object) -> None:
        pytest.fail("a device was used before the settings were checked")

    monkeypatch.setattr(Runtime, "start", start)


@pytest.fixture
def run_here(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The base folder of a test that runs training scripts in this process, in float32 on one CPU thread.

    Restores the global settings of torch that a run changes.
    """
    import torch

    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield base_dir
    torch.set_num_threads(num_threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for torch: many small models are faster, and sums have one order."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Models of several shapes, and the folders of their exports to Hugging Face."""
    from tests.support.exports import export_all

    return export_all(tmp_path_factory)
