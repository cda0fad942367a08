"""Every import is declared in pyproject.toml, and every declaration is imported."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator

import pytest

from tests.support.sources import PACKAGES, Source, imports, sources, texts

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Distributions whose module has another name, and those never imported: commands, plugins, what torch imports.
MODULE_NAMES = {
    "pyyaml": "yaml",
    "pillow": "PIL",
    "markdown-it-py": "markdown_it",
    "pypandoc_binary": "pypandoc",
    "llama-cpp-python": "llama_cpp",
}
TOOLS = {"maturin", "mypy", "pip", "pytest-timeout", "pytest-xdist", "ruff", "setuptools"}


def dependency_complaints(pyproject: str, files: Iterable[Source]) -> Iterator[str]:
    """Imports that nobody declared, and declarations that nobody imports."""
    project = tomllib.loads(pyproject)["project"]

    def modules(requirements: Iterable[str]) -> set[str]:
        names = {re.split(r"[^\w.-]", text)[0].lower() for text in requirements} - TOOLS
        return {MODULE_NAMES.get(name, name.replace("-", "_")) for name in names}

    extras = project.get("optional-dependencies", {})
    library = modules(project["dependencies"])
    everything = library.union(*(modules(extra) for extra in extras.values()))
    unused = set(everything)
    for source in files:
        optional = modules(
            [
                *extras.get("gpu", []),
                *extras.get("wandb", []),
                *extras.get("hf", []),
                *extras.get("documents", []),
                *extras.get("llama-cpp", []),
            ]
        )
        allowed = library | optional if source.is_library else everything
        for name, node in imports(source):
            root = name.split(".")[0]
            unused.discard(root)
            if root not in {*sys.stdlib_module_names, *PACKAGES, *allowed, "tomllib", "tests", "dev"}:
                yield source.at(node, f"{root} is not declared in pyproject.toml")
    yield from (f"pyproject.toml: nothing imports {name}" for name in sorted(unused))


@pytest.mark.slow
def test_dependencies() -> None:
    complaints = list(dependency_complaints(texts()["pyproject.toml"], sources()))
    assert not complaints, "\n" + "\n".join(complaints)


def test_dependency_complaints() -> None:
    project = '[project]\ndependencies = ["pyyaml>=6", "a-b"]\noptional-dependencies = { dev = ["c", "ruff"] }'
    use = Source("nanochat/x.py", "import yaml, os\nfrom a_b.d import e")
    assert not list(dependency_complaints(project, [use, Source("tests/x.py", "import c")]))
    assert list(dependency_complaints(project, [use]))
    assert list(dependency_complaints(project, [use, Source("nanochat/y.py", "import c")]))
    assert list(dependency_complaints(project, [use, Source("tests/x.py", "import c, d")]))
