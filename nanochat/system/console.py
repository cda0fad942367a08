"""Streams of a command: everything that a command prints goes through `Output`, and Ctrl-C and `| head` end it quietly.

Names of files and columns, text of models and servers, and values of settings reach the terminal in messages. A control
character among them could move the cursor, write to the clipboard or reverse the text: `Output` shows it as an escape,
such as `\\x1b`. Control sequences of our own (colours, progress bars) take a door, `Output.write_controls`.

`python -m MODULE` calls `start_command` before the module and its imports (from `nanochat/__init__.py`), and the module
runs its work in `command` (`cli` does). Importing this module imports neither torch nor tqdm, and changes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import re
import signal
import sys
from collections.abc import Iterator
from typing import Any, NoReturn, TextIO

from nanochat.system.errors import (
    StoppedBySignal,
    UserError,
    find_fault_of_file,
    find_fault_of_name,
    find_lost_process,
    hide_credentials,
)

# Control characters but newline and tab; line separators; characters that embed, override or isolate text directions.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
INTERRUPTED = 128 + signal.SIGINT  # exit codes, as shells report an end by a signal
READER_LEFT = 128 + getattr(signal, "SIGPIPE", 13)

_is_running_without_output = False
_is_interrupted = False  # and a line has said so


def visible(text: str) -> str:
    """Return text with its control characters as escapes.

    >>> visible("a\\x1b[2Jb\\r\\u202e")
    'a\\\\x1b[2Jb\\\\r\\\\u202e'
    """
    return CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


def visible_line(text: str) -> str:
    """Return `visible(text)` with newlines as escapes, too: for text that must stay in its line."""
    return visible(text).replace("\n", "\\n")


class Output(io.TextIOWrapper):
    """A text stream that shows control characters, and characters that its encoding lacks, as escapes.

    It takes the place of standard output or standard error, and writes to the same file. If that fails because the
    reader has left, the command ends at once and quietly; after `run_without_output`, it goes on without the stream.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        stream.flush()
        super().__init__(
            _new_buffer(stream),
            encoding=stream.encoding,
            errors="backslashreplace",
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        )
        self.replaced = stream  # which would close the buffer if nothing referred to it
        self._exit_code = 0  # not 0 once the stream is lost

    def write(self, text: str) -> int:
        """Write text, with control characters as escapes and without credentials."""
        self.write_controls(visible(hide_credentials(text)))
        return len(text)

    def write_controls(self, text: str) -> None:
        """Write text as it is. Only for control sequences of our own."""
        if self._exit_code and not _is_running_without_output:
            raise SystemExit(self._exit_code)
        try:
            super().write(text)
        except OSError as error:
            self._lose(error)

    def flush(self) -> None:
        """Write what is buffered."""
        try:
            super().flush()
        except OSError as error:
            self._lose(error)

    def close(self) -> None:
        """Flush. The file belongs to the stream that was replaced."""
        if not self.buffer.closed:
            self.flush()

    def _lose(self, error: OSError) -> None:
        """Send everything else to the null device. Raise SystemExit, unless the command goes on without output."""
        has_reader_left = error.errno == errno.EPIPE
        self._exit_code = READER_LEFT if has_reader_left else 2
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self.fileno())
        os.close(null)
        name = {1: "standard output", 2: "standard error"}.get(self.fileno(), "the output")
        reason = error.strerror or type(error).__name__
        other = sys.stderr if self.fileno() == 1 else sys.stdout
        if _is_running_without_output:
            print(f"WARNING: cannot write to {name} ({reason}): going on without it", file=other, flush=True)
            return
        if not has_reader_left:
            print(f"error: cannot write to {name}: {reason}", file=other, flush=True)
        raise SystemExit(self._exit_code)


def _new_buffer(stream: io.TextIOWrapper) -> Any:
    """Return a buffer for the file of a stream; the stream's own if it is not a file, as in a test."""
    try:
        file = io.FileIO(stream.fileno(), "w", closefd=False)
    except OSError:  # also io.UnsupportedOperation
        return stream.buffer
    return file if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(file)  # `python -u` has no buffer


def write_controls(stream: TextIO, text: str) -> None:
    """Write a control sequence of our own, which `Output` would show as an escape."""
    if isinstance(stream, Output):
        stream.write_controls(text)
    else:
        stream.write(text)


def print0(*args: object, **kwargs: Any) -> None:
    """Print on rank 0 only, flushed at once and without breaking a progress bar."""
    if os.environ.get("RANK", "0") != "0":
        return
    tqdm = getattr(sys.modules.get("tqdm"), "tqdm", None)  # without tqdm there is no bar
    with tqdm.external_write_mode() if tqdm else contextlib.nullcontext():
        print(*args, **{"flush": True, **kwargs})


def run_without_output() -> None:
    """Let this command go on if standard output or standard error can no longer be written, as if nobody had read it.

    For training: a run outlives the `head` or the ssh connection that showed it, and saves.
    """
    global _is_running_without_output
    _is_running_without_output = True


# --- a command from its start to its end ------------------------------------------------------------------------------


