"""Chat with a model in the browser: serves the chat page and the replies.

    python -m scripts.chat_web                          # the last stage that has a model, at http://localhost:8000
    python -m scripts.chat_web -i sft -g d20 -n 8       # eight GPUs: a copy of the model on each
    python -m scripts.chat_web --host 0.0.0.0 -p 80     # reachable, and usable, from other machines
    python -m scripts.chat_web --allowed_hosts chat.example.org      # behind a proxy, which must pass on Host
    python -m scripts.chat_web --grounded                           # the best passages before each question
    gunicorn -w 4 -k uvicorn.workers.UvicornWorker scripts.chat_web:app

gunicorn takes host and port from its own flags, and each of its processes loads its own copy of the model; the settings
are read from $NANOCHAT_WEB_ARGS, such as "-i sft -t 0.8 --allowed_hosts chat.example.org". Limits of connections and of
their time are gunicorn's own there. On a CPU, limit the threads of torch with OMP_NUM_THREADS.
"""

from __future__ import annotations

import ipaddress
import os
import shlex
import socket
from dataclasses import dataclass, replace
from types import FrameType

import torch
import uvicorn

from nanochat.checkpoint_manager import load_model
from nanochat.common import UserError, print0, run_without_output
from nanochat.configurator import Settings, cli, parse, setting
from nanochat.engine import Engine
from nanochat.layers.sampling_params import SamplingParams
from nanochat.runtime import Runtime, choose_generation_dtype
from nanochat.serving.chat_request import check_sampling_field
from nanochat.serving.chat_session import latest_source
from nanochat.serving.connections import BACKLOG, ConnectionLimits, guard_connections, reserve_files
from nanochat.serving.host_check import HostRules, host_rules, parse_allowed_hosts
from nanochat.serving.server import MAX_BODY_BYTES, ChatService, create_app
from nanochat.serving.sources import SOURCES_CHOICES, check_sources, open_sources

SHUTDOWN_SECONDS = 2  # after Ctrl-C, until the connections of unfinished replies are closed


@dataclass(frozen=True)
class Config(Settings):
    source: str | None = setting(
        None, "stage whose model is served; none = the last that has a model", short="i", choices=("mid", "sft", "rl")
    )
    model_tag: str | None = setting(
        None, "tag of the checkpoint; default: the deepest model's", short="g", names="name"
    )
    step: int = setting(-1, "step of the checkpoint; -1 = the last", short="s", at_least=0, or_value=-1)
    num_gpus: int = setting(1, "GPUs, each with a copy of the model", short="n", at_least=1)
    device: str = setting("auto", "device to run on", choices=("auto", "cpu", "cuda", "mps"))
    temperature: float = setting(0.6, "default sampling temperature of a request; 0 = greedy", short="t")
    top_k: int = setting(50, "default of a request: sample among the k most likely tokens", short="k")
    max_tokens: int = setting(512, "default maximum tokens of a reply", short="m")
    sources: str = setting(
        "auto",
        "show the passages of the documents nearest to each answer; auto = if they are indexed",
        choices=SOURCES_CHOICES,
    )
    grounded: bool | None = setting(
        None, "put the best passages of the documents before each question; none = if the model was trained so"
    )
    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 = all addresses of this machine")
    port: int = setting(8000, "port to listen on; 0 = any free one", short="p", at_least=0, at_most=65535)
    allowed_hosts: str | None = setting(
        None,
        "further names, separated by commas, under which browsers may open the page; always: localhost and --host; "
        "with --host=0.0.0.0 also all addresses and this machine's name",
    )
    max_waiting: int = setting(32, "requests that may wait for a copy of the model; more get status 503", at_least=0)
    max_connections: int = setting(256, "connections at a time; more push out the silent ones", at_least=2)
    header_timeout: float = setting(10.0, "seconds until a connection must have sent its headers", above=0)
    body_timeout: float = setting(30.0, "seconds for the rest of a request", above=0, at_most=60)
    send_timeout: float = setting(30.0, "seconds that a client may leave a reply unread", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_allowed_hosts(self.allowed_hosts)
        if self.max_connections <= self.max_waiting + self.num_gpus:
            raise UserError(
                f"max_connections is {self.max_connections}: must be above max_waiting + num_gpus = "
                f"{self.max_waiting + self.num_gpus}, or requests that wait would lock out everyone else"
            )
        check_sources(self.sources, self.grounded)
        for name in ("temperature", "top_k", "max_tokens"):
            check_sampling_field(name, getattr(self, name))


def load_service(config: Config, hosts: HostRules | None = None) -> ChatService:
    """Load the model, once for each GPU. Raises `UserError` if there is no such model, or too few GPUs."""
    runtime = Runtime.start(device=config.device)
    num_devices = torch.cuda.device_count() if runtime.device.type == "cuda" else 1
    if config.num_gpus > num_devices:
        raise UserError(
            f"num_gpus is {config.num_gpus}: must be at most {num_devices}, the number of {runtime.device.type} "
            "devices of this machine"
        )
    source = config.source or latest_source(config.model_tag)
    engines = []
    step = config.step
    for index in range(config.num_gpus):
        device_runtime = replace(runtime, device=torch.device("cuda", index)) if config.num_gpus > 1 else runtime
        model, tokenizer, meta = load_model(source, device_runtime, model_tag=config.model_tag, step=step)
        engines.append(Engine(model, tokenizer, choose_generation_dtype(device_runtime, model.compute_dtype)))
        step = meta["step"]  # all copies are of one step, even if a newer checkpoint is saved meanwhile
    name = f"{source} d{engines[0].model.config.n_layer}, step {step}"
    defaults = SamplingParams(config.temperature, config.top_k, config.max_tokens, seed=None)
    sources = open_sources(config.sources, config.grounded, meta)
    return ChatService(engines, name, defaults, config.max_waiting, hosts, sources)


def listen(host: str, port: int) -> socket.socket:
    """Open the socket of the server; connections wait until the model is loaded. Raises `UserError` on failure."""
    try:
        if not host:
            raise ValueError("an empty name: 0.0.0.0 = all addresses of this machine")
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, ValueError) as error:  # ValueError: no name at all, such as one with a label of 100 letters
        raise UserError(
            f"cannot listen on port {port} of {host} ({getattr(error, 'strerror', None) or error}): "
            "stop the program that uses it, or choose another port with -p (0 = any free one)"
        ) from error


