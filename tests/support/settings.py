"""Settings of the scripts as their source files declare them: `name: type = setting(default, help, short=...)`."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping

from tests.support.sources import Source


def settings(source: Source) -> dict[str, tuple[ast.AnnAssign, set[str]]]:
    """The settings that a file declares: name -> (declaration, its flags)."""
    declared: dict[str, tuple[ast.AnnAssign, set[str]]] = {}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call) and isinstance(node.target, ast.Name):
            if ast.unparse(node.value.func).rpartition(".")[2] != "setting":
                continue
            short = [ast.literal_eval(keyword.value) for keyword in node.value.keywords if keyword.arg == "short"]
            declared[node.target.id] = node, {f"--{node.target.id}", *(f"-{letter}" for letter in short)}
    return declared


def declaring_files(source: Source, modules: Mapping[str, Source]) -> Iterator[Source]:
    """Yield a file and those from which its config classes inherit settings."""
    yield source
    bases = {ast.unparse(base) for node in source.tree.body if isinstance(node, ast.ClassDef) for base in node.bases}
    for node in source.tree.body:
        if not isinstance(node, ast.ImportFrom) or node.module not in modules:
            continue
        if bases.intersection(alias.name for alias in node.names):
            yield from declaring_files(modules[node.module], modules)


def all_flags(source: Source, modules: Mapping[str, Source]) -> set[str]:
    """The flags of a file's config classes, inherited ones included."""
    files = declaring_files(source, modules)
    return {flag for file in files for _, flags in settings(file).values() for flag in flags}
