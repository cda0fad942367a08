"""The repository's files as the tests in tests/architecture/ read them: paths, texts, syntax trees, imports."""

from __future__ import annotations

import ast
import functools
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
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

    @functools.cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        """All nodes of the syntax tree: many rules look at each of them."""
        return tuple(ast.walk(self.tree))

    @functools.cached_property
    def calls(self) -> tuple[tuple[str, ast.Call], ...]:
        return tuple(calls(self.nodes))

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


def calls(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, ast.Call]]:
    """Yield each call with the dotted name of the callee; `.backward` where the callee is an expression."""
    for node in nodes:
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            plain = re.fullmatch(r"[\w.]+", text)
            yield (text if plain else "." + text.rpartition(".")[2]), node


@functools.cache
def imports(source: Source) -> tuple[tuple[str, ast.AST], ...]:
    """Return every module that a file imports, at any depth, with the statement; includes `pytest.importorskip`."""
    found: list[tuple[str, ast.AST]] = [
        (str(call.args[0].value), call)
        for name, call in source.calls
        if name == "pytest.importorskip" and isinstance(call.args[0], ast.Constant)
    ]
    for node in source.nodes:
        if isinstance(node, ast.Import):
            found += [(alias.name, node) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{source.path}: imports are absolute"
            found.append((node.module or "", node))
    return tuple(found)
