"""The sandbox: hostile programs, with all layers and with some; none escapes, hangs or takes down its caller."""

from __future__ import annotations

import os
import signal
import socket
import string
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import pytest

from nanochat.common import UserError
from nanochat.execution import ISOLATION_LAYERS, ProgramResult, isolation_layers, run_program
from tests.support.hostile_programs import PREAMBLE, PROGRAMS, STARTING

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="programs run on Linux and macOS, not on Windows")

LACKING = {  # layer -> why it cannot be shown here, and where it can
    "namespaces": "no namespaces here (Linux has them; a container only where users may make some: --privileged)",
    "mounts": "no mounts here (they come with namespaces)",
    "landlock": "no Landlock here (Linux 6.2 or later has it, unless it is switched off)",
    "seccomp": "no seccomp filter for this machine (there is one for Linux on x86-64, arm64 and riscv64)",
}

MARK = f"nanochat-survivor-{os.getpid()}"
TOKEN = "a-secret-that-stays"


def alive() -> list[str]:
    """Processes on this machine that one of our hostile programs has started."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    return [line for line in listing.splitlines() if MARK in line]


class Grounds:
    """What the programs go for, and the programs running: a secret file, an open port, this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.secret = folder / "secret.txt"
        self.secret.write_text(TOKEN, encoding="utf-8")
        self.before = self.secret.stat()
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.setblocking(False)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(self.server.getsockname())
        self.udp.setblocking(False)
        self.signals: list[int] = []
        self.inherited = os.open(self.secret, os.O_RDONLY)
        os.set_inheritable(self.inherited, True)
        self.active = isolation_layers()
        self.pool = ThreadPoolExecutor(4)
        self.futures: dict[tuple[str, tuple[str, ...]], Future[ProgramResult]] = {}

    def source(self, text: str) -> str:
        values = {
            "mark": MARK,
            "pid": os.getpid(),
            "secret": self.secret,
            "folder": self.folder,
            "home": Path.home(),
            "repository": Path(__file__).parent.parent,
            "port": self.server.getsockname()[1],
            "token": TOKEN,
        }
        return string.Template(text).safe_substitute(values)

    def submit(self, text: str, expected: str, without: tuple[str, ...]) -> Future[ProgramResult]:
        # Long where it is to end by itself: a busy machine is slow.
        return self.pool.submit(run_program, self.source(text), 1.0 if expected == "time" else 30.0, 256 << 20, without)

    def start(self, without: tuple[str, ...], programs: dict[str, tuple[str, str]]) -> None:
        for name, (expected, text) in programs.items():
            # A source that is wrong from the start is left alone.
            text = text if name in ("odd encoding", "a null") else PREAMBLE + text
            self.futures[name, without] = self.submit(text, expected, without)

    def assert_unharmed(self) -> None:
        after = self.secret.stat()
        assert self.secret.read_text(encoding="utf-8") == TOKEN
        assert (after.st_mode, after.st_mtime_ns, after.st_uid) == (
            self.before.st_mode,
            self.before.st_mtime_ns,
            self.before.st_uid,
        )
        assert sorted(os.listdir(self.folder)) == ["secret.txt", "temporary"]
        assert self.signals == []
        with pytest.raises(BlockingIOError):
            self.server.accept()
        with pytest.raises(BlockingIOError):
            self.udp.recv(1)
        assert alive() == []


FENCED = ("all layers", "no namespaces")  # with what a container on its own usually has: the same outcomes


@pytest.fixture(scope="module")
def grounds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grounds]:
    folder = tmp_path_factory.mktemp("grounds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_TEST_SECRET", TOKEN)
        patch.setattr(tempfile, "tempdir", str(folder / "temporary"))
        found = Grounds(folder)

        def note(number: int, _frame: FrameType | None) -> None:
            found.signals.append(number)

        kept = {number: signal.signal(number, note) for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGIO)}
        yield found
        found.pool.shutdown(cancel_futures=True)
        for number, handler in kept.items():
            signal.signal(number, handler)
        os.close(found.inherited)
        found.server.close()
        found.udp.close()


