"""The script that serves the chat: its settings, its refusals, Ctrl-C, and the application under gunicorn."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
import torch

from nanochat.checkpoint_manager import build_model, model_meta, run_dir, save_checkpoint
from nanochat.common import UserError
from nanochat.configurator import parse
from nanochat.gpt import GPTConfig
from nanochat.runtime import Runtime
from nanochat.serving.connections import ACCEPTED_FILES, OTHER_FILES
from nanochat.system.environment import num_usable_cores
from scripts import chat_web
from tests.support.chat_server import EventConnection, chat_events, chat_request, get, open_socket, serving_app
from tests.support.scripted_engine import TOKENIZER

ROOT = Path(__file__).resolve().parents[2]
RUNTIME = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 42)


@pytest.fixture
def endless_model(run_here: Path) -> None:
    """A base folder with a tiny model that greedily generates "a" until the context is full."""
    shape = {"vocab_size": TOKENIZER.get_vocab_size(), "n_layer": 1, "n_head": 1, "n_kv_head": 1, "n_embd": 16}
    model = build_model(GPTConfig(sequence_len=4096, **shape), RUNTIME)
    with torch.no_grad():
        model.head.weight[ord("a")] = 1e-3  # the logits of all other tokens are 0
    TOKENIZER.save(run_here / "tokenizer")
    save_checkpoint(run_dir("sft", "d1"), 7, model.state_dict(), {}, model_meta(model, RUNTIME, TOKENIZER))


@contextmanager
def running(
    *command: str, until: str, stderr: int | IO[str] = subprocess.PIPE
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a command until the block is left. Yields its process and its first line with `until`."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=stderr, text=True)
    try:
        assert process.stdout is not None
        yield process, next(line for line in iter(process.stdout.readline, "") if line.startswith(until))
    finally:
        process.kill()
        process.communicate()


SERVE = [sys.executable, "-u", "-m", "scripts.chat_web", "-p", "0", "--device=cpu", "-t", "0", "-m", "4096"]
SERVE += ["--cache_gb=0.1", "--shutdown_seconds=0.5"]


@pytest.mark.slow
@pytest.mark.usefixtures("endless_model")
@pytest.mark.parametrize(
    ("signals", "codes"),
    [
        ([signal.SIGINT], {0}),
        ([signal.SIGTERM], {0}),
        ([signal.SIGINT, signal.SIGINT], {0, 130}),  # 0 if the server had already stopped
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGINT], {0, 130, 143}),
    ],
    ids=lambda value: "+".join(item.name for item in value) if isinstance(value, list) else "",
)
def test_a_signal_stops_the_server_during_a_reply(signals: list[signal.Signals], codes: set[int]) -> None:
    """In order, though other clients hold connections; at once on the second signal; without a word on stderr."""
    with running(*SERVE, until="Chat with") as (process, line):
        assert "sft d1, step 7 at http://127.0.0.1:" in line
        address = line.split(" at ")[1].split()[0]
        connection = EventConnection(address)
        assert connection.next_event()["kind"] in ("text", "python", "python_output")
        with open_socket(address), open_socket(address, b"GET / HTTP/1.1\r\n"), open_socket(address, chat_request()):
            for number in signals:
                process.send_signal(number)
            output, errors = process.communicate(timeout=60)
        connection.close()
    assert (process.returncode in codes, errors) == (True, ""), (process.returncode, errors)
    if process.returncode == 0:
        assert output.endswith("Stopped.\n")


@pytest.mark.slow
@pytest.mark.usefixtures("endless_model")
def test_running_replies_end_and_waiting_ones_are_told_before_the_server_stops() -> None:
    flags = ["--max_rows=1", "-m", "300", "--shutdown_seconds=60"]
    with running(*SERVE, *flags, until="Chat with") as (process, line):
        address = line.split(" at ")[1].split()[0]
        first = EventConnection(address, max_tokens=300)
        assert first.next_event()["kind"] == "text"
        second = EventConnection(address)
        assert second.next_event()["kind"] in ("waiting", "text")  # "text" if the first one has ended
        process.send_signal(signal.SIGINT)
        events = [first.next_event()]
        while events[-1]["kind"] == "text":
            events.append(first.next_event())
        assert (events[-1]["kind"], events[-1]["tokens"]) == ("done", 300)
        last = second.next_event()
        while last["kind"] in ("text", "waiting"):
            last = second.next_event()
        assert last["kind"] in ("error", "done")
        output, errors = process.communicate(timeout=60)
        first.close()
        second.close()
    assert (process.returncode, errors, output.endswith("Stopped.\n")) == (0, "", True)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def make_certificate(folder: Path) -> tuple[str, str]:
    """A certificate for localhost, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl on the PATH, which makes the certificate")
    paths = str(folder / "certificate.pem"), str(folder / "key.pem")
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    subprocess.run([*command, "-out", paths[0], "-keyout", paths[1]], check=True, capture_output=True)
    return paths


