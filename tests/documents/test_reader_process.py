"""Reading in processes: limits of time and memory, processes that die."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import psutil
import pytest

from nanochat.documents import reader_process
from nanochat.documents.document import Document
from nanochat.documents.file_reader import ReadOptions
from nanochat.documents.formats import DAMAGED, NO_TEXT, TOO_MUCH_MEMORY, TOO_SLOW
from nanochat.documents.reader_process import FileResult, read_files

pytestmark = pytest.mark.slow


def read(
    paths: list[Path], options: ReadOptions | None = None, num_workers: int = 1
) -> list[list[Document | FileResult]]:
    """The messages of each file."""
    found: list[list[Document | FileResult]] = [[] for _ in paths]
    for number, message in read_files([(path, path.name) for path in paths], options or ReadOptions(), num_workers):
        found[number].append(message)
    return found


def results(found: list[list[Document | FileResult]]) -> list[FileResult]:
    last = [messages[-1] for messages in found]
    assert all(isinstance(message, Document) for messages in found for message in messages[:-1])
    return [message for message in last if isinstance(message, FileResult)]


def test_files_are_read_by_several_processes(tmp_path: Path) -> None:
    paths = []
    for number in range(20):
        paths.append(tmp_path / f"{number}.md")
        paths[-1].write_text(f"text {number}" if number % 4 else "", encoding="utf-8")
    found = read(paths, num_workers=3)
    assert [result.reason for result in results(found)] == [None if number % 4 else NO_TEXT for number in range(20)]
    for number, messages in enumerate(found):
        texts = [message.text for message in messages if isinstance(message, Document)]
        assert texts == ([f"text {number}"] if number % 4 else [])


@pytest.fixture
def parser(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in place of the parser of Markdown: files hold Python that it runs in the reading process."""
    start = "import nanochat.documents.file_reader as f\n"
    start += "f.read_markdown = lambda text: exec(text, {}) or f.HtmlText('', [])\n"
    child = start + "from nanochat.documents.reader_process import serve; serve"
    monkeypatch.setattr(reader_process, "_CHILD", child)
    return tmp_path


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("while True: pass", TOO_SLOW),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", TOO_MUCH_MEMORY),
        ("import os; os._exit(3)", DAMAGED),
        ("raise ValueError('a fault of a parser')", DAMAGED),
        ("def f(): f()\nf()", DAMAGED),
        (
            "import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'\\0\\0\\0\\2[]')\n    except OSError: pass",
            DAMAGED,
        ),
        pytest.param(
            "x = bytearray(1 << 40)",
            TOO_MUCH_MEMORY,
            marks=pytest.mark.skipif(not sys.platform.startswith("linux"), reason="bounds the memory on Linux only"),
        ),
    ],
)
def test_a_file_that_harms_its_process(parser: Path, program: str, reason: str) -> None:
    """The file is counted, and the next one is read."""
    bad, good = parser / "bad.md", parser / "good.txt"
    bad.write_text(program, encoding="utf-8")
    good.write_text("text", encoding="utf-8")
    first, second = results(read([bad, good], ReadOptions(max_seconds=1)))
    assert first.reason == reason
    assert second.reason is None


def test_processes_end_with_the_reading(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("text", encoding="utf-8")
    before = set(psutil.Process().children())
    messages = read_files([(tmp_path / "a.md", "a.md")] * 50, ReadOptions(), 2)
    next(messages)
    assert set(psutil.Process().children()) > before
    messages.close()
    assert set(psutil.Process().children()) <= before


def test_a_parser_prints_nothing(parser: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (parser / "a.md").write_text("import os; print('x'); os.write(2, b'y')", encoding="utf-8")
    read([parser / "a.md"])
    assert capfd.readouterr() == ("", "")
    assert signal.getsignal(signal.SIGPROF) == signal.SIG_DFL
