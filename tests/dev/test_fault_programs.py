"""Hostile programs of the fault harness: templates are programs, effects outside are found, a small share holds."""

from __future__ import annotations

import ast
import os
import random
import signal
import socket
import string
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dev.fault_kinds import programs
from dev.fault_kinds.program_templates import PREAMBLE, TEMPLATES, Template
from dev.fault_kinds.programs import World, find_escapes
from nanochat.execution import ISOLATION_LAYERS, ProgramResult

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the layers are parts of Linux")

ALL = set(ISOLATION_LAYERS)


def result(stdout: str = "") -> ProgramResult:
    return ProgramResult(True, False, 0, stdout, "", "", ISOLATION_LAYERS)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with programs.open_world(tmp_path_factory.mktemp("world")) as world:
        yield world


def test_templates_are_programs_that_repeat_with_their_seed(world: World) -> None:
    assert len(TEMPLATES) >= 40
    for name, template in TEMPLATES.items():
        first, again, other = (
            string.Template(PREAMBLE + template.source).substitute(world.values(random.Random(seed)))
            for seed in (1, 1, 2)
        )
        assert first == again != other, name
        ast.parse(first)
        assert template.ends in ("", "any", "time")
        assert template.needs in ("", "files", "calls", "network")


def connect(world: World) -> None:
    with socket.create_connection(world.server.getsockname()):
        pass


def send(world: World) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", world.mailbox_path)


def signal_victim(world: World) -> None:
    assert world.victim
    os.kill(world.victim.pid, signal.SIGUSR1)


def kill_victim(world: World) -> None:
    assert world.victim
    world.victim.kill()
    world.victim.wait()


HARMS: dict[str, Callable[[World], object]] = {
    "a file is written": lambda world: world.secret.write_text("x", encoding="utf-8"),
    "a file is removed": lambda world: world.secret.unlink(),
    "a property is changed": lambda world: world.secret.chmod(0o600),
    "a time is changed": lambda world: os.utime(world.secret, (0, 0)),
    "a link": lambda world: os.link(world.secret, world.secret.with_name("link")),
    "a new file": lambda world: (world.folder / "new").touch(),
    "a connection": connect,
    "a local datagram": send,
    "a signal": lambda _: os.kill(os.getpid(), signal.SIGUSR2),
    "a signal to the watched process": signal_victim,
    "its end": kill_victim,
}


@pytest.mark.parametrize("name", HARMS)
def test_harm_is_found_and_repaired(name: str, world: World) -> None:
    world.reset()
    assert find_escapes(Template(""), result(), ALL, world) == []
    HARMS[name](world)
    assert len(find_escapes(Template(""), result(), ALL, world)) == 1
    world.reset()
    assert find_escapes(Template(""), result(), ALL, world) == []


@pytest.mark.parametrize(
    ("output", "needs", "layers", "is_found"),
    [
        (programs.TOKEN, "", ALL, True),
        (programs.TOKEN, "", {"seccomp"}, False),
        ("ESCAPED 1", "", {"seccomp"}, True),
        ("ESCAPED 1", "files", {"seccomp"}, False),
        ("ESCAPED 1", "files", {"landlock"}, True),
        ("ESCAPED 1", "calls", {"namespaces"}, False),
        ("ESCAPED 1", "network", {"namespaces"}, True),
        ("TASKS 100", "", ALL, False),
        ("TASKS 1000", "", {"seccomp"}, True),
    ],
)
def test_what_a_program_says(output: str, needs: str, layers: set[str], is_found: bool, world: World) -> None:
    """Only what the layers promise to prevent is a defect."""
    world.reset()
    assert bool(find_escapes(Template("", needs=needs), result(f"a\n{output}\n"), layers, world)) == is_found


@pytest.mark.slow
def test_a_small_share_holds(tmp_path: Path) -> None:
    outcomes = [*programs.run(4, 0, tmp_path / "world")]
    kinds = {outcome.kind for outcome in outcomes}
    assert kinds <= set(programs.SETS)
    assert len(outcomes) == 4 * len(kinds)
    assert not [outcome for outcome in outcomes if outcome.verdict != "ok"]