@pytest.mark.slow
@pytest.mark.usefixtures("endless_model")
@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_https_on_ipv6_with_a_key_under_a_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate, key = make_certificate(tmp_path)
    monkeypatch.setenv("NANOCHAT_API_KEY", "a-good-key-0123")
    flags = ["--host=::1", f"--ssl_certfile={certificate}", f"--ssl_keyfile={key}", "--root_path=/chat", "--log=json"]
    flags.append("--header_timeout=2")  # of a TLS handshake too
    with running(*SERVE, *flags, until="OpenAI's API") as (process, line):
        base = line.split("base URL ")[1].split(",")[0]
        assert base.startswith("https://[::1]:")
        address = base.removesuffix("/v1")  # where a proxy sends what comes under the prefix
        headers = {"Authorization": "Bearer a-good-key-0123"}
        assert get(address, "/v1/models", headers=headers).json()["data"][0]["id"] == "nanochat-sft-d1"
        assert get(address, "/v1/models").json()["error"]["code"] == "invalid_api_key"
        assert get(address, "/openapi.json", headers=headers).json()["servers"] == [{"url": "/chat"}]
        assert get(address, "/health/live").status_code == 200
        assert get(address, "/").status_code == 200
        events = chat_events(address, max_tokens=5, headers=headers)
        assert events[-1]["tokens"] == 5
        with socket.create_connection(("::1", int(base.rsplit(":", 1)[1].split("/")[0])), timeout=30) as silent:
            assert silent.recv(1) == b""  # closed; by asyncio's own limit it would be in 60 s
        process.send_signal(signal.SIGTERM)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert line.endswith("a proxy must take /chat off the paths of requests\n")
    lines = [json.loads(line)["route"] for line in output.splitlines() if line.startswith("{")]
    assert lines[:2] == ["GET /v1/models", "GET other"]


def test_a_certificate_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "certificate.pem"
    message = "not a certificate and its key, in PEM and without a password"
    for content in (None, "no certificate"):
        if content is not None:
            path.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=message):
            chat_web.main(parse(chat_web.Config, ["-p", "0", f"--ssl_certfile={path}"]))


def test_a_key_with_a_password_is_refused_and_not_asked_for(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    locked = tmp_path / "locked.pem"
    command = ["openssl", "rsa", "-aes256", "-passout", "pass:secret", "-in", key, "-out", str(locked)]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.raises(UserError, match="without a password"):
        chat_web.main(parse(chat_web.Config, ["-p", "0", f"--ssl_certfile={certificate}", f"--ssl_keyfile={locked}"]))


@pytest.mark.slow
def test_ctrl_c_while_the_model_is_loaded_is_one_line() -> None:
    code = (
        "import time; from nanochat.configurator import cli; from scripts import chat_web\n"
        "chat_web.load_service = lambda *_: (print('loading'), time.sleep(600))\n"
        "cli(chat_web.Config, chat_web.main)"
    )
    with running(sys.executable, "-u", "-c", code, "-p", "0", until="loading") as (process, _):
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "interrupted\n")


@pytest.mark.slow
@pytest.mark.usefixtures("endless_model")
def test_a_server_keeps_few_connections_where_few_files_may_be_open() -> None:
    limit = f'ulimit -n {ACCEPTED_FILES + OTHER_FILES + 40}; exec "$@"'
    with running("bash", "-c", limit, "-", *SERVE, until="Chat with") as (process, line):
        address = line.split(" at ")[1].split()[0]
        assert process.stdout is not None
        assert "OpenAI's API: base URL" in process.stdout.readline()
        assert process.stdout.readline().startswith("At most 40 connections: this process may not open more files")
        with ExitStack() as stack:
            for _ in range(1000):
                stack.enter_context(open_socket(address))
            assert get(address, "/health").json()["ready"]
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = rf"cannot listen on port {port} of 127.0.0.1 .*: stop the program that uses it, or choose another"
        with pytest.raises(UserError, match=message):
            chat_web.main(parse(chat_web.Config, ["-p", str(port)]))
    with pytest.raises(UserError, match=r"cannot listen on port 8000 of no.such.host.invalid"):
        chat_web.main(parse(chat_web.Config, ["--host", "no.such.host.invalid"]))
    for host in ("", "a" * 100 + ".example", "a..b", "x\x00y"):
        with pytest.raises(UserError, match="cannot listen on port 8000 of"):
            chat_web.main(parse(chat_web.Config, ["--host", host]))


