"""What the tests share: a base folder of their own, the real data where it is at hand, a guard around the home."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.processes import Forker

ROOT = Path(__file__).resolve().parent.parent
_DATA = Path(os.environ.get("NANOCHAT_SHARED_DATA") or ROOT.parent / "shared" / "data")


# Many small models are trained here, not one large one: one thread per process, also in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# A shell starts what it puts in the background with Ctrl-C ignored, and every child inherits that: not here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data that stands beside a checkout; its files are only read. Where it is absent, skips."""
    if not _DATA.is_dir():
        pytest.skip(f"no shared data at {_DATA} ($NANOCHAT_SHARED_DATA names another place)")
    return _DATA


@pytest.fixture(scope="session")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    """Starts processes that need not import anything first."""
    found = Forker(tmp_path_factory.mktemp("forker"))
    yield found
    found.close()


@pytest.fixture
def base_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh, empty `$NANOCHAT_BASE_DIR` for this test and for the processes it starts."""
    folder = tmp_path / "nanochat"
    folder.mkdir()
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(folder))
    return folder


@pytest.fixture(autouse=True)
def _no_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that forgets `base_dir` gets a folder that must not come into being, instead of the user's own."""
    forbidden = tmp_path_factory.getbasetemp() / "forbidden"
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(forbidden))
    monkeypatch.setenv("WANDB_RUN", "dummy")
    yield
    if forbidden.exists():
        shutil.rmtree(forbidden)
        pytest.fail("this test wrote to the base folder without the `base_dir` fixture")


@pytest.fixture
def mixture(run_here: Path, tmp_path: Path) -> str:
    """A base model in `run_here`, and the flag for a mixture: 80 conversations in `tmp_path/sums.jsonl`."""
    from tests.support.talks import save_model, sums, task_entry, write_mixture, write_talks

    save_model(run_here)
    talks = write_talks(tmp_path / "sums.jsonl", sums(80))
    return f"--mixture={write_mixture(tmp_path / 'mixture.toml', task_entry(talks))}"


@pytest.fixture
def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refusal(script, *flags)`: how its command line refuses them: a line on stderr, and exit code 2."""

    def refusal(script: ModuleType, *flags: str) -> str:
        from nanochat.configurator import cli

        monkeypatch.setattr(sys, "argv", ["script", *flags])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli(script.Config, script.main, script.__doc__)
        error = capsys.readouterr().err
        assert left.value.code == 2
        assert error.startswith("error: ")
        assert error.endswith("\n")
        assert error.count("\n") == 1
        return error

    return refusal


@pytest.fixture
def no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if a device is touched."""
    from nanochat.runtime import Runtime

    def start(*_: object) -> None:
        pytest.fail("a device was touched before the settings were checked")

    monkeypatch.setattr(Runtime, "start", start)


@pytest.fixture
def run_here(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The base folder of a test that runs whole training scripts in this process: float32 on one thread of the CPU.

    What a run sets in torch for all that follows is put back.
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
