"""The rules of the house that a program can check.

A rule takes sources and gives complaints. Each has a test that it holds here, and one that it can fail.
"""

from __future__ import annotations

import ast
import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("nanochat", "tasks", "scripts")

# Import order: a module may import its own group and the groups before it. A room (a folder of nanochat/) stands for
# all modules in it; "tasks" and "scripts" are the packages of these names.
IMPORT_ORDER: tuple[tuple[str, ...], ...] = (
    ("common", "configurator", "runtime", "system"),
    ("gpt", "layers", "tokenizer", "tokenization", "sandbox", "execution"),
    ("checkpoint_manager", "reporting", "report", "muon", "adamw", "optim"),
    ("data", "dataset", "dataloader"),
    ("tasks",),
    ("inference", "engine"),
    ("eval", "loss_eval", "core_eval"),
    ("training", "train"),
    ("rl",),
    ("serving",),
    ("export",),
    ("scripts",),
)

# Groups that only scripts may import, and the last group that each of them may import itself.
BESIDE = {"serving": "engine", "export": "report"}

# Modules that start at once: they import torch in functions only.
WITHOUT_TORCH = {
    *("common", "configurator", "system", "tokenizer", "tokenization", "sandbox", "execution", "reporting", "report"),
    *("dataset", "data.shards", "data.download", "data.import_text", "data.storyworld", "tasks"),
    *("serving.chat_request", "eval.core_bundle"),
}

MAX_FILES_AT_THE_TOP = 20  # of nanochat/, besides the rooms
MAX_FILES_IN_A_ROOM = 14
LARGE_ROOMS = {"nanochat/data/storyworld"}  # the embedded world's tables and grammar

# What is longer than the guide (300 lines a library file, 200 a script, 40 a function), and why a reader accepts it.
LONG: dict[str, str] = {}

# Settings that nothing reads yet, and why.
UNREAD = {
    "arch": "has one value so far, which its choices check",
}

# Distributions whose module has another name, and what is never imported: commands, plugins, what torch imports.
MODULE_NAMES = {"pyyaml": "yaml", "pillow": "PIL", "markdown-it-py": "markdown_it"}
TOOLS = {"mypy", "ruff", "pytest-timeout", "setuptools"}


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
    def is_ours(self) -> bool:
        return self.path.split("/")[0] in PACKAGES

    def at(self, node: ast.AST, complaint: str) -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)}: {complaint}"


def tracked() -> list[str]:
    """The repository's files: those that git knows or would take; without git, all that no tool has made."""
    if shutil.which("git") and (ROOT / ".git").exists():
        command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
        return sorted({name for name in names if (ROOT / name).is_file()})
    made = {".venv", "target", "__pycache__", "build", "dist"}
    files = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    return sorted(str(path) for path in files if not made.intersection(path.parts) and path.suffix != ".so")


@functools.cache
def sources() -> tuple[Source, ...]:
    names = [name for name in tracked() if name.endswith(".py")]
    return tuple(Source(name, (ROOT / name).read_text(encoding="utf-8")) for name in names)


@functools.cache
def texts() -> dict[str, str]:
    """Every text file of the repository."""
    found = {}
    for name in tracked():
        try:
            found[name] = (ROOT / name).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a picture
    return found


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Each call with the dotted name of what is called; where that has none, its last attribute, as in `.backward`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            plain = re.fullmatch(r"[\w.]+", text)
            yield (text if plain else "." + text.rpartition(".")[2]), node


# --- rules for one file -----------------------------------------------------------------------------------------------


def too_long(source: Source) -> Iterator[tuple[str, str]]:
    """What exceeds the guide: its name in LONG, and the complaint. A function's docstring does not count."""
    if not source.is_ours:
        return
    limit = 200 if source.path.startswith("scripts/") else 300
    lines = source.text.count("\n")
    if lines > limit:
        yield source.path, f"{source.path}: {lines} lines, more than {limit}"
    for node in ast.walk(source.tree):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        name = f"{source.path}:{node.name}"
        first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
        count = node.body[0].lineno - node.lineno + (node.end_lineno or 0) - first.lineno + 1
        if count > 40:
            yield name, source.at(node, f"{node.name} has {count} lines, more than 40")
        arguments = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
        if arguments > 9:
            yield name, source.at(node, f"{node.name} has {arguments} arguments, more than 9")


def lengths(source: Source) -> Iterator[str]:
    """Files and functions are short, or say in LONG why not."""
    return (complaint for name, complaint in too_long(source) if name not in LONG)


def own_command_lines(source: Source) -> Iterator[str]:
    """Whatever can be run opens with a docstring that shows how."""
    script = source.is_ours and re.search(r"^if __name__ == ", source.text, re.MULTILINE)
    if script and f"python -m {source.module.removesuffix('.__main__')}" not in (ast.get_docstring(source.tree) or ""):
        yield f"{source.path}: the docstring does not show `python -m {source.module}`"


