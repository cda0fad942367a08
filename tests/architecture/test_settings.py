"""Settings are read, inherit at most one level, and no class overrides a concrete method of another."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterable, Iterator, Mapping

import pytest

from tests.architecture.test_import_order import import_graph
from tests.support.settings import all_settings, settings
from tests.support.sources import Source, sources

# Settings that nothing reads yet, and why.
UNREAD = {"arch": "has one value so far, which its choices check"}

# The last word of an expression whose attributes are settings: `config.depth`, `self.config.depth`.
CONFIG_NAMES = re.compile(r"(?:.*_)?(?:config|settings)")


@functools.cache
def reads(source: Source) -> set[str]:
    """Attributes that a file reads of a config; inside of a class with settings also of `self`.

    A check in `__post_init__` is no use of a setting.
    """
    names = set()
    configs = [node for node in source.nodes if isinstance(node, ast.ClassDef) and _has_settings(node)]
    inside = {id(inner) for config in configs for inner in ast.walk(config)}
    checks = (n for n in source.nodes if isinstance(n, ast.FunctionDef) and n.name == "__post_init__")
    checked = {id(inner) for check in checks for inner in ast.walk(check)}
    for node in source.nodes:
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and id(node) not in checked:
            receiver = ast.unparse(node.value).rpartition(".")[2]
            if CONFIG_NAMES.fullmatch(receiver) or (receiver == "self" and id(node) in inside):
                names.add(node.attr)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr" and len(node.args) >= 2:
            names.update(_literals(node.args[1], source))
    return names


def _has_settings(node: ast.ClassDef) -> bool:
    values = (inner.value for inner in node.body if isinstance(inner, ast.AnnAssign))
    return any(isinstance(value, ast.Call) and ast.unparse(value.func).endswith("setting") for value in values)


def _literals(argument: ast.expr, source: Source) -> set[str]:
    """The strings that `getattr(config, name)` reads where `name` runs over a literal tuple in a comprehension."""
    if not isinstance(argument, ast.Name):
        return set()
    loops = (node for node in source.nodes if isinstance(node, (ast.comprehension, ast.For)))
    values = (loop.iter for loop in loops if ast.unparse(loop.target) == argument.id)
    constants = (inner for value in values for inner in ast.walk(value) if isinstance(inner, ast.Constant))
    return {str(constant.value) for constant in constants}


def reachable(module: str, graph: Mapping[str, Mapping[str, ast.AST]]) -> set[str]:
    """The module and all that it imports, directly or not."""
    seen: set[str] = set()
    pending = [module]
    while pending:
        current = pending.pop()
        if current not in seen:
            seen.add(current)
            pending.extend(graph.get(current, ()))
    return seen


def unread_settings(files: Iterable[Source]) -> Iterator[str]:
    """Settings of a command, its own or inherited, that neither it nor any module that it imports reads."""
    files = [source for source in files if not source.path.startswith("tests/")]
    modules = {source.module: source for source in files}
    graph = import_graph(files)
    for source in files:
        if '__name__ == "__main__"' not in source.text:
            continue
        read = set().union(*(reads(modules[name]) for name in reachable(source.module, graph) if name in modules))
        for file, declarations in all_settings(source, modules):
            for name, (node, _) in declarations.items():
                if name not in read and name not in UNREAD:
                    yield f"{source.path}: nothing reads the setting {name} ({file.path}:{node.lineno})"


@pytest.mark.slow
def test_every_setting_is_read() -> None:
    complaints = list(unread_settings(sources()))
    assert not complaints, "\n" + "\n".join(complaints)
    assert UNREAD.keys() <= {name for source in sources() for name in settings(source)}


# Texts that speak of a file, a folder or a name, and are neither a path nor the name of a folder.
NO_PATHS = {
    *("tasks", "task_name", "push", "compare", "other", "corpora", "stages", "text_column", "model", "key_env"),
}


def undeclared_places(files: Iterable[Source]) -> Iterator[str]:
    """Settings of the type str that are paths or names of folders by their help or name, but not declared as such."""
    for source in files:
        if source.path.startswith("tests/"):
            continue
        for name, (node, _) in settings(source).items():
            assert isinstance(node.value, ast.Call)
            arguments = {keyword.arg for keyword in node.value.keywords}
            help_text = ast.unparse(node.value.args[1])
            is_place = re.search(r"\b(folder|file)s?\b", help_text, re.IGNORECASE) or name in ("run", "model_tag")
            is_text = "str" in ast.unparse(node.annotation) and not {"names", "choices"} & arguments
            if is_place and is_text and name not in NO_PATHS:
                yield f"{source.path}:{node.lineno}: {name} is a text: declare names= or the type Path"


def test_paths_and_names_are_declared() -> None:
    """So that `~` is expanded in all of them alike, and no tag leaves its folder."""
    assert not list(undeclared_places(sources()))


def test_an_undeclared_path_is_found() -> None:
    def complaints(declaration: str) -> list[str]:
        text = f"class Config(Settings):\n    {declaration}\n"
        return list(undeclared_places([Source("scripts/x.py", text)]))

    assert complaints("data: str = setting('', 'folder of the text')")
    assert complaints("model_tag: str | None = setting(None, 'model to use')")
    assert not complaints("data: Path = setting(Path(), 'folder of the text')")
    assert not complaints("data: str = setting('', 'folder of the text', names='path')")
    assert not complaints("depth: int = setting(1, 'layers')")


def test_an_unread_setting_is_found() -> None:
    text = "class Config(Settings):\n    lr: float = setting(1, 'x')\n"
    text += "    def __post_init__(self):\n        assert self.lr, 'lr'\n"
    main = 'if __name__ == "__main__":\n    pass\n'

    def complaints(**files: str) -> list[str]:
        return list(unread_settings(Source(name.replace("__", "/") + ".py", text) for name, text in files.items()))

    assert complaints(scripts__x=text + main)
    assert not complaints(scripts__x=text + "def main(config):\n    print(config.lr)\n" + main)
    assert complaints(scripts__x=text + "def main(config):\n    print(group.lr)\n" + main)
    assert not complaints(scripts__x=text + "    def double(self):\n        return 2 * self.lr\n" + main)
    other = "def f(config):\n    print(config.lr)\n"
    assert complaints(scripts__x=text + main, nanochat__y=other)
    assert not complaints(scripts__x="import nanochat.y\n" + text + main, nanochat__y=other)
    child = "from nanochat.z import Base\nclass Config(Base):\n    pass\n" + main
    base = text.replace("Config", "Base")
    assert complaints(scripts__x=child, nanochat__z=base)
    unrelated = "class Other(Settings):\n    depth: int = setting(1, 'x')\n"
    assert len(complaints(scripts__x=child, nanochat__z=base + unrelated)) == 1


# --- inheritance ------------------------------------------------------------------------------------------------------

Classes = dict[tuple[str, str], ast.ClassDef]  # (module, name) -> definition


def classes_of(files: Iterable[Source]) -> Classes:
    nodes = ((source.module, node) for source in files for node in source.tree.body)
    return {(module, node.name): node for module, node in nodes if isinstance(node, ast.ClassDef)}


def bases_of(
    module: str, node: ast.ClassDef, files: Mapping[str, Source], classes: Classes
) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of the base classes that the repository defines."""
    imported = {
        alias.asname or alias.name: (statement.module or "", alias.name)
        for statement in files[module].nodes
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    for base in node.bases:
        name = ast.unparse(base).partition("[")[0]
        key = imported.get(name, (module, name))
        if key in classes:
            yield key


def deep_settings(files: Iterable[Source]) -> Iterator[str]:
    """Classes of settings whose base class has settings that are inherited themselves."""
    modules = {source.module: source for source in files if source.is_library}
    classes = classes_of(modules.values())
    for (module, name), node in classes.items():
        for base in bases_of(module, node, modules, classes):
            for above in bases_of(base[0], classes[base], modules, classes):
                if _has_settings(classes[above]):
                    yield f"{module}.{name} inherits settings from {above[1]} by way of {base[1]}"


def overridden_methods(files: Iterable[Source]) -> Iterator[str]:
    """Methods that replace a concrete method of a base class that the repository defines."""
    modules = {source.module: source for source in files if source.is_library}
    classes = classes_of(modules.values())

    def inherited(key: tuple[str, str]) -> Iterator[tuple[str, ast.FunctionDef]]:
        for base in bases_of(key[0], classes[key], modules, classes):
            for node in classes[base].body:
                if isinstance(node, ast.FunctionDef):
                    yield base[1], node
            yield from inherited(base)

    for key, node in classes.items():
        own = {method.name for method in node.body if isinstance(method, ast.FunctionDef)}
        for base, method in inherited(key):
            if method.name in own and method.name not in ("__init__", "__post_init__") and not is_abstract(method):
                yield f"{key[0]}.{key[1]}.{method.name} overrides a concrete method of {base}"


def is_abstract(method: ast.FunctionDef) -> bool:
    """Return True for an abstract method and for one that only raises, or has no body but its docstring."""
    if any("abstractmethod" in ast.unparse(decorator) for decorator in method.decorator_list):
        return True
    body = method.body[1:] if ast.get_docstring(method) else method.body
    return not body or isinstance(body[0], ast.Raise) or ast.unparse(body[0]) == "..."


def test_inheritance() -> None:
    complaints = [*deep_settings(sources()), *overridden_methods(sources())]
    assert not complaints, "\n" + "\n".join(complaints)


def test_inheritance_can_fail() -> None:
    def source(text: str) -> list[Source]:
        return [Source("nanochat/x.py", text)]

    setting = "    lr: float = setting(1, 'x')\n"
    shared = "class Settings: ...\nclass Shared(Settings):\n" + setting
    assert not list(deep_settings(source(shared + "class Config(Shared):\n" + setting)))
    deep = shared + "class More(Shared):\n" + setting + "class Config(More):\n" + setting
    assert list(deep_settings(source(deep)))
    concrete = "class A:\n    def f(self):\n        return 1\n"
    assert list(overridden_methods(source(concrete + "class B(A):\n    def f(self):\n        return 2\n")))
    assert not list(overridden_methods(source(concrete + "class B(A):\n    def g(self):\n        return 2\n")))
    abstract = "class A:\n    def f(self):\n        'Do it.'\n"
    assert not list(overridden_methods(source(abstract + "class B(A):\n    def f(self):\n        return 2\n")))