def without(configuration: str, grounds: Grounds) -> tuple[str, ...]:
    """The layers to leave out; skips what this machine cannot show."""
    missing, needed = {
        "all layers": ((), {"seccomp", "landlock"}),
        "no namespaces": (("namespaces",), {"seccomp", "landlock"}),
        "no landlock": (("landlock",), {"seccomp", "mounts"}),
        "no seccomp": (("seccomp",), {"namespaces"}),
        "only namespaces": (("mounts", "landlock", "seccomp"), {"namespaces"}),
    }[configuration]
    if lacking := {layer for layer in needed if not grounds.active[layer]}:
        pytest.skip("; ".join(sorted(LACKING[layer] for layer in lacking)))
    return missing


def judge(expected: str, result: ProgramResult) -> None:
    assert TOKEN not in result.stdout + result.stderr
    if expected == "time":
        assert result.timed_out, result
        assert not result.ok
        return
    assert not result.timed_out, result
    assert result.ok == (expected != "fails") == (not result.error), result
    if expected == "refused":
        lines = result.stdout.splitlines()
        assert lines
        assert not [line for line in lines if not line.startswith("refused")], result


def test_layers(grounds: Grounds, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints which layers this machine has: the tests below are about these."""
    with capsys.disabled():
        print(f"\nsandbox layers here: {grounds.active}")
    assert set(grounds.active) == set(ISOLATION_LAYERS)
    for layer in ISOLATION_LAYERS:
        gone = {layer} | ({"mounts"} if layer == "namespaces" else set())
        if layer in ("namespaces", "seccomp") and os.geteuid() == 0 and not grounds.active["namespaces"]:
            continue
        assert (
            set(run_program("", 30.0, without=[layer]).layers)
            == {name for name in ISOLATION_LAYERS if grounds.active[name]} - gone
        )


@pytest.mark.parametrize("configuration", FENCED)
@pytest.mark.parametrize("name", PROGRAMS)
def test_hostile_program(name: str, configuration: str, grounds: Grounds) -> None:
    left_out = without(configuration, grounds)
    if (name, left_out) not in grounds.futures:
        grounds.start(left_out, PROGRAMS)
    judge(PROGRAMS[name][0], grounds.futures[name, left_out].result())


NAMES = list(PROGRAMS)
# Without Landlock the way to an own root shows: the names of the folders that Python stands in.
FILES = [name for name in NAMES[NAMES.index("read a secret") : NAMES.index("connect")] if name != "read keys"]


@pytest.mark.parametrize("name", FILES)
def test_mounts_alone_guard_files(name: str, grounds: Grounds) -> None:
    left_out = without("no landlock", grounds)
    if (name, left_out) not in grounds.futures:
        grounds.start(left_out, {name: PROGRAMS[name] for name in FILES})
    judge(PROGRAMS[name][0], grounds.futures[name, left_out].result())


@pytest.mark.parametrize("configuration", ["no seccomp", "only namespaces"])
@pytest.mark.parametrize("name", STARTING)
def test_what_a_program_starts_ends_with_it(name: str, configuration: str, grounds: Grounds) -> None:
    left_out = without(configuration, grounds)
    if (name, left_out) not in grounds.futures:
        grounds.start(left_out, STARTING)
    judge(STARTING[name][0], grounds.futures[name, left_out].result())


def test_nothing_was_harmed(grounds: Grounds) -> None:
    """After all of the above: no file, signal, packet or process; and every temporary folder is gone."""
    for future in grounds.futures.values():
        future.result()
    grounds.assert_unharmed()
    assert os.listdir(grounds.temporary) == []


def test_survivors_would_be_seen(grounds: Grounds) -> None:
    with subprocess.Popen(["/bin/sleep", "1000"], executable="/bin/sleep") as plain:
        marked = subprocess.Popen([MARK, "1000"], executable="/bin/sleep")
        deadline = time.monotonic() + 30
        while not alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(alive()) == 1
        for process in (plain, marked):
            process.kill()
            process.wait()
    grounds.assert_unharmed()


def test_enough_hostile_programs() -> None:
    assert len(PROGRAMS) + len(STARTING) > 100


def test_results() -> None:
    result = run_program("import sys\nprint('a')\nprint('b', file=sys.stderr)\nsys.exit(3)", 30.0)
    assert (result.ok, result.timed_out, result.exit_code, result.stdout, result.stderr) == (
        False,
        False,
        3,
        "a\n",
        "b\n",
    )
    assert result.error == "exit code 3: b"
    good = run_program("print('ü')", 30.0)
    assert (good.ok, good.exit_code, good.stdout, good.stderr, good.error) == (True, 0, "ü\n", "", "")
    assert run_program("import os; os.kill(os.getpid(), 9)", 30.0).exit_code == 137
    late = run_program("print('begun', flush=True)\nwhile True: pass", 2.0)
    assert (late.timed_out, late.exit_code, late.stdout, late.error) == (
        True,
        None,
        "begun\n",
        "not done after 2 seconds",
    )
    assert len(run_program("print('x' * 200_000)", 30.0).stdout) == 64 << 10
    assert "bytes of output" in run_program("while True: print('x' * 9999)", 30.0).error
    assert "null" in run_program("\0", 30.0).error


def test_memory_is_as_asked() -> None:
    program = "x = bytearray(300 << 20)"
    assert "MemoryError" in run_program(program, 30.0, 200 << 20).error
    assert run_program(program, 30.0, 500 << 20).ok


def test_two_programs_do_not_meet() -> None:
    """Two at once: neither sees the other's files or processes."""
    program = "import os, time\nopen('x', 'x').close()\ntime.sleep(0.5)\nprint(os.getpid(), sorted(os.listdir('.')))"
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: run_program(program, 30.0), range(2)))
    assert all(result.stdout.endswith("['program.py', 'x']\n") for result in results), results