def text_has_an_encoding(source: Source) -> Iterator[str]:
    for name, call in calls(source.tree):
        if any(keyword.arg == "encoding" for keyword in call.keywords):
            continue
        method = name.rpartition(".")[2]
        if method in ("read_text", "write_text") and len(call.args) < (1 if method == "read_text" else 2):
            yield source.at(call, f"{method} without an encoding")
        if name in ("open", "os.fdopen") or (method == "open" and name != "os.open"):
            position = 1 if name in ("open", "os.fdopen") else 0
            modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"] + call.args[
                position : position + 1
            ]
            mode = modes[0].value if modes and isinstance(modes[0], ast.Constant) else "r" if not modes else None
            if isinstance(mode, str) and set(mode) <= set("rwaxt+"):
                yield source.at(call, "open() in text mode without an encoding")


def no_code_from_data(source: Source) -> Iterator[str]:
    """No exec, eval or pickle: neither a setting nor a checkpoint may run code."""
    if source.path.startswith("tests/"):
        return
    for name, call in calls(source.tree):
        if name in ("exec", "eval", "torch.load") or any(keyword.arg == "allow_pickle" for keyword in call.keywords):
            yield source.at(call, f"{name}: data must not run code")
    for root, node in imports(source):
        if root.split(".")[0] in ("pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"):
            yield source.at(node, f"{root}: data must not run code")


def backward_in_two_files(source: Source) -> Iterator[str]:
    """Only the loops train: the shared one and RL's."""
    if source.is_ours and source.path not in ("nanochat/train.py", "scripts/chat_rl.py"):
        for name, call in calls(source.tree):
            if name.endswith(".backward"):
                yield source.at(call, ".backward() belongs to nanochat/train.py and scripts/chat_rl.py")


def no_modulo_every(source: Source) -> Iterator[str]:
    """Once-in-a-while work is a list of events."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and "_every" in ast.unparse(node.right):
            yield source.at(node, "% ..._every: make it an event")


def public_is_documented(source: Source) -> Iterator[str]:
    """The library's public functions and classes have docstrings; those of `forward` and Config are class and file."""
    if not source.path.startswith("nanochat/"):
        return
    owners = [source.tree, *(node for node in source.tree.body if isinstance(node, ast.ClassDef) and public(node.name))]
    for owner in owners:
        for node in owner.body:
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or not public(node.name):
                continue
            overload = any("overload" in ast.unparse(decorator) for decorator in node.decorator_list)
            if not ast.get_docstring(node) and node.name not in ("forward", "Config") and not overload:
                yield source.at(node, f"{node.name} has no docstring")


def public(name: str) -> bool:
    return not name.startswith("_")


def heirs_check_what_they_inherit(source: Source) -> Iterator[str]:
    """A `__post_init__` calls the one above it, which checks the ranges of a config's settings."""
    heirs = (node for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef) and node.bases)
    checks = (node for heir in heirs for node in heir.body if getattr(node, "name", "") == "__post_init__")
    for check in checks:
        if not any(ast.unparse(call) == "super().__post_init__()" for _, call in calls(check)):
            yield source.at(check, "__post_init__ does not call super().__post_init__()")


def asserts_say_why(source: Source) -> Iterator[str]:
    for node in ast.walk(source.tree) if source.is_ours else ():
        if isinstance(node, ast.Assert) and node.msg is None:
            yield source.at(node, "assert without a message")


def imports(source: Source) -> Iterator[tuple[str, ast.AST]]:
    """Every module that a file imports, wherever in the file; tests also import what may be absent."""
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


FILE_RULES: tuple[Callable[[Source], Iterator[str]], ...] = (
    lengths,
    own_command_lines,
    text_has_an_encoding,
    no_code_from_data,
    backward_in_two_files,
    no_modulo_every,
    public_is_documented,
    heirs_check_what_they_inherit,
    asserts_say_why,
)


