"""Reading in processes of their own, with limits of time and memory for each file.

A file may be damaged, or made to harm: a parser could loop, or unpack more than the memory holds. Then its process
ends, the file is counted, and a new process reads the next one. Time is processor time, so that a busy machine, or a
command that was stopped for a while, gives the same documents.
"""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Generator, Iterable
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path

from nanochat.documents.document import Document, document_from_json, document_to_json
from nanochat.documents.file_reader import FileFacts, ReadOptions, read_file
from nanochat.documents.formats import DAMAGED, TOO_MUCH_MEMORY, TOO_SLOW, ReadFailure
from nanochat.system.json_files import check_type
from nanochat.system.json_text import MAX_JSON_BYTES

MAX_MEMORY_BYTES = 2 << 30  # of a process, above what it has at its start
_CHILD = "from nanochat.documents.reader_process import serve; serve"
_STALLED = 20  # times max_seconds: a process that uses no processor time, as on a lost network drive, is given up


@dataclass
class FileResult:
    """The end of a file's reading. `reason` is one of `formats`, or None if all of its documents were sent."""

    facts: FileFacts = field(default_factory=FileFacts)
    reason: str | None = None
    detail: str = ""


def read_files(
    files: Iterable[tuple[Path, str]], options: ReadOptions, num_workers: int
) -> Generator[tuple[int, Document | FileResult], None, None]:
    """Yield (number of the file, document) for each document, and (number, `FileResult`) at the end of each file.

    `files`: path and name of each. With several processes, the files come mixed; the documents of one are in order. A
    result with a reason means that the documents of its file, which have come before, are incomplete.
    """
    waiting = iter(enumerate(files))
    workers = [_Worker(options) for _ in range(num_workers)]
    try:
        busy = {worker.connection: worker for worker in workers if worker.start_next(waiting)}
        while busy:
            ready = wait(list(busy), timeout=_STALLED * options.max_seconds)
            for connection in ready or list(busy):
                worker = next(worker for worker in workers if worker.connection is connection)
                del busy[worker.connection]
                number = worker.number
                message = worker.receive() if ready else worker.give_up()
                yield number, message
                if isinstance(message, Document) or worker.start_next(waiting):
                    busy[worker.connection] = worker
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """One process that reads files, replaced when it ends."""

    def __init__(self, options: ReadOptions) -> None:
        self._options = options
        self.number = -1  # of the file that it reads
        self._start()

    def _start(self) -> None:
        # A new interpreter: a fork would copy the locks of threads, and multiprocessing would import the script again.
        self.connection, theirs = Pipe()
        path = os.pathsep.join(filter(None, sys.path))
        command = [sys.executable, "-c", f"{_CHILD}({theirs.fileno()})"]
        environment = {**os.environ, "PYTHONPATH": path}
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL)
        theirs.close()
        _send(self.connection, asdict(self._options))

    def start_next(self, waiting: Iterable[tuple[int, tuple[Path, str]]]) -> bool:
        """Send the next file to the process, if there is one."""
        for self.number, (path, name) in waiting:
            try:
                _send(self.connection, [os.fspath(path), name])
            except (BrokenPipeError, ConnectionResetError):  # it died after its last answer
                self._start_again()
                _send(self.connection, [os.fspath(path), name])
            return True
        return False

    def receive(self) -> Document | FileResult:
        """Return the process's next message, or, if it has ended, why."""
        try:
            return _message_of(self.connection.recv_bytes())
        except (EOFError, ConnectionResetError):
            code = self._process.wait()
            self._start_again()
            if code in (-signal.SIGPROF, -signal.SIGXCPU):
                return FileResult(reason=TOO_SLOW)
            if code == -signal.SIGKILL:  # by the system, as it had no memory left
                return FileResult(reason=TOO_MUCH_MEMORY)
            return FileResult(reason=DAMAGED, detail=f"its parser ended with exit code {code}")
        except (ValueError, RecursionError):
            self._start_again()
            return FileResult(reason=DAMAGED, detail="its parser sent what is no document")

    def give_up(self) -> FileResult:
        """End the process, which does not answer, and start another one."""
        self._start_again()
        return FileResult(reason=TOO_SLOW)

    def _start_again(self) -> None:
        self.end()
        self._start()

    def end(self) -> None:
        """End the process."""
        self.connection.close()
        self._process.kill()
        self._process.wait()


def serve(descriptor: int) -> None:
    """Read files that come over a pipe until its other end is closed. Output goes nowhere: parsers print warnings."""
    connection = Connection(descriptor)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    _silence()
    _limit_memory()
    csv.field_size_limit(MAX_JSON_BYTES)  # of all of this process
    options = ReadOptions(**json.loads(connection.recv_bytes()))
    while True:
        try:
            path, name = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return
        facts = FileFacts()
        result = FileResult(facts)
        _start_clock(options.max_seconds)
        try:
            for document in read_file(Path(path), name, options, facts):
                _start_clock(0)  # the other side may take its time
                connection.send_bytes(document_to_json(document).encode("utf-8"))
                _start_clock(options.max_seconds)
        except ReadFailure as failure:
            result = FileResult(facts, failure.reason, failure.detail)
        except MemoryError:
            result = FileResult(facts, TOO_MUCH_MEMORY)
        except (BrokenPipeError, ConnectionResetError):
            return
        except Exception as error:  # of a parser, for a file that it does not understand
            result = FileResult(facts, DAMAGED, f"{type(error).__name__}: {error}"[:200])
        _start_clock(0)
        _send(connection, asdict(result))


def _send(connection: Connection, value: object) -> None:
    """Send JSON. Never pickled objects: the process that reads hostile files must not decide what this one runs."""
    connection.send_bytes(json.dumps(value).encode("ascii"))  # half a surrogate pair of a name stays as it is


def _message_of(content: bytes) -> Document | FileResult:
    """Return the message of a reading process. Raises ValueError (also UserError) for what is no message."""
    value = json.loads(content)
    if isinstance(value, dict) and "blocks" in value:
        return document_from_json(value)
    check_type(value, FileResult, "")
    return FileResult(**{**value, "facts": FileFacts(**value.get("facts", {}))})


def _start_clock(seconds: float) -> None:
    """End this process after this much processor time; 0 never does."""
    signal.setitimer(signal.ITIMER_PROF, seconds)


def _silence() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _limit_memory() -> None:
    """Bound the address space, where the system keeps such a bound."""
    if not sys.platform.startswith("linux"):
        return
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * resource.getpagesize() + MAX_MEMORY_BYTES
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if soft == resource.RLIM_INFINITY or limit < soft:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
