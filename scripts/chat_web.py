"""Chat with a model in the browser: serves the page and the answers.

    python -m scripts.chat_web                          # the last stage there is, at http://localhost:8000
    python -m scripts.chat_web -i sft -g d20 -n 8       # eight GPUs: a copy of the model on each
    python -m scripts.chat_web --host 0.0.0.0 -p 80     # for other machines too: anybody who reaches it may use it
    gunicorn -w 4 -k uvicorn.workers.UvicornWorker scripts.chat_web:app

gunicorn takes the address from its own flags, and each of its processes loads the model for itself; the settings come
from $NANOCHAT_WEB_ARGS, such as "-i sft -t 0.8". Without a GPU, torch's threads are best limited with OMP_NUM_THREADS.
"""

from __future__ import annotations

import os
import shlex
import socket
from dataclasses import dataclass, replace
from types import FrameType

import torch
import uvicorn

from nanochat.checkpoint_manager import load_model
from nanochat.common import UserError, print0
from nanochat.configurator import Settings, cli, parse, setting
from nanochat.engine import Engine
from nanochat.layers.sampling_params import SamplingParams
from nanochat.runtime import Runtime
from nanochat.serving.chat_request import check_number
from nanochat.serving.chat_session import last_stage
from nanochat.serving.server import Service, create_app

STOP_SECONDS = 1  # that Ctrl-C waits for answers to end


@dataclass(frozen=True)
class Config(Settings):
    source: str | None = setting(
        None, "stage of the model; none = the last there is", short="i", choices=("mid", "sft", "rl")
    )
    model_tag: str | None = setting(None, "checkpoint folder; default: that of the deepest model", short="g")
    step: int = setting(-1, "checkpoint; -1 = the last", short="s", at_least=0, also=-1)
    num_gpus: int = setting(1, "copies of the model, one on each GPU", short="n", at_least=1)
    device: str = setting("auto", "where to run", choices=("auto", "cpu", "cuda", "mps"))
    temperature: float = setting(0.6, "unless a request says otherwise; 0 = always the likeliest token", short="t")
    top_k: int = setting(50, "unless a request says otherwise: tokens to draw from", short="k")
    max_tokens: int = setting(512, "unless a request says otherwise: longest answer, in tokens", short="m")
    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 = every one of this machine")
    port: int = setting(8000, "port to listen on; 0 = any free one", short="p", at_least=0, at_most=65535)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("temperature", "top_k", "max_tokens"):
            check_number(name, getattr(self, name))


def load(config: Config) -> Service:
    """The model, once for each GPU. Raises `UserError` if it, or a GPU, is not there."""
    runtime = Runtime.start(device=config.device)
    there = torch.cuda.device_count() if runtime.device.type == "cuda" else 1
    if config.num_gpus > there:
        raise UserError(f"num_gpus is {config.num_gpus}, but this machine has room for {there} ({runtime.device.type})")
    source = config.source or last_stage(config.model_tag)
    engines, step = [], config.step
    for index in range(config.num_gpus):
        here = replace(runtime, device=torch.device("cuda", index)) if config.num_gpus > 1 else runtime
        model, tokenizer, meta = load_model(source, here, model_tag=config.model_tag, step=step)
        engines.append(Engine(model, tokenizer))
        step = meta["step"]  # the others shall be the same
    name = f"{source} d{engines[0].model.config.n_layer}, step {step}"
    return Service(engines, name, SamplingParams(config.temperature, config.top_k, config.max_tokens, seed=None))


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; they wait until the model is loaded. Raises `UserError` if it cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise UserError(
            f"cannot listen on port {port} of {host} ({error.strerror or error}): "
            "stop what uses it, or choose another with -p (0 = any that is free)"
        ) from error


class Server(uvicorn.Server):
    """Uvicorn, which at Ctrl-C also stops the answers that are being written."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called at SIGINT and SIGTERM."""
        self.service.stopping.set()
        super().handle_exit(sig, frame)


def main(config: Config) -> None:
    """Serve until Ctrl-C."""
    with listen(config.host, config.port) as server_socket:
        service = load(config)
        everywhere = config.host in ("0.0.0.0", "::")
        host = "localhost" if everywhere else f"[{config.host}]" if ":" in config.host else config.host
        print0(f"Chat with {service.name} at http://{host}:{server_socket.getsockname()[1]} (Ctrl-C stops it)")
        if everywhere:
            print0("It listens on every address of this machine: anybody who reaches it may use it.")
        settings = uvicorn.Config(
            create_app(lambda: service), log_level="warning", timeout_graceful_shutdown=STOP_SECONDS
        )
        try:
            Server(settings, service).run(sockets=[server_socket])
        except KeyboardInterrupt:
            pass  # uvicorn raises it again when all is closed
        print0("Stopped.")


def load_from_environment() -> Service:
    """For gunicorn: what `$NANOCHAT_WEB_ARGS` asks for."""
    return load(parse(Config, shlex.split(os.environ.get("NANOCHAT_WEB_ARGS", ""))))


app = create_app(load_from_environment)  # loads nothing before a server starts it

if __name__ == "__main__":
    cli(Config, main, __doc__)