def start_command() -> None:
    """Prepare the streams of this process, and end it quietly on Ctrl-C until `command` begins.

    `nanochat/__init__.py` calls this, so that Ctrl-C during the imports of a command gives a line, not a traceback.
    """
    os.environ.setdefault("PYTHON_COLORS", "0")  # Python 3.13 would colour its tracebacks with control sequences
    _open_closed_streams()
    _replace_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not in the background, where it is ignored
        signal.signal(signal.SIGINT, _leave)


@contextlib.contextmanager
def command(hint: str = "Run the command again, with the machines that are left") -> Iterator[None]:
    """Context of a command's work, which turns its ends into a line and an exit code.

    A UserError becomes one line on stderr and exit code 2, and so does an error of the file system that the user has to
    mend, as a full disk (`find_fault_of_file`, `find_fault_of_name`). A run ended by a signal exits with 128 + the
    signal, as a shell reports it (130 for Ctrl-C, 143 for SIGTERM), so a shell script of several stages does not go on.
    A process that has lost another one of its run says so in one line with `hint`, with exit code 1. A reader of the
    output that has left, as in `| head`, ends the command quietly with 141.
    """
    global _is_interrupted, _is_running_without_output
    streams = sys.stdin, sys.stdout, sys.stderr
    is_started = signal.getsignal(signal.SIGINT) is _leave
    if not is_started:
        _open_closed_streams()
        _replace_streams()
    with _progress_bars():
        try:
            if is_started:
                signal.signal(signal.SIGINT, signal.default_int_handler)
            if {"RANK", "WORLD_SIZE"} & os.environ.keys():  # left in a shell, they would silence this process
                from nanochat.system.environment import process_numbers

                process_numbers()
            yield
        except UserError as error:
            _print_error(str(error))
            raise SystemExit(2) from None
        except StoppedBySignal as stopped:
            print0(stopped)
            raise SystemExit(stopped.exit_code) from None
        except KeyboardInterrupt:
            _is_interrupted = True
            print("interrupted", file=sys.stderr, flush=True)
            raise SystemExit(INTERRUPTED) from None
        except Exception as error:
            if fault := find_fault_of_file(error) or find_fault_of_name(error):
                _print_error(fault)
                raise SystemExit(2) from None
            message = find_lost_process(error)
            if message is None:
                raise
            sys.stdout.flush()
            _print_error(f"{message}. {hint}")
            os._exit(1)  # torch would first wait for the collectives that are still pending
        finally:
            if is_started:
                signal.signal(signal.SIGINT, _leave)  # a second Ctrl-C, while threads and files are closed
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            if not is_started:
                sys.stdin, sys.stdout, sys.stderr = streams
                _is_running_without_output = False


def _print_error(message: str) -> None:
    print(f"error: {visible_line(message)}", file=sys.stderr, flush=True)


def _leave(*_: object) -> NoReturn:
    """Handle SIGINT before and after the work of a command: nothing is unfinished, and no exception is raised.

    An exception could be raised in the middle of an import of C code, which may swallow or translate it.
    """
    if not _is_interrupted:
        with contextlib.suppress(OSError):
            os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _open_closed_streams() -> None:
    """Open the null device in place of streams that are closed (`>&-`).

    Otherwise Python has None for them, and the next file that is opened, such as a checkpoint, gets their number and
    with it the output of C code and of child processes.
    """
    while True:
        descriptor = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
        if descriptor > 2:
            os.close(descriptor)
            break
        os.set_inheritable(descriptor, True)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", errors="replace", closefd=False))  # noqa: SIM115


def _replace_streams() -> None:
    """Put an `Output` in place of standard output and error. Undecodable input becomes U+FFFD.

    Streams that are not files, as in a notebook, stay as they are.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and not isinstance(stream, Output):
            setattr(sys, name, Output(stream))
    if isinstance(sys.stdin, io.TextIOWrapper):
        with contextlib.suppress(io.UnsupportedOperation):  # it has been read from, by a program that runs commands
            sys.stdin.reconfigure(errors="replace")


# --- progress bars ----------------------------------------------------------------------------------------------------


class BarOutput:
    """The file of progress bars: standard error, with the control sequences that tqdm writes itself.

    These are a carriage return in front of a bar, and moves to other bars. The text of a bar is shown as any other.
    """

    def write(self, text: str) -> None:
        """Write a bar, or a move to another one."""
        if re.fullmatch(r"(\n|\x1b\[A)*", text):
            write_controls(sys.stderr, text)
            return
        if text.startswith("\r"):
            write_controls(sys.stderr, "\r")
        sys.stderr.write(text.removeprefix("\r"))

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)

    def __eq__(self, other: object) -> bool:
        return other is sys.stderr or isinstance(other, BarOutput)

    def __hash__(self) -> int:
        return hash(BarOutput)


@contextlib.contextmanager
def _progress_bars() -> Iterator[None]:
    """Context in which tqdm's bars, ours and those of libraries, write to `BarOutput` unless they name a file."""
    from tqdm import tqdm

    tqdm.get_lock()  # made now: tqdm loses an interrupt while it makes its lock, and raises AttributeError instead
    original = vars(tqdm)["__init__"]
    tqdm.__init__ = functools.partialmethod(original, file=BarOutput())
    try:
        yield
    finally:
        tqdm.__init__ = original