class Server(uvicorn.Server):
    """A uvicorn server that stops unfinished replies on SIGINT and SIGTERM."""

    def __init__(self, config: uvicorn.Config, service: ChatService) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Handle SIGINT and SIGTERM: the first ends the server in order, the second at once. Nothing is to be saved."""
        if self.should_exit:
            os._exit(128 + sig)
        self.service.is_stopping.set()
        self.should_exit = True


def main(config: Config) -> None:
    """Serve until Ctrl-C."""
    with listen(config.host, config.port) as server_socket:
        address, port = server_socket.getsockname()[:2]
        service = load_service(config, host_rules(config.host, config.allowed_hosts, address))
        is_public = ipaddress.ip_address(address).is_unspecified
        if is_public:
            shown_host = "localhost"
        else:
            shown_host = f"[{config.host}]" if ":" in config.host else config.host  # IPv6
        print0(f"Chat with {service.name} at http://{shown_host}:{port} (Ctrl-C stops the server)")
        if is_public:
            print0("It listens on all addresses of this machine: everyone who can reach it can use it.")
        run_without_output()  # others still use the server when the reader of its output has left
        app = create_app(lambda: service)
        settings = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            log_level="warning",
            access_log=False,
            use_colors=False,  # they would be shown as escapes
            backlog=BACKLOG,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        guard_connections(settings, connection_limits(config), service.count_refusal)
        Server(settings, service).run(sockets=[server_socket])
        print0("Stopped.")


def connection_limits(config: Config) -> ConnectionLimits:
    """Return the limits of connections, fewer of them if this process may not open as many files."""
    num_connections = reserve_files(config.max_connections)
    if num_connections < config.max_connections:
        print0(f"At most {num_connections} connections: this process may not open more files (see ulimit -n).")
    return ConnectionLimits(
        connections=num_connections,
        header_seconds=config.header_timeout,
        body_seconds=config.body_timeout,
        send_seconds=config.send_timeout,
        body_bytes=MAX_BODY_BYTES,
    )


def load_from_environment() -> ChatService:
    """Load the model with the settings of `$NANOCHAT_WEB_ARGS`, for gunicorn."""
    config = parse(Config, shlex.split(os.environ.get("NANOCHAT_WEB_ARGS", "")))
    return load_service(config, host_rules(config.host, config.allowed_hosts))


app = create_app(load_from_environment)  # the model is loaded when a server starts the application

if __name__ == "__main__":
    cli(Config, main, __doc__)