@pytest.mark.parametrize("rule", FILE_RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps(rule: Callable[[Source], Iterator[str]]) -> None:
    complaints = [complaint for source in sources() for complaint in rule(source)]
    assert not complaints, "\n" + "\n".join(complaints)


GUARD = 'if __name__ == "__main__":\n    f()'
CLASS = "class A:\n    'doc'\n    "
HEIR = "class A(B):\n    def __post_init__(self):\n        "


@pytest.mark.parametrize(
    ("rule", "path", "bad", "good"),
    [
        (lengths, "nanochat/x.py", "x = 1\n" * 301, "x = 1\n" * 300),
        (lengths, "scripts/x.py", "x = 1\n" * 201, "x = 1\n" * 200),
        (lengths, "nanochat/x.py", "def f():\n" + "    x = 1\n" * 40, "def f():\n    'a\\\nb'\n" + "    x = 1\n" * 39),
        (lengths, "nanochat/x.py", "def f(a, b, c, d, e, f, g, h, i, j): ...", "def f(a, b, c, d, e, f, g, h, i): ..."),
        (own_command_lines, "scripts/x.py", "'X.'\n" + GUARD, "'python -m scripts.x'\n" + GUARD),
        (own_command_lines, "scripts/x.py", GUARD, "f = 1"),
        (text_has_an_encoding, "x.py", "open(p)", "open(p, encoding='utf-8')"),
        (text_has_an_encoding, "x.py", "open(p, 'w')", "open(p, 'wb')"),
        (text_has_an_encoding, "x.py", "open(p, mode='a')", "open(p, mode='ab')"),
        (text_has_an_encoding, "x.py", "path.open()", "path.open('rb')"),
        (text_has_an_encoding, "x.py", "(a / 'b').read_text()", "(a / 'b').read_text(encoding='utf-8')"),
        (text_has_an_encoding, "x.py", "path.write_text(t)", "archive.open('name')"),
        (no_code_from_data, "dev/x.py", "exec(s)", "model.eval()"),
        (no_code_from_data, "dev/x.py", "eval(s)", "re.compile(s)"),
        (no_code_from_data, "dev/x.py", "import pickle", "import json"),
        (no_code_from_data, "dev/x.py", "from pickle import load", "from json import load"),
        (no_code_from_data, "dev/x.py", "torch.load(p)", "np.load(p)"),
        (no_code_from_data, "dev/x.py", "np.load(p, allow_pickle=True)", "np.save(p, a)"),
        (backward_in_two_files, "nanochat/gpt.py", "loss.backward()", "loss.item()"),
        (backward_in_two_files, "scripts/mid_train.py", "(a + b).backward()", "f.backward"),
        (no_modulo_every, "x.py", "if step % config.eval_every == 0: pass", "if step % 10 == 0: pass"),
        (public_is_documented, "nanochat/x.py", "def f() -> int: ...", "def _f(): ..."),
        (public_is_documented, "nanochat/x.py", CLASS + "def f(self): ...", CLASS + "def __len__(self): ..."),
        (heirs_check_what_they_inherit, "x.py", HEIR + "pass", HEIR + "super().__post_init__()"),
        (asserts_say_why, "nanochat/x.py", "assert a", "assert a, 'why'"),
    ],
)  # fmt: skip
def test_a_rule_can_fail(rule: Callable[[Source], Iterator[str]], path: str, bad: str, good: str) -> None:
    assert list(rule(Source(path, bad)))
    assert not list(rule(Source(path, good)))


def test_the_exceptions_are_needed() -> None:
    assert set(LONG) == {name for source in sources() for name, _ in too_long(source)}.intersection(LONG)
    assert all(LONG.values()), "each exception says why"


# --- import order -----------------------------------------------------------------------------------------------------


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
    files = [source for source in files if source.is_ours]
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
            if other == unit and unit != "scripts":
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
    graph = import_graph([source for source in files if source.is_ours])
    yield from circles({module: set(targets) for module, targets in graph.items()})


def circles_of_rooms(files: Iterable[Source]) -> Iterator[str]:
    """Circles between rooms; a file at the top of nanochat/ counts as part of no room."""
    files = [source for source in files if source.is_ours]
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
    units = {unit_of(source.module) for source in sources() if source.is_ours} - {""}
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
        limit = MAX_FILES_AT_THE_TOP if folder == "nanochat" else MAX_FILES_IN_A_ROOM
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


def test_importing_does_nothing(tmp_path: Path) -> None:
    modules = [source.module for source in sources() if source.is_ours and not source.module.endswith("__main__")]
    assert import_all(modules, tmp_path) in ("True\n", "False\n")


def test_what_starts_without_torch(tmp_path: Path) -> None:
    names = [name if name == "tasks" else f"nanochat.{name}" for name in WITHOUT_TORCH]
    modules = [source.module for source in sources() if source.is_ours]
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


# --- settings ---------------------------------------------------------------------------------------------------------


def settings(source: Source) -> dict[str, tuple[ast.AnnAssign, set[str]]]:
    """Each setting of a file's config classes, with its flags."""
    found: dict[str, tuple[ast.AnnAssign, set[str]]] = {}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Call) and isinstance(node.target, ast.Name):
            if ast.unparse(node.value.func).rpartition(".")[2] != "setting":
                continue
            short = [ast.literal_eval(keyword.value) for keyword in node.value.keywords if keyword.arg == "short"]
            found[node.target.id] = node, {f"--{node.target.id}", *(f"-{letter}" for letter in short)}
    return found