@pytest.mark.slow
@pytest.mark.usefixtures("base_dir")
def test_without_a_model_the_error_says_what_to_train() -> None:
    with pytest.raises(UserError, match=r"no chat model in .*: train one with scripts.mid_train"):
        chat_web.main(parse(chat_web.Config, ["-p", "0", "--device=cpu"]))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-t", "3"], "temperature is 3.0: must be a number from 0 to 2"),
        (["-k", "0"], "top_k is 0: must be a whole number from 1 to 200"),
        (["-m", "5000"], "max_tokens is 5000: must be a whole number from 1 to 4096"),
        (["-n", "0"], "num_gpus is 0: .*must be at least 1"),
        (["-p", "70000"], "port is 70000: .*must be from 0 to 65535"),
        (["-i", "base"], "one of mid, sft, rl"),
        (["--allowed_hosts=http://x"], "allowed_hosts has 'http://x': each entry must be a name or an address"),
        (["--max_connections=96"], r"max_connections is 96: must be above max_waiting \+ num_gpus \* max_rows = 96"),
        (["--max_rows=0"], "max_rows is 0: .*must be from 1 to 1024"),
        (["--cache_gb=0"], "cache_gb is 0.0: .*must be above 0"),
        (["--max_per_client=0"], "max_per_client is 0: .*must be at least 1"),
        (["--shutdown_seconds=-1"], "shutdown_seconds is -1.0: .*must be from 0 to 3600"),
        (["--api_key=short"], "the API key has 5 characters: must be at least 8"),
        (["--cors_origin=a.example"], "cors_origin has 'a.example': each entry must be an origin"),
        (["--root_path=chat/"], "root_path is 'chat/': must be a path as /nanochat"),
        (["--ssl_keyfile=key.pem"], "ssl_keyfile needs ssl_certfile"),
        (["--log=words"], "one of off, text, json"),
        (["--max_waiting=-1"], "max_waiting is -1: .*must be at least 0"),
        (["--header_timeout=0"], "header_timeout is 0.0: .*must be above 0"),
        (["--body_timeout=1e9"], "body_timeout is 1000000000.0: .*must be above 0 and at most 60"),
        (["--send_timeout=inf"], "send_timeout is inf: .*must be above 0"),
    ],
)
def test_impossible_settings_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(chat_web.Config, flags)


@pytest.mark.usefixtures("base_dir")
def test_a_key_in_the_environment_is_checked_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_API_KEY", "short")
    with pytest.raises(UserError, match="the API key has 5 characters: must be at least 8"):  # and not: no chat model
        chat_web.load_service(parse(chat_web.Config, ["--device=cpu"]))


@pytest.mark.usefixtures("endless_model")
def test_more_copies_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_web, "num_usable_cores", lambda: 2)
    with pytest.raises(UserError, match="num_gpus is 3: must be at most 2, the number of processor cores"):
        chat_web.load_service(chat_web.Config(device="cpu", num_gpus=3))


@pytest.mark.slow
@pytest.mark.usefixtures("endless_model")
@pytest.mark.skipif(num_usable_cores() < 2, reason="two copies need two cores")
def test_two_copies_each_have_a_process(tmp_path: Path) -> None:
    """One dies: the other goes on. Ctrl-C, which reaches all of them in a terminal, ends the server in order."""
    errors = tmp_path / "errors"
    with (
        errors.open("w", encoding="utf-8") as file,
        running(*SERVE, "-n", "2", until="Chat with", stderr=file) as (process, line),
    ):
        address = line.split(" at ")[1].split()[0]
        assert get(address, "/health").json()["device"] == "2 x cpu"
        connections = [EventConnection(address, text) for text in ("Hello", "Good morning")]
        for connection in connections:
            assert connection.next_event()["kind"] == "text"
        copies = psutil.Process(process.pid).children()
        assert len(copies) == 2
        copies[0].kill()
        ends = [last_event(connection) for connection in connections]
        assert sorted(end["kind"] for end in ends) == ["done", "error"]
        assert next(end for end in ends if end["kind"] == "error")["text"].startswith("the reply failed")
        assert get(address, "/health/ready").status_code == 200
        assert chat_events(address, max_tokens=5)[-1]["kind"] == "done"
        assert get(address, "/stats").json()["ended"] == 1
        running_reply = EventConnection(address)
        assert running_reply.next_event()["kind"] == "text"
        for each in (process, copies[1]):
            each.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
        assert last_event(running_reply)["kind"] in ("error", "done")
        assert (process.returncode, output.endswith("Stopped.\n")) == (0, True)
        assert not copies[1].is_running()
    ended, failed = errors.read_text(encoding="utf-8").splitlines()
    assert ended.startswith("The process of copy 1 of 2 has ended (killed by SIGKILL)")
    assert failed.startswith("A reply failed: the process of copy 1 of 2")


def last_event(connection: EventConnection) -> dict[str, Any]:
    """Read a reply to its end."""
    event = connection.next_event()
    while event["kind"] in ("text", "waiting"):
        event = connection.next_event()
    connection.close()
    return event


@pytest.mark.usefixtures("endless_model")
def test_the_application_reads_its_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The application by itself, as gunicorn runs it."""
    settings = "-i sft --device=cpu -t 0 -k 7 --allowed_hosts chat.example.org --max_waiting 3"
    monkeypatch.setenv("NANOCHAT_WEB_ARGS", settings)
    with serving_app(chat_web.app) as address:
        health = get(address, "/health").json()
        assert health["model"] == "sft d1, step 7"
        assert (health["defaults"]["temperature"], health["defaults"]["top_k"]) == (0, 7)
        assert chat_events(address, max_tokens=5)[-1]["kind"] == "done"
        assert get(address, "/health", headers={"Host": "chat.example.org"}).status_code == 200
        assert get(address, "/health", headers={"Host": "chat.example.com"}).status_code == 421
        assert chat_web.app.state.service.limits.max_waiting == 3
        assert get(address, "/v1/models").json()["data"][0]["id"] == "nanochat-sft-d1"
