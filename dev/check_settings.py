"""Check the settings of several commands before the first of them runs, as runcpu.sh and speedrun.sh do.

    python -m dev.check_settings scripts.base_train --depth=4 + scripts.mid_train --mixture=my.toml

An unknown setting, a value that is not allowed, and a faulty file of conversations are found at once: without this, a
wrong option of the last stage would be found when the others are trained. No device is used.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from nanochat.common import UserError, expand_path
from nanochat.configurator import parse
from nanochat.system.console import command
from tasks.customjson import read_conversations
from tasks.mixture import read_mixture


def split_commands(words: Sequence[str]) -> Iterator[list[str]]:
    """Yield each command: a module and its flags, up to the next `+`.

    >>> list(split_commands(["a", "--x=1", "+", "b"]))
    [['a', '--x=1'], ['b']]
    """
    part: list[str] = []
    for word in [*words, "+"]:
        if word != "+":
            part.append(word)
        elif part:
            yield part
            part = []


def check_command(module: str, flags: Sequence[str]) -> None:
    """Read the settings of a module, and the files with conversations that they name. Raises `UserError`."""
    try:
        config = parse(importlib.import_module(module).Config, flags)
        if mixture := getattr(config, "mixture", None):
            check_mixture(Path(mixture))
        if conversations := getattr(config, "conversations", None):
            read_conversations(Path(conversations))
    except UserError as error:
        raise UserError(f"{module}: {error}") from error


def check_mixture(path: Path) -> None:
    """Read a mixture file. Raises `UserError` for a faulty one, and for files that it names and that are not there."""
    for entry in read_mixture(path):
        for key in ("path", "filepath"):
            if (file := entry.options.get(key)) and not expand_path(file).is_file():
                raise UserError(f"mixture {path}: {entry.task} has {key} = {file!r}: no such file in {Path.cwd()}")


def main(words: Sequence[str]) -> None:
    """Check all commands; raises `UserError` for the first mistake."""
    for module, *flags in split_commands(words):
        check_command(module, flags)


if __name__ == "__main__":
    with command():
        main(sys.argv[1:])