def all_flags(source: Source, modules: dict[str, Source]) -> set[str]:
    """The flags of a file's config classes, with those that they inherit from other files."""
    bases = {ast.unparse(base) for node in source.tree.body if isinstance(node, ast.ClassDef) for base in node.bases}
    from_files = [node for node in source.tree.body if isinstance(node, ast.ImportFrom)]
    above = [node.module for node in from_files if bases.intersection(alias.name for alias in node.names)]
    return set().union(
        *(flags for _, flags in settings(source).values()),
        *(all_flags(modules[name], modules) for name in above if name in modules),
    )


def unread_settings(files: Iterable[Source]) -> Iterator[str]:
    """A setting that nothing reads; a check in `__post_init__` is no use of it."""
    files = [source for source in files if not source.path.startswith("tests/")]
    read = set()
    for source in files:
        checks = (n for n in ast.walk(source.tree) if isinstance(n, ast.FunctionDef) and n.name == "__post_init__")
        checked = {id(inner) for check in checks for inner in ast.walk(check)}
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and id(node) not in checked:
                read.add(node.attr)
    for source in files:
        for name, (node, _) in settings(source).items():
            if name not in read and name not in UNREAD:
                yield source.at(node, f"nothing reads the setting {name}")


def test_every_setting_is_read() -> None:
    assert not list(unread_settings(sources()))
    assert UNREAD.keys() <= {name for source in sources() for name in settings(source)}


def test_an_unread_setting_is_found() -> None:
    text = (
        "class Config:\n    lr: float = setting(1, 'x')\n    def __post_init__(self):\n        assert self.lr, 'lr'\n"
    )
    assert list(unread_settings([Source("scripts/x.py", text)]))
    assert not list(unread_settings([Source("scripts/x.py", text + "def main(config):\n    print(config.lr)\n")]))


# --- what is written in README, docstrings and shell scripts can be typed ---------------------------------------------


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


def test_written_commands_exist() -> None:
    written = [
        *((name, text) for name, text in texts().items() if name.endswith((".md", ".sh"))),
        *((source.path, ast.get_docstring(source.tree) or "") for source in sources() if source.is_ours),
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


# --- dependencies -----------------------------------------------------------------------------------------------------


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
        optional = modules([*extras.get("wandb", []), *extras.get("hf", [])])
        allowed = library | optional if source.is_ours else everything
        for name, node in imports(source):
            root = name.split(".")[0]
            unused.discard(root)
            if root not in {*sys.stdlib_module_names, *PACKAGES, *allowed, "tomllib", "tests"}:
                yield source.at(node, f"{root} is not declared in pyproject.toml")
    yield from (f"pyproject.toml: nothing imports {name}" for name in sorted(unused))


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


# --- the repository speaks of the project only ------------------------------------------------------------------------

FOREIGN = re.compile(
    r"(?<![\w.])/(?:root|work|Users|home/\w+)/"  # a folder of somebody's machine
    r"|(?:pypi|pythonhosted|pytorch|npmjs)\.(?:org|com)/(?:simple|packages|whl)|static\.crates\.io|index\.crates\.io"
)


def test_no_foreign_places() -> None:
    found = [f"{name}: {match[0]}" for name, text in texts().items() for match in FOREIGN.finditer(text)]
    assert not found


def test_foreign_places_are_found() -> None:
    for bad in ("/" + "root/x", "cd /" + "work/main", "/" + "home/me/x", "https://download.pytorch.org/" + "whl/cpu"):
        assert FOREIGN.search(bad), bad
    for good in ("~/.cache/nanochat", "a/root/b", "../shared/data", "https://pytorch.org/docs"):
        assert not FOREIGN.search(good), good


def test_one_list_of_versions() -> None:
    assert "uv.lock" not in tracked()
    assert "constraints.txt" in tracked()


def test_the_map_of_the_house_is_complete() -> None:
    """Every file of the library, the tasks, the scripts and dev/ is named there, and nothing else."""
    house = texts()["README.md"].partition("## The map of the house")[2].partition("```\n")[2].partition("```")[0]
    named = set(re.findall(r"[\w.]+\.(?:py|sh|md|toml|html|rs)\b", house))
    files = {Path(name).name for name in tracked() if re.fullmatch(r"(nanochat|tasks|scripts|dev)/[^/]+", name)}
    missing = (
        {name for name in files if name.endswith((".py", ".sh", ".md", ".toml", ".html"))} - named - {"__init__.py"}
    )
    assert not missing, f"README.md does not say what is in {sorted(missing)}"
    absent = named - {Path(name).name for name in tracked()}
    assert not absent, f"README.md speaks of {sorted(absent)}, which are not there"
