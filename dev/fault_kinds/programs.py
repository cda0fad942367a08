"""Hostile programs in the sandbox, for each set of layers that this machine has: nothing outside may change.

A process, files, sockets and this process itself are watched. A program is harmless if all of them are as before, no
process of it is left, it has not started more tasks than the limit permits, it printed nothing that it must not read,
and it has ended in time.
"""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from dev.fault_kinds.outcome import Outcome
from dev.fault_kinds.program_templates import PREAMBLE, TEMPLATES, Template
from nanochat.execution import ProgramResult, isolation_layers, run_program
from nanochat.sandbox.task_limit import MAX_TASKS

# Row of the table -> the layers that are left out.
SETS: dict[str, tuple[str, ...]] = {
    "programs: all layers": (),
    "programs: without namespaces": ("namespaces",),
    "programs: without Landlock": ("landlock",),
    "programs: without both": ("namespaces", "landlock"),
    "programs: without seccomp": ("seccomp",),
}
SIGNALS = (1, 2, 3, 6, 9, 10, 12, 13, 14, 15, 17, 19, 20, 23, 29)
WATCHED_SIGNALS = {
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGTERM,
    signal.SIGURG,
    signal.SIGIO,
}
TOKEN = "a-secret-that-stays"
TIMEOUT = 20.0  # of programs that end by themselves
SHORT_TIMEOUT = 1.0
MAX_SECONDS = 45.0  # beyond the timeout
REMOVAL_SECONDS = 60.0  # for the process that removes what the program has created
_GET_FLAGS = 0x80086601  # FS_IOC_GETFLAGS

# Records its signals, and prints a value of its memory for each line that it reads.
VICTIM = """
import ctypes, signal, sys
signals = []
for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
    signal.signal(number, lambda number, frame: signals.append(number))
value = ctypes.create_string_buffer(b"untouched", 16)
print(ctypes.addressof(value), flush=True)
while sys.stdin.readline():
    print(value.value.decode(), signals, flush=True)
"""


