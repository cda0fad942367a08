"""Many clients at once on a server of nanochat: speed, waiting times, memory, and whether answers depend on the load.

    python -m dev.load_server --serve="-i sft -g d4"                     # starts the server itself, on loopback
    python -m dev.load_server --url=http://127.0.0.1:8000 --clients=64   # one that runs here already
    python -m dev.load_server --serve="-i sft" --check=10000             # and compares 10,000 answers with solo ones
    python -m dev.load_server --serve="-i sft" --seconds=600 --hostile=60 --idle=2000   # beside hostile clients

First one client asks for `--seconds`, at most a minute, then `--clients` at once. Each sends streaming requests to
/v1/chat/completions, one after another: questions of mixed lengths, greedy and sampled with a seed. One request in ten
is dropped in the middle. The table has tokens per second, the time to the first token and between tokens, and the
server's memory (of all its processes), sampled each second: its course in ten parts of the time. With `--hostile` and
`--idle`, the many clients have others beside them that mean no good (hostile_clients.py).

With `--check`, every different request is first answered alone. Then the clients ask for so many answers, and each must
be the same text as alone. The exit code is 1 if one differs or fails.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import re
import shlex
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import psutil

from dev.hostile_clients import hostile_clients
from nanochat.common import UserError, print0
from nanochat.configurator import Settings, cli, setting

SUBJECTS = ("the sea", "a fox", "my old neighbour", "the number seven", "bread", "a very long winter", "trains", "Anna")
WORDS = "small red and far over the old house where nobody had been for years because it was cold and dark".split()
QUESTIONS = (
    "Hello, who are you?",
    "How much is {a} + {b}?",
    "Anna has {a} apples and buys {b} more. How many apples does Anna have?",
    "What is {a} times {b}?",
    "Tell me a story about {subject}.",
    "How do you spell apple?",
    "Why is {subject} {words}?",
)
DROPPED = 0.1  # share of requests whose client leaves in the middle
ALONE_SECONDS = 60.0  # of one client, at most
START_SECONDS = 180.0  # within which a server must be ready


@dataclass(frozen=True)
class Config(Settings):
    url: str | None = setting(None, "address of a server on this machine; none = start one", names="path")
    serve: str = setting("", "flags of scripts.chat_web for the server that is started")
    clients: int = setting(64, "clients at once", at_least=1, at_most=1000)
    seconds: float = setting(30.0, "seconds of each measurement, at most 60 for one client", above=0)
    max_tokens: int = setting(48, "most tokens of an answer", at_least=1)
    hostile: int = setting(0, "further clients that vanish, stall, or send a byte a second", at_least=0)
    idle: int = setting(0, "further connections that say nothing", at_least=0)
    check: int = setting(0, "answers to compare with solo ones; 0 = none", at_least=0)
    different: int = setting(200, "different requests", at_least=1)
    seed: int = setting(1, "of the requests")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.url is not None:
            parts = urlsplit(self.url)
            if parts.scheme != "http" or parts.hostname not in ("localhost", "127.0.0.1", "::1") or not parts.port:
                raise UserError(f"url is {self.url!r}: must be http://127.0.0.1:PORT, a server on this machine")


@dataclass
class Log:
    """The measurements of several clients, who share it under a lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    first: list[float] = field(default_factory=list)  # seconds to the first text
    gaps: list[float] = field(default_factory=list)  # seconds between texts
    num_tokens: int = 0
    num_answers: int = 0
    num_dropped: int = 0
    errors: list[str] = field(default_factory=list)


