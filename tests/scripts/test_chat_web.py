"""The script that serves the chat: its settings, its refusals, Ctrl-C, and the application under gunicorn."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint_manager import build_model, model_meta, run_dir, save_checkpoint
from nanochat.common import UserError
from nanochat.configurator import parse
from nanochat.gpt import GPTConfig
from nanochat.runtime import Runtime
from scripts import chat_web
from tests.support.chat_server import EventConnection, chat_events, get, serving_app
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


@pytest.mark.slow
@pytest.mark.usefixtures("endless_model")
def test_ctrl_c_stops_the_server_during_a_reply() -> None:
    command = [sys.executable, "-u", "-m", "scripts.chat_web", "-p", "0", "--device=cpu", "-t", "0", "-m", "4096"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        line = next(line for line in lines if line.startswith("Chat with"))
        assert "sft d1, step 7 at http://127.0.0.1:" in line
        address = line.split(" at ")[1].split()[0]
        connection = EventConnection(address)
        assert connection.next_event()["kind"] in ("text", "python", "python_output")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        connection.close()
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, errors) == (0, "")


def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = rf"cannot listen on port {port} of 127.0.0.1 .*: stop the program that uses it, or choose another"
        with pytest.raises(UserError, match=message):
            chat_web.main(parse(chat_web.Config, ["-p", str(port)]))
    with pytest.raises(UserError, match=r"cannot listen on port 8000 of no.such.host.invalid"):
        chat_web.main(parse(chat_web.Config, ["--host", "no.such.host.invalid"]))


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
    ],
)
def test_impossible_settings_are_refused(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(chat_web.Config, flags)


@pytest.mark.usefixtures("endless_model")
def test_more_copies_than_devices_are_refused() -> None:
    with pytest.raises(UserError, match="num_gpus is 3: must be at most 1, the number of cpu devices"):
        chat_web.load_service(chat_web.Config(device="cpu", num_gpus=3))


@pytest.mark.usefixtures("endless_model")
def test_the_application_reads_its_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The application by itself, as gunicorn runs it."""
    monkeypatch.setenv("NANOCHAT_WEB_ARGS", "-i sft --device=cpu -t 0 -k 7")
    with serving_app(chat_web.app) as address:
        health = get(address, "/health").json()
        assert health["model"] == "sft d1, step 7"
        assert (health["defaults"]["temperature"], health["defaults"]["top_k"]) == (0, 7)
        assert chat_events(address, max_tokens=5)[-1]["kind"] == "done"