class World:
    """The targets of hostile programs: a process, a secret file, sockets, and this process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "outside"
        self.folder.mkdir(parents=True)
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.mark = f"nanochat-hostile-{os.getpid()}-{random.randrange(10**9)}"
        self.secret = self.folder / "secret.txt"
        self.server = socket.create_server(("127.0.0.1", 0))
        self.datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.datagrams.bind(self.server.getsockname())
        self.mailbox_folder = tempfile.TemporaryDirectory(prefix="nanochat-")  # the path of a socket must be short
        self.mailbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.mailbox_path = f"{self.mailbox_folder.name}/mailbox"
        self.mailbox.bind(self.mailbox_path)
        for watched in (self.server, self.datagrams, self.mailbox):
            watched.setblocking(False)
        self.signals: list[int] = []
        self.victim: subprocess.Popen[str] | None = None
        self.address = 0
        self.reset()

    def reset(self) -> None:
        """Put everything back that a program may have changed."""
        if self.victim is None or self.ask_victim() != ["untouched []"]:
            self.stop_victim()
            self.victim = subprocess.Popen(
                [sys.executable, "-c", VICTIM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
            assert self.victim.stdout, "a pipe"
            self.address = int(self.victim.stdout.readline())
        self.folder.mkdir(exist_ok=True)
        for path in (Path("/dev/shm") / self.mark, self.folder.parent / self.mark):
            path.unlink(missing_ok=True)
        for path in self.folder.iterdir():
            path.unlink() if path.is_symlink() or not path.is_dir() else path.rmdir()
        self.secret.write_text(TOKEN, encoding="utf-8")
        self.before = self.files()
        self.signals.clear()
        self.received()

    def files(self) -> list[object]:
        """Return names, contents and properties of the files outside."""
        found: list[object] = [self.folder.stat().st_mode]
        for path in sorted(self.folder.iterdir()):
            status = path.lstat()
            text = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            found += [path.name, text, status.st_mode, status.st_mtime_ns, status.st_uid, status.st_nlink]
            found += [*os.listxattr(path, follow_symlinks=False), flags_of(path)]
        return found

    def received(self) -> list[str]:
        """Return the sockets at which something has arrived since the last call."""
        found = []
        for name, receive in (
            ("connection", lambda: self.server.accept()[0].close()),
            ("datagram", lambda: self.datagrams.recv(1)),
            ("local datagram", lambda: self.mailbox.recv(1)),
        ):
            try:
                while True:
                    receive()
                    found.append(name)
            except BlockingIOError:
                pass
        return found

    def ask_victim(self) -> list[str]:
        """Return what the watched process says of itself; a list without it if it does not live."""
        assert self.victim is not None, "it was started"
        assert self.victim.stdin, "a pipe"
        assert self.victim.stdout, "a pipe"
        try:
            self.victim.stdin.write("\n")
            self.victim.stdin.flush()
        except BrokenPipeError:
            return ["dead"]
        return [self.victim.stdout.readline().strip() or "dead"]

    def stop_victim(self) -> None:
        """End the watched process."""
        if self.victim is not None:
            self.victim.kill()
            self.victim.communicate()

    def survivors(self) -> list[str]:
        """Return the processes with the mark, which only hostile programs have in their command lines."""
        listing = subprocess.run(["ps", "-A", "-o", "pid=,args="], capture_output=True, check=True).stdout
        return [line for line in listing.decode("utf-8", "replace").splitlines() if self.mark in line]

    def values(self, rng: random.Random) -> dict[str, object]:
        """Return the values of a template's variables, chosen by `rng` where there is a choice."""
        assert self.victim is not None, "it was started"
        return {
            "seed": rng.randrange(10**6),
            "victim": self.victim.pid,
            "watcher": os.getpid(),
            "address": self.address,
            "secret": self.secret,
            "folder": self.folder,
            "home": Path.home(),
            "port": self.server.getsockname()[1],
            "mailbox": self.mailbox_path,
            "mark": self.mark,
            "signal": rng.choice(SIGNALS),
            "catchable": rng.choice([int(number) for number in WATCHED_SIGNALS]),
            "sign": rng.choice([1, 1, -1]),
            "flags": rng.choice([0, 0x800, 0x1000, 0x8000, 1, 2, 3]),
            "number": rng.choice([1, 8, 100, 1000, 4095]),
            "count": rng.choice([100, 1000, 6000]),
            "size": rng.choice([600 << 20, 1 << 31, 1 << 40]),
            "seconds": rng.choice([0.1, 0.5, 1]),
        }

    def close(self) -> None:
        """End the process and close the sockets."""
        self.stop_victim()
        for watched in (self.server, self.datagrams, self.mailbox):
            watched.close()
        self.mailbox_folder.cleanup()


def flags_of(path: Path) -> int:
    """Return the flags of a file, which `lsattr` shows; 0 where the file system has none."""
    if path.is_symlink() or not path.is_file():
        return 0
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return int.from_bytes(fcntl.ioctl(descriptor, _GET_FLAGS, bytes(8)), sys.byteorder)
    except OSError:
        return 0
    finally:
        os.close(descriptor)


@contextmanager
def open_world(folder: Path) -> Iterator[World]:
    """Context with a world, while signals to this process are recorded and temporary files are in its folder."""
    world = World(folder)
    previous_folder = tempfile.tempdir

    def record(number: int, _frame: FrameType | None) -> None:
        world.signals.append(number)

    handlers = {number: signal.signal(number, record) for number in WATCHED_SIGNALS}
    tempfile.tempdir = str(world.temporary)
    try:
        yield world
    finally:
        tempfile.tempdir = previous_folder
        for number, handler in handlers.items():
            signal.signal(number, handler)
        world.close()


