"""Streams of a command: escapes for control characters, closed streams, readers that leave, Ctrl-C, progress bars."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import pytest

from nanochat.system import console
from nanochat.system.console import (
    CONTROL,
    BarOutput,
    Output,
    command,
    print0,
    run_without_output,
    visible,
    visible_line,
    write_controls,
)

ROOT = Path(__file__).resolve().parents[2]
BODY = "from nanochat.common import command, print0, run_without_output, UserError\nwith command():\n    "


def start(code: str, **options: object) -> subprocess.Popen[str]:
    """Start a program as `python -m` does: a module whose first import is nanochat's."""
    header = "import sys; sys.argv[0] = '-m'; import nanochat\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options.pop("env", {})}  # type: ignore[dict-item]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-c", header + code], env=environment, text=True, **pipes)  # type: ignore[call-overload, no-any-return]


def run(code: str, **options: object) -> tuple[int, str, str]:
    """Return the exit code, the output and the messages of such a program."""
    process = start(code, **options)
    output, messages = process.communicate(timeout=100)
    return process.returncode, output, messages


def make_output(encoding: str = "utf-8") -> tuple[Output, io.BytesIO]:
    """A stream into memory, and its bytes."""
    data = io.BytesIO()
    return Output(io.TextIOWrapper(data, encoding=encoding)), data


@pytest.mark.parametrize(("rank", "output"), [(None, "a b\n"), ("0", "a b\n"), ("1", "")])
def test_print0(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str | None, output: str
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    print0("a", "b")
    assert capsys.readouterr().out == output
    print0("a", "b", file=sys.stderr)
    assert capsys.readouterr() == ("", output)


# Escapes


def test_every_control_character_is_visible() -> None:
    bidirectional = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        is_control = unicodedata.category(character) in ("Cc", "Zl", "Zp") and character not in "\n\t"
        is_control |= unicodedata.bidirectional(character) in bidirectional
        assert (CONTROL.match(character) is not None) == is_control, hex(code)
    assert visible("\x1b]52;c;eA==\x07\x9b2J\b\r\u202etxt\u2066") == (r"\x1b]52;c;eA==\x07\x9b2J\x08\r\u202etxt\u2066")
    assert visible("one\ttwo\nthree 🙂 שלום") == "one\ttwo\nthree 🙂 שלום"
    assert visible_line("a\nerror: b") == "a\\nerror: b"


def test_the_stream_shows_escapes_and_lets_our_own_sequences_pass() -> None:
    stream, data = make_output()
    for character in "a\x1b[2mb\x9b":  # however a sequence is cut into chunks
        print(character, end="", file=stream)
    write_controls(stream, "\x1b[0m")
    stream.flush()
    assert data.getvalue() == rb"a\x1b[2mb\x9b" + b"\x1b[0m"


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("ascii", rb"\xe9\u2192\udcff"),
        ("latin-1", b"\xe9" + rb"\u2192\udcff"),
        ("utf-8", "é→".encode() + rb"\udcff"),
    ],
)
def test_characters_that_the_encoding_lacks(encoding: str, expected: bytes) -> None:
    stream, data = make_output(encoding)
    print("é→\udcff", end="", file=stream, flush=True)
    assert data.getvalue() == expected


def test_a_command_sanitises_errors_warnings_logs_threads_and_tracebacks() -> None:
    hostile = r"'\x1b]0;x\x07\u202e'"
    code, output, messages = run(
        "import logging, threading, warnings\n"
        f"{BODY}x = {hostile}\n"
        "    print(x); warnings.warn(x); logging.error(x)\n"
        "    thread = threading.Thread(target=lambda: int(x)); thread.start(); thread.join()\n"
        "    raise KeyError(x + chr(27))"
    )
    assert code == 1
    assert output == r"\x1b]0;x\x07\u202e" + "\n"
    assert "Warning" in messages
    assert "ERROR:root:" in messages
    assert messages.count("Traceback") == 2
    assert not CONTROL.search(messages)


def test_an_error_is_one_line() -> None:
    assert run(BODY + r"raise UserError('file a\nb\x1b[2J\x85 is wrong')") == (
        2,
        "",
        r"error: file a\nb\x1b[2J\x85 is wrong" + "\n",
    )


# Streams that are closed, lost or not there


@pytest.mark.parametrize("closed", ["0", "1", "2", "01", "02", "12", "012"])
def test_closed_streams(closed: str, tmp_path: Path) -> None:
    """A closed stream is the null device, not the file that is opened next."""
    file = tmp_path / "file"
    code = (
        f"{BODY}import os, subprocess, sys\n"
        f"    with open({str(file)!r}, 'wb', 0) as file:\n"
        "        print('out'); print('err', file=sys.stderr)\n"
        "        sys.stdin.read(); sys.stdout.isatty(); sys.stderr.isatty()\n"
        "        sys.stdout.flush()\n"
        "        for number in (1, 2):\n"
        "            os.write(number, b'c')\n"
        "        subprocess.run(['sh', '-c', 'echo x; echo x >&2; cat'])\n"
        "        file.write(b'content')\n"
    )
    program = "import sys; sys.argv[0] = '-m'; import nanochat\n" + code
    redirect = " ".join(f"{number}{'<' if number == '0' else '>'}&-" for number in closed)
    command = ["sh", "-c", f'exec "$0" -c "$1" {redirect}', sys.executable, program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, input="", timeout=100)
    assert done.returncode == 0, done.stderr
    assert file.read_bytes() == b"content"
    assert done.stdout == ("" if "1" in closed else "out\ncx\n")
    assert done.stderr == ("" if "2" in closed else "err\ncx\n")


