"""Every command with streams that are closed or cannot encode its text, with a reader that leaves, and with Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.scripts.test_chat_cli import save_model
from tests.support.processes import Forker
from tests.support.sources import ROOT, sources

COMMANDS = [
    source.module.removesuffix(".__main__")
    for source in sources()
    if '\nif __name__ == "__main__":' in source.text and source.path.split("/")[0] in ("nanochat", "scripts", "dev")
]
RUN_BY_PATH = {"dev.compare_losses"}  # python dev/compare_losses.py
SERVERS = {"dev.fault_kinds.launcher"}
COMMANDS = [name for name in COMMANDS if name not in RUN_BY_PATH | SERVERS]

WITHOUT_SETTINGS = {"nanochat.system.gpu", "dev.list_long"}
ARGUMENTS = {"dev.check_settings": ["scripts.doctor"]}  # in front of flags

HELP, WRONG = "--help", "--no_such_setting=1"

# A module that takes its time to be imported, and swallows exceptions.
STAND_IN = """
import pathlib, time
pathlib.Path("importing").touch()
while True:
    try:
        time.sleep(0.01)
    except BaseException:
        pass
"""


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_during_imports(name: str, tmp_path: Path) -> None:
    """A line and exit code 130; the first import outside of the standard library takes its time."""
    for module in ("torch", "numpy", "pyarrow", "tqdm", "fastapi", "filelock", "requests", "regex", "tomllib"):
        (tmp_path / f"{module}.py").write_text(STAND_IN, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", name], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "importing").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, messages = process.communicate(timeout=60)
    assert (process.returncode, output, messages) == (130, b"", b"interrupted\n")


# Runs command lines in forks of a process that has imported everything, with closed streams: as `python -m` would.
# A line of input and of output for each.
CLOSING = """
import io, json, os, runpy, signal, sys
import torch
from nanochat import dataset, report
from nanochat.training import finetune
from nanochat.rl import loop
from nanochat.serving import server
from nanochat.system.console import start_command
requests = os.fdopen(os.dup(0), encoding="utf-8")
for line in requests:
    name, flags, closed = json.loads(line)
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        for number, path in ((1, "output"), (2, "messages")):
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
            os.close(file)
        for number in closed:
            os.close(number)
            setattr(sys, ("stdin", "stdout", "stderr")[number], None)
        code = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            start_command()
            sys.argv = [name, *flags]
            runpy.run_module(name, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code
        finally:
            if code != 0 and code != 2:
                import traceback
                with open("traceback", "w", encoding="utf-8") as file:
                    traceback.print_exc(file=file)
            sys.stdout.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.mark.slow
def test_every_command_with_closed_streams(tmp_path: Path) -> None:
    """`<&-`, `>&-` and `2>&-`: help, and a mistake in a line."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NANOCHAT_BASE_DIR": str(tmp_path / "base")}
    with subprocess.Popen(
        [sys.executable, "-W", "ignore::RuntimeWarning", "-c", CLOSING],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for name in COMMANDS:
            for flag, closed in ((HELP, [1]), (HELP, [0, 1, 2]), (WRONG, [0, 1]), (WRONG, [2])):
                process.stdin.write(json.dumps([name, [*ARGUMENTS.get(name, []), flag], closed]) + "\n")
                process.stdin.flush()
                code = int(process.stdout.readline())
                is_error = flag == WRONG and name not in WITHOUT_SETTINGS
                traceback = tmp_path / "traceback"
                assert code == (2 if is_error else 0), (
                    name,
                    closed,
                    traceback.exists() and traceback.read_text("utf-8"),
                )
                output, messages = ((tmp_path / file).read_text("utf-8") for file in ("output", "messages"))
                assert (output == "") == (1 in closed or is_error), (name, closed, output)
                assert messages.count("\n") == (is_error and 2 not in closed), (name, closed, messages)
    assert process.returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}],
    ids=["latin-1", "ascii"],
)
def test_text_that_the_streams_cannot_encode(environment: dict[str, str], base_dir: Path) -> None:
    """A model's text is shown with escapes, and a question on the command line arrives."""
    save_model(base_dir, "sft", "é")  # almost always one of the two bytes of é
    command = [sys.executable, "-m", "scripts.chat_cli", "-p", "é → \udcff", "-t", "0", "-m", "4", "--device=cpu"]
    clean = {name: value for name, value in os.environ.items() if name not in ("LANG", "LC_ALL", "PYTHONUTF8")}
    clean["NANOCHAT_DTYPE"] = "float32"  # without measuring it
    done = subprocess.run(command, cwd=ROOT, env={**clean, **environment}, capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in (rb"\ufffd" * 4, rb"\xe9" * 2, b"\xe9" * 2)
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
def test_chat_without_input_ends_with_a_line(base_dir: Path, forker: Forker) -> None:
    save_model(base_dir, "sft", "z")
    command = f"exec {forker.python} -m scripts.chat_cli --device=cpu"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, encoding="utf-8", input="", timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("(no message: standard input is empty or closed")


@pytest.mark.slow
def test_the_reader_of_a_report_leaves(base_dir: Path, tmp_path: Path) -> None:
    """`python -m nanochat.report | head -1` and the like: quiet, with the exit code of SIGPIPE."""
    assert base_dir.is_dir()
    for name, flags in (("scripts.doctor", []), ("dev.list_long", []), ("scripts.tok_train", ["--help"])):
        reading, writing = os.pipe()
        os.close(reading)
        messages = tmp_path / "messages"
        with open(messages, "wb") as file:
            done = subprocess.run(
                [sys.executable, "-m", name, *flags], cwd=ROOT, stdout=writing, stderr=file, timeout=200
            )
        os.close(writing)
        assert (done.returncode, messages.read_text(encoding="utf-8")) == (128 + signal.SIGPIPE, ""), name
