"""Settings of the scripts as their source files declare them: `name: type = setting(default, help, short=...)`."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping

from tests.support.sources import Source

Declarations = dict[str, tuple[ast.AnnAssign, set[str]]]  # name -> (declaration, its flags)


def settings(source: Source, class_names: Collection[str] | None = None) -> Declarations:
    """Return the settings that a file declares, or those of some of its classes."""
    declared: Declarations = {}
    for node in (inner for root in _roots(source, class_names) for inner in ast.walk(root)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call) and isinstance(node.target, ast.Name):
            if ast.unparse(node.value.func).rpartition(".")[2] != "setting":
                continue
            short = [ast.literal_eval(keyword.value) for keyword in node.value.keywords if keyword.arg == "short"]
            declared[node.target.id] = node, {f"--{node.target.id}", *(f"-{letter}" for letter in short)}
    return declared


def _roots(source: Source, class_names: Collection[str] | None) -> list[ast.stmt]:
    """Return the top-level statements of a file, or only the definitions of some classes."""
    if class_names is None:
        return source.tree.body
    return [node for node in source.tree.body if isinstance(node, ast.ClassDef) and node.name in class_names]


def all_settings(
    source: Source, modules: Mapping[str, Source], class_names: Collection[str] | None = None
) -> Iterator[tuple[Source, Declarations]]:
    """Yield a file's settings, then those that its config classes inherit, each time with the file that declares them.

    `class_names`: only these classes of the file count; None = all.
    """
    yield source, settings(source, class_names)
    classes = [node for node in _roots(source, class_names) if isinstance(node, ast.ClassDef)]
    bases = {ast.unparse(base) for node in classes for base in node.bases}
    for node in source.tree.body:
        if isinstance(node, ast.ImportFrom) and node.module in modules:
            imported_bases = bases.intersection(alias.name for alias in node.names)
            if imported_bases:
                yield from all_settings(modules[node.module], modules, imported_bases)


def all_flags(source: Source, modules: Mapping[str, Source]) -> set[str]:
    """Return the flags of a file's config classes, inherited ones included."""
    return {
        flag
        for _, declarations in all_settings(source, modules)
        for _, flags in declarations.values()
        for flag in flags
    }
