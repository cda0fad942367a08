"""The import order of rooms and files, no circles, rooms that are not crowded, and imports without side effects."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.sources import PACKAGES, ROOT, Source, imports, sources, tracked

# Import order: a module may import its own group and the groups before it. A room (a folder of nanochat/) stands for
# all modules in it; "tasks" and "scripts" are the packages of these names.
IMPORT_ORDER: tuple[tuple[str, ...], ...] = (
    ("common", "configurator", "runtime", "system"),
    ("muon", "adamw", "sharding", "optim"),
    ("gpt", "layers", "tokenizer", "tokenization", "sandbox", "execution"),
    ("checkpoint_manager", "checkpoints", "reporting", "report"),
    ("data", "dataset", "dataloader"),
    ("documents",),
    ("passages",),
    ("tasks",),
    ("conversations",),
    ("quoting",),
    ("inference", "steps", "engine", "replicas"),
    ("eval", "loss_eval", "core_eval"),
    ("training", "train"),
    ("rl",),
    ("pipeline",),
    ("serving",),
    ("openai_api",),
    ("export",),
    ("scripts",),
)

# Groups that only scripts may import, and the last group that each of them may import itself.
BESIDE = {"serving": "engine", "openai_api": "engine", "export": "report"}
STANDS_ON = {"openai_api": "serving"}  # one of them, which it may import as well

# Modules that start at once: they import torch in functions only.
WITHOUT_TORCH = {
    *("common", "configurator", "system", "tokenizer", "tokenization", "sandbox", "execution", "reporting", "report"),
    *("dataset", "data.shards", "data.manifest", "data.shard_checks", "data.arrow_text", "data.download"),
    *("data.import_text", "data.source_files", "data.text_encoding", "data.text_source", "data.storyworld", "tasks"),
    *("documents", "passages", "conversations", "quoting", "serving.chat_request", "eval.core_bundle"),
    *("pipeline.steps", "pipeline.sizing", "pipeline.plan"),
}

MAX_FILES_AT_THE_TOP = 20  # of nanochat/, besides the rooms
MAX_FILES_IN_A_ROOM = 14
MAX_SCRIPTS = 22  # each of them a command, which README.md lists by subject
LARGE_ROOMS = {"nanochat/data/storyworld"}  # the embedded world's tables and grammar


def unit_of(module: str) -> str:
    """The name under which IMPORT_ORDER lists a module: `nanochat.eval.samples` -> `eval`, `tasks.arc` -> `tasks`."""
    package, _, rest = module.partition(".")
    return rest.partition(".")[0] if package == "nanochat" else package


def group_of(module: str) -> int | None:
    """Index of a module in IMPORT_ORDER; 0 for the package `nanochat` itself, None for what is not listed."""
    unit = unit_of(module)
    if not unit:
        return 0
    return next((group for group, units in enumerate(IMPORT_ORDER) if unit in units), None)


def import_graph(files: Iterable[Source]) -> dict[str, dict[str, ast.AST]]:
    """Module -> the modules of this repository that it imports, at its top or in functions, each with the statement."""
    modules = {source.module for source in files}
    graph: dict[str, dict[str, ast.AST]] = {}
    for source in files:
        targets = graph.setdefault(source.module, {})
        for name, node in imports(source):
            names = [f"{name}.{alias.name}" for alias in node.names] if isinstance(node, ast.ImportFrom) else [name]
            for target in (full if full in modules else name for full in names):
                if target.split(".")[0] in PACKAGES and target != source.module:
                    targets[target] = node
    return graph


def upward_imports(files: Iterable[Source]) -> Iterator[str]:
    """Imports against IMPORT_ORDER or BESIDE, imports between scripts, and modules that IMPORT_ORDER does not list."""
    files = [source for source in files if source.is_library]
    graph = import_graph(files)
    for source in files:
        here, unit = group_of(source.module), unit_of(source.module)
        if here is None:
            yield f"{source.path}: in which group? Name it in IMPORT_ORDER"
            continue
        limit = group_of(f"nanochat.{BESIDE[unit]}") if unit in BESIDE else here
        assert limit is not None, f"BESIDE names {unit}'s limit, which IMPORT_ORDER does not list"
        for target, node in graph[source.module].items():
            there, other = group_of(target), unit_of(target)
            if (other == unit and unit != "scripts") or other == STANDS_ON.get(unit):
                continue
            is_between_scripts = other == "scripts" and target != "scripts"
            is_beside = other in BESIDE and unit != "scripts"
            if there is None or there > limit or is_between_scripts or is_beside:
                yield source.at(node, f"imports {target}, against the import order")


def circles(graph: dict[str, set[str]]) -> Iterator[str]:
    """Import circles, each once, from its first module by name."""

    def paths(module: str, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for target in graph.get(module, set()):
            if target == path[0]:
                yield path
            elif target > path[0] and target not in path:
                yield from paths(target, (*path, target))

    for module in graph:
        yield from (" -> ".join((*path, module)) for path in paths(module, (module,)))


def circles_of_modules(files: Iterable[Source]) -> Iterator[str]:
    graph = import_graph([source for source in files if source.is_library])
    yield from circles({module: set(targets) for module, targets in graph.items()})


def circles_of_rooms(files: Iterable[Source]) -> Iterator[str]:
    """Circles between rooms; a file at the top of nanochat/ counts as part of no room."""
    files = [source for source in files if source.is_library]
    rooms: dict[str, set[str]] = {}
    for module, targets in import_graph(files).items():
        for target in targets:
            pair = [".".join(name.split(".")[:2]) for name in (module, target) if name.count(".") >= 2]
            if len(pair) == 2 and pair[0] != pair[1]:
                rooms.setdefault(pair[0], set()).add(pair[1])
    yield from circles(rooms)


def test_import_order() -> None:
    rules = (upward_imports, circles_of_modules, circles_of_rooms)
    complaints = [complaint for rule in rules for complaint in rule(sources())]
    assert not complaints, "\n" + "\n".join(complaints)
    units = {unit_of(source.module) for source in sources() if source.is_library} - {""}
    assert units == set().union(*IMPORT_ORDER), "IMPORT_ORDER lists what is not there"


def test_import_order_can_fail() -> None:
    def complaints(rule: Callable[[Iterable[Source]], Iterator[str]], **files: str) -> list[str]:
        return list(rule([Source(name.replace("__", "/") + ".py", text) for name, text in files.items()]))

    assert not complaints(upward_imports, nanochat__optim="from nanochat import common\nimport nanochat.muon")
    assert complaints(upward_imports, nanochat__gpt="import nanochat.train")
    assert complaints(upward_imports, nanochat__common="def f():\n    from nanochat.gpt import GPT")
    assert complaints(upward_imports, nanochat__data__packing="import nanochat.eval.samples")
    assert complaints(upward_imports, nanochat__strange="x = 1")
    assert complaints(upward_imports, scripts__a="from scripts import b", scripts__b="x = 1")
    assert complaints(upward_imports, tasks__a="import nanochat.engine")
    assert complaints(upward_imports, nanochat__rl__loop="import nanochat.serving.server")
    assert complaints(upward_imports, nanochat__serving__server="import nanochat.training.log")
    assert not complaints(upward_imports, scripts__a="import nanochat.serving.server")
    good = {"nanochat__a": "import nanochat.b", "nanochat__b": "import nanochat.c", "nanochat__c": "x = 1"}
    assert not complaints(circles_of_modules, **good)
    assert complaints(circles_of_modules, **good | {"nanochat__c": "import nanochat.a"})
    rooms = {
        "nanochat__a__x": "import nanochat.b.x",
        "nanochat__b__x": "x = 1",
        "nanochat__b__y": "import nanochat.c.x",
    }
    assert not complaints(circles_of_rooms, **rooms, nanochat__c__x="x = 1")
    assert complaints(circles_of_rooms, **rooms, nanochat__c__x="import nanochat.a.y", nanochat__a__y="x = 1")


def crowded(names: Iterable[str]) -> Iterator[str]:
    """Rooms with too many files, and nanochat/ itself; `__init__.py`, the mark of a package, is not counted."""
    files: dict[str, set[str]] = {}
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder.split("/")[0] in PACKAGES and file != "__init__.py":
            files.setdefault(folder, set()).add(file)
    for folder, inside in files.items():
        limit = {"nanochat": MAX_FILES_AT_THE_TOP, "scripts": MAX_SCRIPTS}.get(folder, MAX_FILES_IN_A_ROOM)
        if len(inside) > limit and folder not in LARGE_ROOMS:
            yield f"{folder} has {len(inside)} files, more than {limit}: {', '.join(sorted(inside))}"


def test_rooms_are_not_crowded() -> None:
    assert not list(crowded(tracked()))
    assert list(crowded([f"nanochat/eval/{letter}.py" for letter in "abcdefghijklmno"]))
    assert not list(crowded([f"nanochat/eval/{letter}.py" for letter in "abcdefghijklmn"]))
    assert list(crowded([f"nanochat/{letter}.py" for letter in "abcdefghijklmnopqrstu"]))


# --- importing does nothing -------------------------------------------------------------------------------------------

IMPORT_ALL = """
import importlib, logging, os, signal, sys, threading
sys.argv[:] = ["x", "--this-is-no-flag"]
def state():
    files = [os.path.join(folder, name) for folder, _, names in os.walk(os.environ["HOME"]) for name in names]
    handlers = [str(signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)] + logging.root.handlers
    return files, threading.active_count(), dict(os.environ), os.getcwd(), sys.argv[:], handlers