def test_a_caller_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    """The keeper dies with its caller, and the program with the keeper."""
    source = f"import os; os.execv('/bin/sleep', ['{MARK}', '1000'])"
    code = f"from nanochat.execution import run_program\nrun_program({source!r}, 1000.0)"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, env=environment) as caller:
        for ends in (False, True):
            if ends:
                caller.kill()
            deadline = time.monotonic() + 60
            while bool(alive()) == ends and time.monotonic() < deadline:
                time.sleep(0.02)
            assert bool(alive()) != ends


def test_a_program_cannot_read_its_callers_input() -> None:
    code = "from nanochat.execution import run_program\nprint(run_program('print([input()])', 30.0).error)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, input=TOKEN, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("exit code 1: EOFError: EOF when reading a line\n", "")


def test_an_interrupted_caller_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    source = f"import os; os.execv('/bin/sleep', ['{MARK}', '1000'])"

    def interrupt() -> None:
        while not alive():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run_program(source, 100.0)
    assert alive() == []
    assert os.listdir(tmp_path) == []


def test_without_any_layer() -> None:
    """As on macOS: limits alone. No process can be started; root is refused, because it could start some."""
    if os.geteuid() == 0:
        with pytest.raises(UserError, match="another user"):
            run_program("print(1)", 30.0, without=ISOLATION_LAYERS)
        return
    for name in (
        "fork",
        "no end",
        "one large object",
        "a large file",
        "flood",
        "secrets",
        "input",
        "an error",
        "open files",
    ):
        expected, text = PROGRAMS[name]
        result = run_program(PREAMBLE + text, 1.0 if expected == "time" else 30.0, without=ISOLATION_LAYERS)
        judge(expected, result)
        assert result.layers == ()


def test_a_python_that_does_not_start_is_not_the_programs_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "_base_executable", "/bin/false")
    with pytest.raises(UserError, match="cannot be run on this machine"):
        run_program("print(1)", 30.0)
