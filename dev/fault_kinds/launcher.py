"""Processes that start at once and can be harmed at any moment: forks of a server that has imported torch.

`Launcher.start` runs `python -m MODULE ARGUMENTS` in a fork, in a session of its own, with its output in a file.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from nanochat.system.console import start_command

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "NANOCHAT_DTYPE": "float32",  # one rounding on every machine
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "WANDB_RUN": "dummy",
    "PYTHONUNBUFFERED": "1",
}
PRELOADED = (
    "nanochat.dataset",
    "nanochat.report",
    "nanochat.reporting.plots",
    "nanochat.training.finetune",
    "nanochat.rl.loop",
    "nanochat.eval.task_eval",
    "nanochat.serving.chat_session",
    "nanochat.export.hf_model",
    "scripts.base_train",
    "scripts.base_eval",
    "scripts.chat_rl",
)
# Imported by libraries at their first use, which takes seconds of each fork. Not all of them are always installed.
IMPORTED_LATE = (
    "pandas",
    "torch._dynamo",
    "torch.utils.flop_counter",
    "matplotlib.pyplot",
    "matplotlib.backends.backend_agg",
    "xml.parsers.expat",
)


@dataclass
class Job:
    """A process: its id, the file with its output, and its exit code (negative: the signal that ended it)."""

    pid: int
    output: Path
    code: int | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def kill(self, number: int) -> bool:
        """Send a signal. Returns False if the process has ended."""
        if self.code is not None:
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def wait(self, seconds: float) -> bool:
        """Wait for the end. After the limit the process is killed, and False is returned."""
        if self.ended.wait(seconds):
            return True
        self.kill(signal.SIGKILL)
        self.ended.wait()
        return False

    @property
    def text(self) -> str:
        """The output so far, of stdout and stderr."""
        return self.output.read_text(encoding="utf-8", errors="replace")


class Launcher:
    """The server. A context manager: leaving it kills what still runs."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.alive: dict[int, Job] = {}  # by process id
        self.started = 0
        self.lock = threading.Lock()
        self.answers: dict[int, Job] = {}  # by the number of the request
        self.answered = threading.Condition()
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT)}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            environment.pop(name, None)
        self.server = subprocess.Popen(
            [sys.executable, "-m", "dev.fault_kinds.launcher"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
        )
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        base: Path,
        environment: Mapping[str, str] | None = None,
        harm: Mapping[str, Any] | None = None,
    ) -> Job:
        """Start `python -m module arguments` with the base folder `base`.

        `harm`: `file_size` (bytes that a file may have), `fsync_delay` (seconds).
        """
        with self.lock:
            self.started += 1
            number = self.started
            output = self.folder / f"output-{number}.txt"
            output.touch()  # the process may be killed before it opens it
            request = {
                "number": number,
                "module": module,
                "arguments": list(arguments),
                "environment": {"NANOCHAT_BASE_DIR": str(base), **(environment or {})},
                "output": str(output),
                "harm": dict(harm or {}),
            }
            assert self.server.stdin is not None, "it is a pipe"
            self.server.stdin.write(json.dumps(request) + "\n")
            self.server.stdin.flush()
        with self.answered:
            self.answered.wait_for(lambda: number in self.answers or self.server.poll() is not None)
            return self.answers.pop(number)

    def run(self, module: str, arguments: Sequence[str], base: Path, limit: float = 120, **options: Any) -> Job:
        """Run a process to its end, or for `limit` seconds: its code is then -9."""
        job = self.start(module, arguments, base, **options)
        job.wait(limit)
        return job

    def _listen(self) -> None:
        assert self.server.stdout is not None, "it is a pipe"
        for line in self.server.stdout:
            answer = json.loads(line)
            with self.answered:
                if "number" in answer:
                    job = Job(answer["pid"], self.folder / f"output-{answer['number']}.txt")
                    self.alive[job.pid] = self.answers[answer["number"]] = job
                    self.answered.notify_all()
                else:
                    job = self.alive.pop(answer["pid"])
                    job.code = answer["code"]
                    job.ended.set()

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.server.stdin is not None, "it is a pipe"
        for job in list(self.alive.values()):
            job.kill(signal.SIGKILL)
        assert self.server.stdout is not None, "it is a pipe"
        self.server.stdin.close()
        self.server.wait()
        self.listener.join()
        self.server.stdout.close()


def serve() -> None:
    """Fork for every line of JSON on stdin; report process ids and exit codes on stdout."""
    import importlib

    warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
    answers = os.dup(1)
    os.dup2(2, 1)

    def answer(**content: int) -> None:
        os.write(answers, json.dumps(content).encode() + b"\n")

    for module in PRELOADED:
        importlib.import_module(module)
    for module in IMPORTED_LATE:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.freeze()  # or the first collection of a fork would copy the memory of all objects
    requests = os.dup(0)
    rest = b""
    alive: set[int] = set()
    is_open = True
    while is_open or alive:
        ready, _, _ = select.select([requests] if is_open else [], [], [], 0.02)
        if ready:
            data = os.read(requests, 1 << 20)
            is_open = bool(data)
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    _become(request)
                alive.add(pid)
                answer(number=request["number"], pid=pid)
        for pid in [*alive]:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                alive.remove(pid)
                answer(pid=pid, code=os.waitstatus_to_exitcode(status))
    os._exit(0)  # without the farewells of the libraries


def _become(request: dict[str, Any]) -> NoReturn:
    """Turn this fork into the process of a request."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.closerange(3, 64)
    os.environ.update(request["environment"])
    start_command()  # as `python -m` does
    if "file_size" in request["harm"]:
        size = request["harm"]["file_size"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    if "fsync_delay" in request["harm"]:
        _slow_fsync(request["harm"]["fsync_delay"])
    sys.argv = [request["module"], *request["arguments"]]
    sys.modules.pop(request["module"], None)
    code = 1
    try:
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # as the interpreter does
        sys.excepthook(*sys.exc_info())
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: taking apart all modules would copy every page of the server's memory, seconds of work.
    os._exit(code)


def _slow_fsync(seconds: float) -> None:
    plain = os.fsync

    def fsync(descriptor: int) -> None:
        time.sleep(seconds)
        plain(descriptor)

    os.fsync = fsync  # type: ignore[assignment]


if __name__ == "__main__":
    serve()