def make_requests(config: Config) -> list[dict[str, Any]]:
    """Return different requests: short and long questions, conversations of several turns, greedy and sampled."""
    rng = random.Random(config.seed)
    requests = []
    for index in range(config.different):
        template = rng.choice(QUESTIONS)
        words = " ".join(rng.choice(WORDS) for _ in range(rng.choice((3, 20, 60))))
        question = template.format(
            a=rng.randrange(100), b=rng.randrange(100), subject=rng.choice(SUBJECTS), words=words
        )
        messages = [{"role": "user", "content": question}]
        if index % 4 == 3:  # a second turn, whose beginning others share
            history = [
                {"role": "user", "content": "Hello!"},
                {"role": "assistant", "content": "Hello, I can hear you."},
            ]
            messages = history + messages
        sampling = {"temperature": 0} if index % 2 == 0 else {"temperature": 0.8, "seed": index}
        requests.append({"messages": messages, "max_tokens": rng.randint(4, config.max_tokens), **sampling})
    return requests


def ask(url: str, request: dict[str, Any], log: Log | None = None, leave_after: int | None = None) -> str:
    """Send a streaming request and return the answer; leave after so many texts, if any. Raises UserError."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=120)
    body = json.dumps({**request, "stream": True, "stream_options": {"include_usage": True}})
    texts: list[str] = []
    extras: list[str] = []  # what the model's calculator did
    first: float | None = None
    gaps: list[float] = []
    num_tokens = 0
    is_done = False
    start = last = time.perf_counter()
    try:
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise UserError(f"status {response.status}: {response.read(300).decode('utf-8', 'replace')}")
        for line in response:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                is_done = True
                break
            event = json.loads(line[6:])
            if "error" in event:
                raise UserError(f"the stream ended with {event['error']}")
            if event.get("usage"):
                num_tokens = event["usage"]["completion_tokens"]
            for choice in event["choices"]:
                delta = {name: value for name, value in choice["delta"].items() if name != "role" and value}
                if not delta:
                    continue
                now = time.perf_counter()
                if first is None:
                    first = now - start
                else:
                    gaps.append(now - last)
                last = now
                # A chunk may hold several tokens: texts are joined, so that answers can be compared.
                texts.append(delta.pop("content", ""))
                if delta:
                    extras.append(json.dumps(delta, sort_keys=True))
                if leave_after is not None and len(texts) >= leave_after:
                    return "".join(texts)
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        raise UserError(f"the request failed: {error!r}") from error
    finally:
        connection.close()
    if not is_done:
        raise UserError("the stream ended without [DONE]")
    if log is not None:
        with log.lock:
            log.num_answers += 1
            log.num_tokens += num_tokens
            log.gaps += gaps
            if first is not None:
                log.first.append(first)
    return "".join([*texts, *extras])


def run_clients(
    url: str,
    requests: Sequence[dict[str, Any]],
    num_clients: int,
    seed: int,
    go_on: Callable[[], bool],
    expected: Sequence[str] | None,
) -> Log:
    """Let clients ask random requests while `go_on()` returns True, and compare the answers with the expected ones."""
    log = Log()

    def client(number: int) -> None:
        rng = random.Random(f"{seed} {number}")
        while go_on():
            index = rng.randrange(len(requests))
            leaves = rng.random() < DROPPED
            try:
                answer = ask(url, requests[index], None if leaves else log, rng.randint(1, 8) if leaves else None)
            except UserError as error:
                with log.lock:
                    log.errors.append(str(error))
                continue
            with log.lock:
                log.num_dropped += leaves
                if not leaves and expected is not None and answer != expected[index]:
                    log.errors.append(f"{requests[index]} was answered {answer!r} instead of {expected[index]!r}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(num_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return log


@contextmanager
def server(config: Config) -> Iterator[tuple[str, psutil.Process | None]]:
    """Context with the address of the server, and its process if it is started here. It is stopped at the end."""
    if config.url is not None:
        yield config.url, None
        return
    command = [sys.executable, "-m", "scripts.chat_web", "--port=0", *shlex.split(config.serve)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace"
    )
    try:
        assert process.stdout is not None
        printed = []
        port = None
        for line in process.stdout:
            printed.append(line)
            if match := re.search(r" at https?://\S+:(\d+)", line):
                port = int(match[1])
                break
        if port is None:
            raise UserError(f"the server did not start:\n{''.join(printed)}")
        threading.Thread(target=process.stdout.read, daemon=True).start()  # what it prints must not fill the pipe
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url)
        yield url, psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def wait_until_ready(url: str) -> None:
    """Wait until a server answers. Raises UserError if it does not within START_SECONDS."""
    parts = urlsplit(url)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)
        try:
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    raise UserError(f"{url} does not answer")


class Memory:
    """Samples the resident memory of a process and its children, in a thread."""

    def __init__(self, process: psutil.Process | None) -> None:
        self._process = process
        self._samples: list[float] = []  # MB
        self._is_done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self._process is not None:
            with suppress(psutil.NoSuchProcess):
                processes = [self._process, *self._process.children(recursive=True)]
                self._samples.append(sum(each.memory_info().rss for each in processes) / 1e6)
            if self._is_done.wait(1.0):
                return

    def course(self) -> str:
        """End the sampling, and return the means of the tenths of the time, as text."""
        self._is_done.set()
        self._thread.join()
        samples = self._samples
        if not samples:
            return ""
        cuts = [len(samples) * part // 10 for part in range(11)]
        means = [statistics.fmean(samples[start:end]) for start, end in itertools.pairwise(cuts) if end > start]
        return "\n    memory, MB: " + ", ".join(f"{mean:,.0f}" for mean in means) + f"; most {max(samples):,.0f}"


def quantiles(values: Sequence[float]) -> str:
    """Return the median, the 95th and the 99th percentile in milliseconds, as text."""
    if len(values) < 2:
        return "-"
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    return " / ".join(f"{1000 * cuts[index]:.0f}" for index in (49, 94, 98)) + " ms"


def show(title: str, log: Log, seconds: float, memory: str) -> float:
    """Print a measurement, and return its tokens per second."""
    speed = log.num_tokens / seconds
    print0(
        f"{title}: {speed:,.0f} tokens/s, {log.num_answers:,} answers, {log.num_dropped:,} dropped by the client, "
        f"{len(log.errors)} errors"
    )
    print0(f"    first token {quantiles(log.first)} (median / 95% / 99%), between {quantiles(log.gaps)}{memory}")
    for error in log.errors[:3]:
        print0(f"    {error}")
    return speed


def main(config: Config) -> None:
    """Run all measurements. Exits with code 1 if a request failed or an answer differs."""
    requests = make_requests(config)
    num_errors = 0
    with server(config) as (url, process):
        speeds = []
        for num_clients in (1, config.clients):
            is_crowd = num_clients > 1
            title = f"{num_clients} client{'s' if is_crowd else ''}"
            with hostile_clients(url, config.hostile * is_crowd, config.idle * is_crowd) as connected:
                memory = Memory(process)
                start = time.monotonic()
                end = start + (config.seconds if is_crowd else min(config.seconds, ALONE_SECONDS))
                log = run_clients(url, requests, num_clients, config.seed, lambda end=end: time.monotonic() < end, None)  # type: ignore[misc]
                speeds.append(show(title, log, time.monotonic() - start, memory.course()))
            if connected:
                counts = ", ".join(f"{count:,} {name}" for name, count in connected.items())
                print0(f"    beside them hostile connections: {counts}")
            num_errors += len(log.errors)
        if speeds[0]:
            print0(f"{config.clients} clients get {speeds[1] / speeds[0]:.1f} times the tokens/s of one")
        if config.check:
            expected = [ask(url, request) for request in requests]
            counter = itertools.count()
            memory = Memory(process)
            start = time.monotonic()
            log = run_clients(
                url, requests, config.clients, config.seed, lambda: next(counter) < config.check, expected
            )
            show(f"{len(requests)} different requests, compared", log, time.monotonic() - start, memory.course())
            num_errors += len(log.errors)
            if not log.errors:
                print0(f"all {log.num_answers:,} answers are the same as alone")
    if num_errors:
        sys.exit(1)


if __name__ == "__main__":
    cli(Config, main, __doc__)
