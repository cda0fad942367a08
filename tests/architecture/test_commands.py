"""Command lines written in README, docstrings and shell scripts can be typed as they are."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterable, Iterator

import pytest

from tests.support.settings import all_flags
from tests.support.sources import ROOT, Source, sources, texts, tracked


def commands(text: str) -> Iterator[tuple[str, list[str]]]:
    """Each `python -m MODULE` or `torchrun ... -m MODULE` with its flags; `scripts.x` stands for any script."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        for match in re.finditer(r"\s-m[\s\])}\"]+((?:nanochat|scripts|tasks)\.[\w.]+)(.*)", line):
            rest = re.split(r"\s#|[;|&`](?!\w)", match[2])[0]
            if match[1] != "scripts.x":
                yield match[1].rstrip("."), re.findall(r"(?<![\w-])(--?[A-Za-z][\w-]*)", rest)


def wrong_commands(name: str, text: str, files: Iterable[Source]) -> Iterator[str]:
    """Command lines that name a module that is not there, or a flag that it does not have."""
    modules = {source.module: source for source in files}
    for module, flags in commands(text):
        source = modules.get(module) or modules.get(f"{module}.__main__")
        if source is None or '__name__ == "__main__"' not in source.text:
            yield f"{name}: there is no command python -m {module}"
            continue
        known = {"--help", "-h"} | all_flags(source, modules)
        for flag in flags:
            if (f"--{flag[2:].replace('-', '_')}" if flag.startswith("--") else flag) not in known:
                yield f"{name}: {module} has no {flag}"


@pytest.mark.slow
def test_written_commands_exist() -> None:
    written = [
        *((name, text) for name, text in texts().items() if name.endswith((".md", ".sh"))),
        *((source.path, ast.get_docstring(source.tree) or "") for source in sources() if source.is_library),
    ]
    complaints = [complaint for name, text in written for complaint in wrong_commands(name, text, sources())]
    assert not complaints, "\n" + "\n".join(complaints)


def test_wrong_commands_are_found() -> None:
    text = 'class Config:\n    max_chars: int = setting(1, "x", short="c")\nif __name__ == "__main__":\n    pass'
    files = [
        Source("scripts/tok.py", text),
        Source("nanochat/shared.py", "class Base:\n    lr: int = setting(1, 'x')"),
        Source("scripts/heir.py", f"from nanochat.shared import Base\n{text.replace('Config', 'Config(Base)')}"),
    ]
    assert not list(wrong_commands("x", "python -m scripts.heir --max_chars=2 --lr=1", files))
    assert list(wrong_commands("x", "python -m scripts.heir --rl=1", files))
    for good in (
        "tok --max_chars=2 -c 3",
        "tok --max-chars 2 | head -n 3",
        "tok --help # --other",
        "tok -- --max_chars=1",
    ):
        assert not list(wrong_commands("x", f"python -m scripts.{good}", files)), good
    for bad in ("tok --maxchars=1", "tok -d 3", "other", "tok \\\n  --depth=1", "tok -- --depth=4"):
        assert list(wrong_commands("x", f"torchrun -m scripts.{bad}", files)), bad


@pytest.mark.parametrize("script", [name for name in tracked() if name.endswith(".sh") or name == ".ci/run"])
def test_shell_scripts_parse(script: str) -> None:
    done = subprocess.run(["bash", "-n", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