def run(count: int, seed: int, folder: Path) -> Iterator[Outcome]:
    """Yield the outcomes of `count` programs for each set of layers; each template is used before one is used again.

    Yields nothing where there are no layers, as on macOS.
    """
    if sys.platform != "linux":
        return
    available = {layer for layer, is_active in isolation_layers().items() if is_active}
    with open_world(folder) as world:
        for kind, without in SETS.items():
            expected = available - {*without, *(["mounts"] if "namespaces" in without else [])}
            if not {"namespaces", "seccomp"} & expected or not set(without) <= available:
                continue  # the same set as another one, or programs are not run at all
            rng = random.Random(f"{seed} {kind}")
            # Where nothing is promised for files, no program is run that would change some.
            usable = [
                name for name in sorted(TEMPLATES) if is_promised("files", expected) or TEMPLATES[name].needs != "files"
            ]
            names: list[str] = []
            while len(names) < count:
                names += rng.sample(usable, len(usable))
            for number, name in enumerate(names[:count]):
                yield run_case(kind, name, f"{seed} {number}", without, expected, world)


def run_case(kind: str, name: str, seed: str, without: Iterable[str], expected: set[str], world: World) -> Outcome:
    """Return the outcome of a program. `expected`: the layers that it has."""
    template = TEMPLATES[name]
    world.reset()
    rng = random.Random(f"{seed} {name}")
    source = string.Template(PREAMBLE + template.source).substitute(world.values(rng))
    start = time.monotonic()
    timeout = SHORT_TIMEOUT if template.ends == "time" else TIMEOUT
    case = f"{name}, seed {seed!r}"
    try:
        result = run_program(source, timeout, without=tuple(without))
    except Exception as error:
        return Outcome(kind, case, "traceback", f"{type(error).__name__}: {error}")
    seconds = time.monotonic() - start
    problems = find_escapes(template, result, expected, world)
    if problems:
        return Outcome(kind, case, "escape", "\n".join([*problems, result.stdout[-500:], result.stderr[-500:]]))
    if seconds > timeout + MAX_SECONDS:
        return Outcome(kind, case, "hang", f"{seconds:.0f} s")
    if template.ends != "any" and result.timed_out != (template.ends == "time"):
        return Outcome(kind, case, "silent", f"{result}"[:1000])
    if "isolation.py" in result.stderr or "task_limit.py" in result.stderr:
        return Outcome(kind, case, "traceback", result.stderr[-1000:])
    if set(result.layers) != expected:
        return Outcome(kind, case, "silent", f"layers {result.layers}, not {sorted(expected)}")
    end = time.monotonic() + REMOVAL_SECONDS
    while (left := os.listdir(world.temporary)) and time.monotonic() < end:
        time.sleep(0.05)
    if left:
        return Outcome(kind, case, "leftover", f"{left}")
    return Outcome(kind, case, "ok")


def is_promised(need: str, layers: set[str]) -> bool:
    """Return True if these layers protect what a template attacks; the need "" is that of every sandbox."""
    protecting = {"files": {"mounts", "landlock"}, "calls": {"seccomp"}, "network": {"namespaces", "seccomp"}}
    return need not in protecting or bool(protecting[need] & layers)


def find_escapes(template: Template, result: ProgramResult, layers: set[str], world: World) -> list[str]:
    """Return a line for each effect outside that the layers promise to prevent."""
    found = []
    if (answer := world.ask_victim()) != ["untouched []"]:
        found.append(f"the watched process: {answer}")
    if world.signals:
        found.append(f"signals to this process: {world.signals}")
    if arrived := world.received():
        found.append(f"arrived: {arrived}")
    if left := world.survivors():
        found.append(f"processes that are left: {left}")
    if is_promised("files", layers) and world.files() != world.before:
        found.append(f"files outside: {world.files()}, not {world.before}")
    if is_promised("files", layers) and TOKEN in result.stdout + result.stderr:
        found.append("the secret was read")
    if is_promised(template.needs, layers):
        found += [line for line in result.stdout.splitlines() if line.startswith("ESCAPED")]
    counts = [int(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("TASKS")]
    return found + [f"{count} tasks at once" for count in counts if count > 2 * MAX_TASKS]
