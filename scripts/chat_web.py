"""Chat with a model in the browser, and serve it to programs: the chat page, its replies, and OpenAI's API.

    python -m scripts.chat_web                          # the last stage that has a model, at http://localhost:8000
    python -m scripts.chat_web --log json               # a line for each request; OpenAI's API is at /v1, see README.md
    python -m scripts.chat_web -i sft -g d20 -n 8       # eight GPUs: a copy of the model on each
    python -m scripts.chat_web --host 0.0.0.0 -p 80     # reachable, and usable, from other machines
    NANOCHAT_API_KEY=... python -m scripts.chat_web --host 0.0.0.0   # only with this key
    python -m scripts.chat_web --allowed_hosts chat.example.org      # behind a proxy, which must pass on Host
    python -m scripts.chat_web --grounded                           # quotations of the documents, see chat_cli
    gunicorn -w 4 -k uvicorn.workers.UvicornWorker scripts.chat_web:app

gunicorn takes host and port from its own flags, and each of its processes loads its own copy of the model; the settings
are read from $NANOCHAT_WEB_ARGS, such as "-i sft -t 0.8 --allowed_hosts chat.example.org". Limits of connections and of
their time are gunicorn's own there. On a CPU, limit the threads of torch with OMP_NUM_THREADS.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import os
import re
import shlex
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType

import torch
import uvicorn

from nanochat.checkpoint_manager import check_tokenizer, default_tag, load_model, open_checkpoint, run_dir
from nanochat.common import UserError, print0, run_without_output
from nanochat.configurator import Settings, cli, parse, setting
from nanochat.conversations.example_questions import example_questions
from nanochat.layers.sampling_params import SamplingParams
from nanochat.openai_api.routes import router
from nanochat.replicas.replica import ReplicaSettings, new_loop, start_on_devices
from nanochat.runtime import Runtime, resolve_device
from nanochat.serving.access import KEY_VARIABLE, AccessRules, check_key, parse_origins
from nanochat.serving.chat_request import check_sampling_field
from nanochat.serving.chat_session import latest_source
from nanochat.serving.connections import BACKLOG, ConnectionLimits, guard_connections, reserve_files
from nanochat.serving.generation import ReplyLoop
from nanochat.serving.host_check import HostRules, host_rules, parse_allowed_hosts
from nanochat.serving.request_log import LOG_CHOICES
from nanochat.serving.server import MAX_BODY_BYTES, create_app
from nanochat.serving.service import RESERVED_PLACES, ChatService, ServedModel, ServiceLimits
from nanochat.serving.sources import SOURCES_CHOICES, check_sources, open_sources
from nanochat.steps.make_step import QUANTIZE_CHOICES
from nanochat.system.environment import num_usable_cores
from nanochat.tokenizer import get_tokenizer

MAX_UNACCEPTED = 4096  # connections that the kernel keeps, or as many as it allows: in a flood of them none is reset
CLOSING_SECONDS = 2  # after the last reply has ended or is given up, until all connections are closed
ROOT_PATH = re.compile(r"(/[A-Za-z0-9._~-]+)+")


@dataclass(frozen=True)
class Config(Settings):
    source: str | None = setting(
        None, "stage whose model is served; none = the last that has a model", short="i", choices=("mid", "sft", "rl")
    )
    model_tag: str | None = setting(
        None, "tag of the checkpoint; default: the deepest model's", short="g", names="name"
    )
    step: int = setting(-1, "step of the checkpoint; -1 = the last", short="s", at_least=0, or_value=-1)
    num_gpus: int = setting(
        1,
        "copies of the model, each in a process of its own: on so many GPUs, or on a CPU, whose cores they share",
        short="n",
        at_least=1,
    )
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
    quote: bool = setting(True, "if grounded: reply with sentences of the documents, or that they do not answer")
    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 = all addresses of this machine")
    port: int = setting(8000, "port to listen on; 0 = any free one", short="p", at_least=0, at_most=65535)
    allowed_hosts: str | None = setting(
        None,
        "further names, separated by commas, under which browsers may open the page; always: localhost and --host; "
        "with --host=0.0.0.0 also all addresses and this machine's name",
    )
    api_key: str | None = setting(
        None, f"key that requests must send as `Authorization: Bearer KEY`; better given in ${KEY_VARIABLE}"
    )
    cors_origin: str | None = setting(
        None, "origins of other web pages that may use the API, separated by commas, as https://a.example; * = all"
    )
    root_path: str = setting("", "prefix of the path under which a proxy serves this, as /nanochat")
    ssl_certfile: str | None = setting(None, "certificate (PEM) for https", names="path")
    ssl_keyfile: str | None = setting(None, "its key (PEM); none = in the same file", names="path")
    max_rows: int = setting(64, "replies that a copy of the model generates at once", at_least=1, at_most=1024)
    cache_gb: float | None = setting(None, "GB for the KV cache of a copy; none = a share of what is free", above=0)
    max_waiting: int = setting(32, "replies that may wait for a free row; more get status 429", at_least=0)
    max_per_client: int | None = setting(
        None, "replies of one client address, generated or waiting, at once; none = any number", at_least=1
    )
    shutdown_seconds: float = setting(
        8.0, "seconds that replies have to end after Ctrl-C; a second Ctrl-C ends at once", at_least=0, at_most=3600
    )
    quantize: str = setting("none", "weights of 8 bits: faster on a CPU, a little worse", choices=QUANTIZE_CHOICES)
    log: str = setting("off", "a line for each request, without anyone's words", choices=LOG_CHOICES)
    max_connections: int | None = setting(
        None, "connections at a time; more push out the silent ones; none = 256, or twice the replies", at_least=2
    )
    header_timeout: float = setting(10.0, "seconds until a connection must have sent its headers", above=0)
    body_timeout: float = setting(30.0, "seconds for the rest of a request", above=0, at_most=60)
    send_timeout: float = setting(30.0, "seconds that a client may leave a reply unread", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_allowed_hosts(self.allowed_hosts)
        if self.max_connections is not None and self.max_connections <= self.num_replies:
            raise UserError(
                f"max_connections is {self.max_connections}: must be above max_waiting + num_gpus * max_rows = "
                f"{self.num_replies}, or requests that wait would lock out everyone else"
            )
        check_key(self.api_key)
        parse_origins(self.cors_origin)
        if self.root_path and not ROOT_PATH.fullmatch(self.root_path):
            raise UserError(f"root_path is {self.root_path!r}: must be a path as /nanochat, without a / at its end")
        if self.ssl_keyfile and not self.ssl_certfile:
            raise UserError("ssl_keyfile needs ssl_certfile: give both, or neither")
        check_sources(self.sources, self.grounded)
        for name in ("temperature", "top_k", "max_tokens"):
            check_sampling_field(name, getattr(self, name))

    @property
    def num_replies(self) -> int:
        """Replies that may run or wait at once."""
        return self.max_waiting + self.num_gpus * self.max_rows


def load_service(config: Config, hosts: HostRules | None = None) -> ChatService:
    """Load the model, or several copies, each in a process of its own.

    Raises `UserError` if there is no such model, or if the machine has too few devices.
    """
    access = AccessRules(check_key(config.api_key or os.environ.get(KEY_VARIABLE)), parse_origins(config.cors_origin))
    loops: Sequence[ReplyLoop]
    if config.num_gpus == 1:
        runtime = Runtime.start(device=config.device)
        device = runtime.device
    else:  # this process takes no memory of a GPU
        device = resolve_device(config.device, 0)
        check_num_copies(config.num_gpus, device)
    source = config.source or latest_source(config.model_tag)
    checkpoint = open_checkpoint(run_dir(source, config.model_tag or default_tag(source)), config.step)
    settings = ReplicaSettings(
        source,
        checkpoint.path.parent.name,
        checkpoint.step,  # all copies are of one step, even if a newer checkpoint is saved meanwhile
        device.type,
        quantize=config.quantize,
        cache_gb=config.cache_gb,
        max_waiting=config.max_waiting + RESERVED_PLACES,
        max_running=config.max_rows,
    )
    if config.num_gpus == 1:
        model, tokenizer, _ = load_model(source, runtime, model_tag=settings.model_tag, step=settings.step)
        loops = [new_loop(settings, runtime, model, tokenizer)]
    else:
        tokenizer = get_tokenizer()
        check_tokenizer(checkpoint, tokenizer)
        loops = start_on_devices(settings, config.num_gpus)
    meta = checkpoint.meta
    served = ServedModel(
        name=f"{source} d{checkpoint.shape.n_layer}, step {checkpoint.step}",
        id=f"nanochat-{source}-d{checkpoint.shape.n_layer}",
        tokenizer=tokenizer,
        context_len=min(loop.context_len for loop in loops),
        device=str(device) if config.num_gpus == 1 else f"{config.num_gpus} x {device.type}",
        created=int(time.time()),
        fingerprint=str(meta.get("sha256", ""))[:16],  # of meta.json, in which those of the weights are
        examples=tuple(example_questions(meta)),
    )
    return ChatService(
        loops,
        served,
        SamplingParams(config.temperature, config.top_k, config.max_tokens, seed=None),
        ServiceLimits(config.max_rows, config.max_waiting, config.max_per_client, config.shutdown_seconds),
        hosts,
        access,
        open_sources(config.sources, config.grounded, meta, config.quote),
        config.log,
    )


def check_num_copies(count: int, device: torch.device) -> None:
    """Raise `UserError` if there are fewer devices than copies. On a CPU each copy needs a core."""
    limits = {"cpu": num_usable_cores, "cuda": torch.cuda.device_count}
    most = limits[device.type]() if device.type in limits else 1
    if count > most:
        kind = "processor cores" if device.type == "cpu" else f"{device.type} devices"
        raise UserError(f"num_gpus is {count}: must be at most {most}, the number of {kind} of this machine")


def listen(host: str, port: int) -> socket.socket:
    """Open the socket of the server; connections wait until the model is loaded. Raises `UserError` on failure."""
    try:
        if not host:
            raise ValueError("an empty name: 0.0.0.0 = all addresses of this machine")
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        is_dual = host == "::" and socket.has_dualstack_ipv6()  # as 0.0.0.0, but with IPv6
        return socket.create_server((host, port), family=family, dualstack_ipv6=is_dual)
    except (OSError, ValueError) as error:  # ValueError: no name at all, such as one with a label of 100 letters
        raise UserError(
            f"cannot listen on port {port} of {host} ({getattr(error, 'strerror', None) or error}): "
            "stop the program that uses it, or choose another port with -p (0 = any free one)"
        ) from error


def check_certificate(config: Config) -> None:
    """Raise `UserError` if the certificate and its key cannot be used for https."""
    if config.ssl_certfile is None:
        return
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(config.ssl_certfile, config.ssl_keyfile, password="")  # else it asks the terminal
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise UserError(
            f"ssl_certfile is {config.ssl_certfile}, ssl_keyfile {config.ssl_keyfile}: not a certificate and its key, "
            f"in PEM and without a password ({getattr(error, 'strerror', None) or error})"
        ) from error


class Server(uvicorn.Server):
    """A uvicorn server that ends in order on SIGINT and SIGTERM: replies have `shutdown_seconds` to end."""

    def __init__(self, config: uvicorn.Config, service: ChatService, handshake_seconds: float) -> None:
        super().__init__(config)
        self.service = service
        self.handshake_seconds = handshake_seconds
        # What clients that read nothing have left open is closed when the time is up: nothing is wrong then.
        logging.getLogger("uvicorn.error").addFilter(
            lambda record: "timeout graceful shutdown exceeded" not in record.getMessage()
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002
        """Handle SIGINT and SIGTERM: the first ends the server in order, the second at once. Nothing is to be saved."""
        if self.should_exit:
            os._exit(128 + sig)
        self.service.begin_shutdown()
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen. A TLS handshake has as long as the headers after it: uvicorn leaves it asyncio's 60 s."""
        loop = asyncio.get_running_loop()
        create_server = loop.create_server
        if self.config.ssl is not None:
            loop.create_server = partial(create_server, ssl_handshake_timeout=self.handshake_seconds)  # type: ignore[method-assign]
        try:
            await super().startup(sockets)
        finally:
            loop.create_server = create_server  # type: ignore[method-assign]
        for each in sockets or []:
            each.listen(MAX_UNACCEPTED)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the socket, tell the requests that wait, and wait for the others."""
        closing = asyncio.ensure_future(self.service.close())
        await super().shutdown(sockets)
        await closing


def main(config: Config) -> None:
    """Serve until Ctrl-C."""
    check_certificate(config)
    with listen(config.host.strip("[]"), config.port) as server_socket:
        address, port = server_socket.getsockname()[:2]
        service = load_service(config, host_rules(config.host, config.allowed_hosts, address))
        is_public = ipaddress.ip_address(address).is_unspecified
        shown_host = "localhost" if is_public else config.host.strip("[]")
        shown_host = f"[{shown_host}]" if ":" in shown_host else shown_host  # IPv6
        scheme = "http" if config.ssl_certfile is None else "https"
        url = f"{scheme}://{shown_host}:{port}"
        print0(f"Chat with {service.model.name} at {url} (Ctrl-C stops the server)")
        prefix = f"; a proxy must take {config.root_path} off the paths of requests" if config.root_path else ""
        print0(f"OpenAI's API: base URL {url}/v1, model {service.model.id}{prefix}")
        if is_public and service.access.api_key is None:
            print0("It listens on all addresses of this machine: everyone who can reach it can use it.")
        run_without_output()  # others still use the server when the reader of its output has left
        app = create_app(lambda: service, router)
        settings = uvicorn.Config(
            app,
            loop="asyncio",
            http="h11",
            ws="none",
            log_level="warning",
            access_log=False,
            use_colors=False,  # they would be shown as escapes
            backlog=BACKLOG,
            root_path=config.root_path,
            ssl_certfile=config.ssl_certfile,
            ssl_keyfile=config.ssl_keyfile,
            timeout_graceful_shutdown=math.ceil(config.shutdown_seconds) + CLOSING_SECONDS,
        )
        guard_connections(settings, connection_limits(config), service.count_refusal)
        Server(settings, service, config.header_timeout).run(sockets=[server_socket])
        if service.is_output_stuck:
            os._exit(0)
        print0("Stopped.")


def connection_limits(config: Config) -> ConnectionLimits:
    """Return the limits of connections, fewer of them if this process may not open as many files."""
    wanted = config.max_connections or max(256, 2 * config.num_replies)
    num_connections = reserve_files(wanted)
    if num_connections < wanted:
        print0(f"At most {num_connections} connections: this process may not open more files (see ulimit -n).")
    return ConnectionLimits(
        connections=num_connections,
        header_seconds=config.header_timeout,
        body_seconds=config.body_timeout,
        send_seconds=config.send_timeout,
        body_bytes=MAX_BODY_BYTES,
        shutdown_seconds=config.shutdown_seconds,
    )


def load_from_environment() -> ChatService:
    """Load the model with the settings of `$NANOCHAT_WEB_ARGS`, for gunicorn."""
    config = parse(Config, shlex.split(os.environ.get("NANOCHAT_WEB_ARGS", "")))
    return load_service(config, host_rules(config.host, config.allowed_hosts))


app = create_app(load_from_environment, router)  # the model is loaded when a server starts the application

if __name__ == "__main__":
    cli(Config, main, __doc__)