def test_a_reader_that_leaves_ends_a_command_quietly() -> None:
    process = start(f"{BODY}import time\n    while True:\n        print('line', flush=True)")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "line\n"
    process.stdout.close()
    assert process.wait(timeout=100) == 128 + signal.SIGPIPE
    assert process.stderr.read() == ""
    process.stderr.close()


def test_output_that_is_lost_at_the_end() -> None:
    """The last lines are still in a buffer when the work is done."""
    reading, writing = os.pipe()
    process = start(f"{BODY}sys.stdin.read(); print('line')", stdin=subprocess.PIPE, stdout=writing)
    os.close(writing)
    os.close(reading)
    assert process.communicate("", timeout=100) == (None, "")
    assert process.returncode == 128 + signal.SIGPIPE


def test_a_run_goes_on_without_output() -> None:
    process = start(
        f"{BODY}run_without_output()\n"
        "    print('first', flush=True); sys.stdin.read()\n"
        "    for i in range(9): print0('x' * 9999)\n"
        "    print('at the end', file=sys.stderr)",
        stdin=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, messages = process.communicate("", timeout=100)
    assert process.returncode == 0
    assert messages == ("WARNING: cannot write to standard output (Broken pipe): going on without it\nat the end\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("is_run", [False, True])
def test_a_full_disk_under_the_output(is_run: bool) -> None:
    call = "run_without_output(); " if is_run else ""
    with open("/dev/full", "w", encoding="utf-8") as full:
        code, _, messages = run(f"{BODY}{call}print('line')", stdout=full)
    assert code == (0 if is_run else 2)
    assert messages == (
        "WARNING: cannot write to standard output (No space left on device): going on without it\n"
        if is_run
        else "error: cannot write to standard output: No space left on device\n"
    )


# Ctrl-C


@pytest.mark.parametrize(
    "code",
    [
        "print('ready', flush=True)\ntry:\n    while True: pass\nexcept BaseException: pass\n",  # during imports
        BODY + "print('ready', flush=True)\n    while True: pass",
        BODY + "pass\nprint('ready', flush=True)\nwhile True: pass",  # closing threads and files
    ],
)
def test_ctrl_c_gives_a_line(code: str) -> None:
    process = start(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate(timeout=100)
    assert (process.returncode, messages) == (130, "interrupted\n")


def test_a_second_ctrl_c_says_nothing() -> None:
    """It comes when threads are joined, after the work has ended."""
    code = f"{BODY}import threading, time; threading.Thread(target=time.sleep, args=(60,)).start()\n"
    process = start(code + "    print('ready', flush=True)\n    while True: pass")
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "interrupted\n"
    time.sleep(0.2)  # until the interpreter waits for the thread
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == ("", "")
    assert process.returncode == 130


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    """As of a job in the background of a script."""
    process = start(
        f"{BODY}print('ready', flush=True); sys.stdin.read()",
        stdin=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.communicate("", timeout=100)
    assert process.returncode == 0


def test_a_command_in_a_process_restores_what_it_replaced() -> None:
    from tqdm import tqdm

    def state() -> tuple[object, ...]:
        return sys.stdin, sys.stdout, sys.stderr, vars(tqdm)["__init__"], signal.getsignal(signal.SIGINT)

    before = state()
    with command():
        assert isinstance(sys.stdout, Output)
        run_without_output()
    assert state() == before
    assert not console._is_running_without_output


# Progress bars


def test_bars_keep_their_control_sequences_and_their_text_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tqdm import tqdm

    stream, data = make_output()
    with monkeypatch.context() as patch, command():
        patch.setattr(sys, "stderr", stream)
        with tqdm(total=2, desc="a\x1b[2J\rb") as outer, tqdm(total=2, desc="inner") as inner:
            inner.update()
            print0("between", file=sys.stderr)
            outer.update()
        bars = data.getvalue().decode()
    assert r"a\x1b[2J\rb:   0%" in bars
    assert "\r\x1b[Abetween\n" in bars  # the bars were cleared
    assert not CONTROL.search(bars.replace("\r", "").replace("\x1b[A", ""))


def test_the_file_of_bars_is_standard_error() -> None:
    assert BarOutput() == sys.stderr
    assert BarOutput() == BarOutput()
    assert BarOutput() != sys.stdout
    assert BarOutput().isatty() == sys.stderr.isatty()
