"""Requests of hostile and of ordinary clients, by seed: what they send and how, and which answers are right."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Manners of sending
WHOLE = "whole"  # at once; then the answer is read
DRIP = "drip"  # some bytes at a time, without end, until there is an answer
CUT = "cut"  # then the connection is closed
RESET = "reset"  # the same, but with a reset
DEAF = "deaf"  # at once; the answer is not read for a while

NO_ANSWER = 0
BUSY = 503  # too many connections
FULL = 429  # too many requests wait
REFUSALS = frozenset((400, 403, 404, 405, 408, 411, 413, 415, 421, FULL, 431, BUSY))
MAX_TOKENS = 12  # of an ordinary reply


@dataclass(frozen=True)
class Case:
    """A request. `statuses`: the right ones. `tokens`: of the reply, if there must be one."""

    kind: str
    name: str
    sent: bytes
    statuses: frozenset[int]
    manner: str = WHOLE
    tokens: int | None = None


def chat(body: bytes, *headers: str, host: str = "localhost", length: int | None = None) -> bytes:
    """Return a request to the chat route."""
    lines = [f"Host: {host}", "Content-Type: application/json", *headers]
    lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(["POST /chat/completions HTTP/1.1", *lines, "", ""]).encode("utf-8") + body


def question(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    """Return the body of an ordinary request."""
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 1, "temperature": 0, **fields}


def encoded(body: Any) -> bytes:
    """Return a body as JSON."""
    return json.dumps(body).encode("utf-8")


def ordinary(rng: random.Random) -> Case:
    """A question of an ordinary client. It may find the server busy while others harm it."""
    tokens = rng.randint(1, MAX_TOKENS)
    body = question("Hello " * rng.randint(1, 20), max_tokens=tokens)
    headers = rng.choice(([], ["Origin: http://localhost"], ["Connection: keep-alive", "Accept: */*"]))
    sent = chat(encoded(body), *headers)
    return Case("ordinary request", f"{tokens} tokens", sent, frozenset((200, FULL, BUSY)), tokens=tokens)


def simple_get(rng: random.Random) -> Case:
    """A page or a number."""
    path = rng.choice(("/", "/health", "/stats"))
    sent = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    return Case("ordinary request", path, sent, frozenset((200, BUSY)))


def foreign(rng: random.Random) -> Case:
    """A request that a page of another site makes a browser send."""
    host, origin, status = rng.choice(
        (
            ("evil.example", None, 421),
            ("evil.example:8000", "http://evil.example:8000", 421),
            ("localhost", "http://evil.example", 403),
            ("localhost:1", "http://localhost:2", 403),
            ("127.0.0.1", "null", 403),
            ("169.254.169.254", None, 421),
        )
    )
    headers = [f"Origin: {origin}"] if origin else []
    if rng.random() < 0.5:
        sent = chat(encoded(question()), *headers, host=host)
    else:
        path = rng.choice(("/", "/health", "/stats", "/x", "/docs"))
        sent = "\r\n".join([f"GET {path} HTTP/1.1", f"Host: {host}", *headers, "", ""]).encode()
    return Case("foreign host or origin", f"{host}, {origin}", sent, frozenset((status, BUSY)))


GARBAGE: tuple[Callable[[random.Random], bytes], ...] = (
    lambda rng: b"\x16\x03\x01\x02\x00\x01\x00" + rng.randbytes(200),  # TLS
    lambda rng: rng.randbytes(rng.randint(1, 3000)) + b"\r\n\r\n",
    lambda _: b"GET /\r\n",
    lambda _: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    lambda _: b"SSH-2.0-client\r\n",
    lambda _: b"GET / HTTP/1.1\r\n\r\n",
    lambda _: b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\n\r\n",
    lambda _: b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    lambda _: b"GET /\x00\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    lambda _: b"POST /chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
    lambda _: b"POST /chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    lambda _: b"POST /chat/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
    lambda _: chat(b"{}") * 50,  # pipelined
    lambda _: chat(b"{}", "Connection: Upgrade", "Upgrade: websocket"),
    lambda rng: f"{rng.choice(('BREW', 'CONNECT', 'TRACE', 'OPTIONS'))} / HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(),
)


def malformed(rng: random.Random) -> Case:
    """No HTTP, or HTTP with a fault."""
    number = rng.randrange(len(GARBAGE))
    return Case("malformed HTTP", f"garbage {number}", GARBAGE[number](rng), REFUSALS)


def mutated_head(rng: random.Random) -> Case:
    """A request with some bytes changed in front of its body, whose end remains."""
    sent = bytearray(chat(encoded(question())))
    end = sent.index(b"\r\n\r\n")
    for _ in range(rng.randint(1, 4)):
        sent[rng.randrange(end)] = rng.randrange(256)
    return Case("malformed HTTP", "changed bytes", bytes(sent), REFUSALS | {200})


ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        -1,
        0.5,
        10**30,
        1e308,
        "",
        "a",
        "\ud800",
        f"{chr(27)}]52;c;aGk={chr(7)}",
        "\u202e",
        [],
        {},
        [[]],
        {"": {}},
    ),
    *("x" * 9000, [{}], ["a"], {"role": "user"}, [None] * 50, "<|assistant_end|>", float("nan"), float("inf")),
)


def odd_values(rng: random.Random) -> Case:
    """A valid request in which some values, or names, are replaced by others of any type."""
    answer: list[Any] = [{"type": "text", "text": "a"}, {"type": "python", "text": "1+1"}]
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    body: Any = question(messages=[*messages, {"role": "user", "content": "b"}], top_k=5, seed=1)
    for _ in range(rng.randint(1, 2)):
        place = body
        while True:
            keys = [*place] if isinstance(place, dict) else [*range(len(place))]
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(place[key], (dict, list)) and place[key] and rng.random() < 0.75:
                place = place[key]
                continue
            if isinstance(place, dict) and rng.random() < 0.2:
                place[rng.choice(("", "weight", "tool_calls", "x" * 5000, "\ud800"))] = place.pop(key)
            else:
                place[key] = copy.deepcopy(rng.choice(ODD))
            break
    return Case("odd conversation", "values of other types", chat(encoded(body)), frozenset((200, 400, FULL, BUSY)))


def mutated_json(rng: random.Random) -> Case:
    """A body with changed, missing and repeated bytes."""
    body = bytearray(encoded(question("Wörter 🙂")))
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(body))
        length = rng.randint(0, 8)
        body[at : at + length] = rng.choice((b"", rng.randbytes(length), bytes(body[at : at + length]) * 2))
    return Case("odd conversation", "changed bytes", chat(bytes(body)), frozenset((200, 400, FULL, BUSY)))


HEAVY: tuple[tuple[str, Callable[[], bytes]], ...] = (
    ("33,000 empty parts", lambda: encoded({"messages": [{"role": "assistant", "content": [{"": ""}] * 33_000}]})),
    ("300,000 empty objects", lambda: b'{"messages": [' + b"{}," * 300_000 + b"{}]}"),
    ("20,000 parts", lambda: encoded({"messages": [{"role": "user", "content": [{}] * 20_000}]})),
    ("deep lists", lambda: b"[" * 35_000),
    ("deep objects", lambda: b'{"a":' * 30_000),
    ("900 levels", lambda: b'{"top_k": ' + b"[" * 900 + b"]" * 900 + b"}"),
    ("a long name", lambda: encoded({"x" * 900_000: 1})),
    ("a long role", lambda: encoded({"messages": [{"role": "x" * 900_000, "content": ""}]})),
    ("a long text", lambda: encoded(question("x" * 900_000))),
    ("a long number", lambda: b'{"seed": ' + b"9" * 900_000 + b"}"),
    ("names twice", lambda: ("{" + ",".join(f'"{i % 30_000}":0' for i in range(30_001)) + "}").encode()),
    ("spaces", lambda: encoded(question(" " * 8_001))),
    ("zeros", lambda: bytes(900_000)),
)
LONG_HEAD = (b"X: " + b"y" * 20_000 + b"\r\n", b"a: b\r\n" * 400, b"a" * 17_000)


def heavy(rng: random.Random) -> Case:
    """A body that would cost much before it is refused, or more than is read."""
    choice = rng.random()
    if choice < 0.6:
        name, make = rng.choice(HEAVY)
        return Case("too much", name, chat(make()), frozenset((400, FULL, BUSY)))
    if choice < 0.8:
        sent = b"GET / HTTP/1.1\r\nHost: localhost\r\n" + rng.choice(LONG_HEAD)
        return Case("too much", "headers", sent, frozenset((431, BUSY, NO_ANSWER)))
    sent = chat(bytes(rng.randint(1_000_001, 1_500_000)), length=rng.choice((1_500_000, 10**12)))
    return Case("too much", "body", sent, frozenset((413, FULL, BUSY, NO_ANSWER)))


def cut(rng: random.Random) -> Case:
    """A client that leaves at any moment: before its request is complete, or in mid-answer."""
    sent = chat(encoded(question(max_tokens=200)))
    at = rng.choice((rng.randrange(len(sent)), len(sent)))
    return Case("cut off", f"after {at} bytes", sent[:at], frozenset(), rng.choice((CUT, RESET)))


def silent(rng: random.Random) -> Case:
    """A client that sends nothing, or half a request, and waits."""
    sent = chat(encoded(question()))
    at = rng.choice((0, rng.randrange(len(sent) - 1)))
    return Case("silent or slow", f"{at} bytes, then nothing", sent[:at], frozenset((408, FULL, BUSY, NO_ANSWER)))


def slow(rng: random.Random) -> Case:
    """A client that sends a little now and then, and never ends."""
    sent = chat(encoded(question()), length=500_000)
    at = rng.randrange(1, len(sent))
    return Case("silent or slow", f"drips after {at} bytes", sent[:at], REFUSALS | {NO_ANSWER}, DRIP)


def deaf(_: random.Random) -> Case:
    """A client that does not read its answer."""
    sent = chat(encoded(question(max_tokens=4000)))
    return Case("does not read", "4,000 tokens", sent, frozenset((200, FULL, BUSY, NO_ANSWER)), DEAF)


WEIGHTS: tuple[tuple[Callable[[random.Random], Case], float], ...] = (
    *((ordinary, 10), (simple_get, 6), (foreign, 14), (malformed, 16), (mutated_head, 10)),
    *((odd_values, 16), (mutated_json, 12), (heavy, 6), (cut, 7), (silent, 2), (slow, 1), (deaf, 0.15)),
)


def choose(rng: random.Random) -> Case:
    """Return a random case."""
    [make] = rng.choices([make for make, _ in WEIGHTS], [weight for _, weight in WEIGHTS])
    return make(rng)
