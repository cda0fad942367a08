"""Landlock and seccomp without namespaces, as in most containers: hostile programs have the same outcomes."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from tests.support.hostile_programs import PROGRAMS
from tests.support.sandbox import Targets, open_targets

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="programs run on Linux and macOS, not on Windows")


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Targets]:
    with open_targets(tmp_path_factory.mktemp("targets")) as targets:
        yield targets


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.slow
def test_hostile_program(name: str, targets: Targets) -> None:
    targets.check(name, "no namespaces", PROGRAMS)


def test_targets_are_unharmed(targets: Targets) -> None:
    """After all of the above."""
    targets.assert_all_unharmed()
