"""The repository's files as the tests in tests/architecture/ read them: paths, texts, syntax trees, imports."""

from __future__ import annotations

import ast
import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("nanochat", "tasks", "scripts")


@dataclass(frozen=True)
class Source:
    """A Python file: its path from the root, and its text."""

    path: str
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def is_library(self) -> bool:
        """True for a file of nanochat/, tasks/ or scripts/; false for tests and developers' tools."""
        return self.path.split("/")[0] in PACKAGES

    def at(self, node: ast.AST, complaint: str) -> str:
        """The complaint with the file and the line of a syntax tree's node in front."""
        return f"{self.path}:{getattr(node, 'lineno', 1)}: {complaint}"


def tracked() -> list[str]:
    """Paths of the repository's files: those that git tracks or would add; without git, all that no tool generates."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        return sorted({name for name in names if (ROOT / name).is_file()})
    generated = {".venv", "target", "__pycache__", "build", "dist"}
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return sorted(str(path) for path in files if not generated.intersection(path.parts) and path.suffix != ".so")


@functools.cache
def sources() -> tuple[Source, ...]:
    """Every Python file of the repository."""
    names = [name for name in tracked() if name.endswith(".py")]
    return tuple(Source(name, (ROOT / name).read_text(encoding="utf-8")) for name in names)


@functools.cache
def texts() -> dict[str, str]:
    """Every text file of the repository."""
    contents = {}
    for name in tracked():
        try:
            contents[name] = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
    return contents


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call with the dotted name of the callee; `.backward` where the callee is an expression."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            plain = re.fullmatch(r"[\w.]+", text)
            yield (text if plain else "." + text.rpartition(".")[2]), node


def imports(source: Source) -> Iterator[tuple[str, ast.AST]]:
    """Yield every module that a file imports, at any depth, with the statement; includes `pytest.importorskip`."""
    for name, call in calls(source.tree):
        if name == "pytest.importorskip" and isinstance(call.args[0], ast.Constant):
            yield str(call.args[0].value), call
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{source.path}: imports are absolute"
            yield node.module or "", node