before = state()
for module in sys.stdin.read().split():
    importlib.import_module(module)
    after = state()
    assert after == before, f"importing {module} did something: {before} became {after}"
print("torch" in sys.modules)
"""


def import_all(modules: Iterable[str], home: Path, path: Path = ROOT) -> str:
    """Import modules one after the other in a fresh process; says whether torch came along, or what went wrong."""
    environment = {
        "HOME": str(home),
        "PYTHONPATH": str(path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "NANOCHAT_BASE_DIR": str(home),
    }
    command = [sys.executable, "-c", IMPORT_ALL]
    done = subprocess.run(
        command, input=" ".join(modules), env=environment, cwd=home, capture_output=True, text=True, timeout=120
    )
    return done.stdout + done.stderr


@pytest.mark.slow
def test_importing_does_nothing(tmp_path: Path) -> None:
    modules = [source.module for source in sources() if source.is_library and not source.module.endswith("__main__")]
    assert import_all(modules, tmp_path) in ("True\n", "False\n")


@pytest.mark.slow
def test_what_starts_without_torch(tmp_path: Path) -> None:
    names = [name if name == "tasks" else f"nanochat.{name}" for name in WITHOUT_TORCH]
    modules = [source.module for source in sources() if source.is_library]
    light = [module for module in modules if any(f"{module}.".startswith(f"{name}.") for name in names)]
    assert len(light) > len(names)
    assert import_all(light, tmp_path) == "False\n"


@pytest.mark.parametrize(
    "body",
    [
        "import os; os.makedirs(os.environ['HOME'] + '/x'); open(os.environ['HOME'] + '/x/y', 'w').close()",
        "import threading, time; threading.Thread(target=time.sleep, args=(0.5,)).start()",
        "import os; os.environ['A'] = 'b'",
        "import logging; logging.basicConfig()",
        "import argparse; argparse.ArgumentParser().parse_args()",
        "print('hello')",
    ],
)
def test_importing_can_fail(tmp_path: Path, body: str) -> None:
    (tmp_path / "bad.py").write_text(body, encoding="utf-8")
    home = tmp_path / "home"
    home.mkdir()
    assert import_all(["bad"], home, tmp_path) not in ("True\n", "False\n")
