"""Rules that each file keeps: encodings, no code from data, docstrings, once-in-a-while work as events.

A rule takes a source file and yields complaints. Each has a test that it holds in the repository, and one that it can
fail. Lengths of files and functions are a guide, which `python -m dev.list_long` prints and nothing enforces.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.support.sources import Source, calls, imports, sources

# The first words that no docstring begins with: a docstring names the object, or starts with a verb.
QUESTION_WORDS = ("what", "where", "who", "whom", "whose", "how", "whether", "which", "why")
TRAINING_LOOPS = ("nanochat/train.py", "nanochat/rl/loop.py")
PRINTING = {  # files that print control sequences, or may write past the streams
    "nanochat/system/console.py",
    "nanochat/serving/terminal.py",
    "nanochat/tokenizer.py",
    "dev/fault_kinds/mutations.py",
}
SERVERS = {"dev/fault_kinds/launcher.py"}  # a fork of it becomes a command
SHORT_BODY = 5  # lines: a shorter function needs no docstring, since its name and its body say it all


def own_command_lines(source: Source) -> Iterator[str]:
    """A file that can be run opens with a docstring that shows its command line."""
    script = source.is_library and re.search(r"^if __name__ == ", source.text, re.MULTILINE)
    if script and f"python -m {source.module.removesuffix('.__main__')}" not in (ast.get_docstring(source.tree) or ""):
        yield f"{source.path}: the docstring does not show `python -m {source.module}`"


def text_has_an_encoding(source: Source) -> Iterator[str]:
    for name, call in source.calls:
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


def child_output_has_an_encoding(source: Source) -> Iterator[str]:
    """The output of a process is decoded as UTF-8, whatever the locale is."""
    for name, call in source.calls:
        keywords = {keyword.arg for keyword in call.keywords}
        is_text = keywords & {"text", "universal_newlines"} and name.startswith("subprocess.")
        if is_text and not source.path.startswith("tests/") and not {"encoding", "errors"} <= keywords:
            yield source.at(call, f"{name} in text mode without encoding and errors")


def prints_through_the_console(source: Source) -> Iterator[str]:
    """Nothing is printed past `Output` of system/console.py, which shows control characters as escapes."""
    if source.path in PRINTING or source.path.startswith("tests/"):
        return
    for node in source.nodes:
        text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if re.search(r"^sys\.(__std(out|err)__|std(out|err)\.buffer)$", text):
            yield source.at(node, f"{text} goes past nanochat.system.console.Output")
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "\x1b" in node.value:
            yield source.at(node, "a control sequence: only nanochat.system.console.write_controls prints it")
    for name, call in source.calls:
        first = ast.unparse(call.args[0]) if call.args else ""
        # A constant: a signal handler writes so, since it may have interrupted a print.
        is_own_text = name == "os.write" and re.fullmatch(r"b'.*'|[A-Z_]+", ast.unparse(call.args[1])) is not None
        is_stream = re.fullmatch(r"[12]|sys\.std(out|err)\.fileno\(\)", first) is not None
        if name in ("os.write", "open", "os.fdopen") and is_stream and not is_own_text:
            yield source.at(call, f"{name}({first}, ...) goes past nanochat.system.console.Output")
        if name == "input" and call.args and not isinstance(call.args[0], ast.Constant):
            yield source.at(call, "input() writes its prompt past nanochat.system.console.Output: print it")


def commands_end_quietly(source: Source) -> Iterator[str]:
    """A file that can be run does its work in `cli` or in `command`, which know the ends of a command."""
    is_run = re.search(r"^if __name__ == ", source.text, re.MULTILINE)
    is_command = is_run and not source.path.startswith("tests/") and source.path not in SERVERS
    if is_command and not any(name in ("cli", "command") for name, _ in source.calls):
        yield f"{source.path}: its work is done neither in `cli` nor in `command`"


def no_code_from_data(source: Source) -> Iterator[str]:
    """No exec, eval or pickle: neither a setting nor a checkpoint may run code."""
    if source.path.startswith("tests/"):
        return
    for name, call in source.calls:
        if name in ("exec", "eval", "torch.load") or any(keyword.arg == "allow_pickle" for keyword in call.keywords):
            yield source.at(call, f"{name}: data must not run code")
    for root, node in imports(source):
        if root.split(".")[0] in ("pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"):
            yield source.at(node, f"{root}: data must not run code")


def backward_in_the_loops_only(source: Source) -> Iterator[str]:
    """Only the training loops call `.backward()`."""
    if source.is_library and source.path not in TRAINING_LOOPS:
        for name, call in source.calls:
            if name.endswith(".backward"):
                yield source.at(call, f".backward() belongs to {' and '.join(TRAINING_LOOPS)}")


def no_modulo_every(source: Source) -> Iterator[str]:
    """Work every so many steps is an event, not a modulo in a loop."""
    for node in source.nodes:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod) and "_every" in ast.unparse(node.right):
            yield source.at(node, "% ..._every: make it an event")


def docstrings(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Every docstring of a file with its node: module, classes, functions."""
    for node in source.nodes:
        has_docstring = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if has_docstring and (text := ast.get_docstring(node)):
            yield node, text


def no_question_first(source: Source) -> Iterator[str]:
    """A docstring begins with the object or a verb, never with a question word."""
    for node, text in docstrings(source):
        first = re.split(r"[^A-Za-z]", text.lstrip("*`_ "), maxsplit=1)[0].lower()
        if first in QUESTION_WORDS:
            yield source.at(node, f"the docstring begins with {first!r}: name the object, or begin with a verb")


def public_is_documented(source: Source) -> Iterator[str]:
    """Public classes and functions of the library have docstrings, but for what is short enough to be read itself."""
    if not source.path.startswith("nanochat/"):
        return
    classes = (node for node in source.tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_"))
    for owner in (source.tree, *classes):
        for node in owner.body:
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) or node.name[0] == "_":
                continue
            num_lines = (node.end_lineno or 0) - node.body[0].lineno
            is_short = not isinstance(node, ast.ClassDef) and num_lines < SHORT_BODY
            if not ast.get_docstring(node) and not is_short and node.name not in ("forward", "Config"):
                yield source.at(node, f"{node.name} has no docstring")


def post_init_calls_its_base(source: Source) -> Iterator[str]:
    """A `__post_init__` calls its base class's, which checks the ranges of a config's settings."""
    heirs = (node for node in source.nodes if isinstance(node, ast.ClassDef) and node.bases)
    checks = (node for heir in heirs for node in heir.body if getattr(node, "name", "") == "__post_init__")
    for check in checks:
        if not any(ast.unparse(call) == "super().__post_init__()" for _, call in calls(ast.walk(check))):
            yield source.at(check, "__post_init__ does not call super().__post_init__()")


def asserts_say_why(source: Source) -> Iterator[str]:
    for node in source.nodes if source.is_library else ():
        if isinstance(node, ast.Assert) and node.msg is None:
            yield source.at(node, "assert without a message")


FILE_RULES: tuple[Callable[[Source], Iterator[str]], ...] = (
    own_command_lines,
    text_has_an_encoding,
    child_output_has_an_encoding,
    prints_through_the_console,
    commands_end_quietly,
    no_code_from_data,
    backward_in_the_loops_only,
    no_modulo_every,
    no_question_first,
    public_is_documented,
    post_init_calls_its_base,
    asserts_say_why,
)


@pytest.mark.parametrize("rule", FILE_RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps(rule: Callable[[Source], Iterator[str]]) -> None:
    complaints = [complaint for source in sources() for complaint in rule(source)]
    assert not complaints, "\n" + "\n".join(complaints)


GUARD = 'if __name__ == "__main__":\n    f()'
CLASS = "class A:\n    'A thing.'\n    "
HEIR = "class A(B):\n    def __post_init__(self):\n        "
LONG_BODY = "\n" + "    x = 1\n" * 6


@pytest.mark.parametrize(
    ("rule", "path", "bad", "good"),
    [
        (own_command_lines, "scripts/x.py", "'X.'\n" + GUARD, "'python -m scripts.x'\n" + GUARD),
        (own_command_lines, "scripts/x.py", GUARD, "f = 1"),
        (text_has_an_encoding, "x.py", "open(p)", "open(p, encoding='utf-8')"),
        (text_has_an_encoding, "x.py", "open(p, 'w')", "open(p, 'wb')"),
        (text_has_an_encoding, "x.py", "open(p, mode='a')", "open(p, mode='ab')"),
        (text_has_an_encoding, "x.py", "path.open()", "path.open('rb')"),
        (text_has_an_encoding, "x.py", "(a / 'b').read_text()", "(a / 'b').read_text(encoding='utf-8')"),
        (text_has_an_encoding, "x.py", "path.write_text(t)", "archive.open('name')"),
        (child_output_has_an_encoding, "dev/x.py", "subprocess.run(c, text=True)", "subprocess.run(c)"),
        (child_output_has_an_encoding, "dev/x.py", "subprocess.run(c, text=True, encoding=e)", "re.sub(a, text=b)"),
        (prints_through_the_console, "dev/x.py", "sys.stdout.buffer.write(b)", "sys.stdout.write(s)"),
        (prints_through_the_console, "dev/x.py", "print(a, file=sys.__stderr__)", "print(a, file=sys.stderr)"),
        (prints_through_the_console, "dev/x.py", "print('\\033[2m')", "print(a)"),
        (prints_through_the_console, "dev/x.py", "os.write(1, a)", "os.write(pipe, a)"),
        (prints_through_the_console, "dev/x.py", "input(question)", "input('> ')"),
        (commands_end_quietly, "dev/x.py", GUARD, GUARD.replace("f()", "cli(Config, main)")),
        (no_code_from_data, "dev/x.py", "exec(s)", "model.eval()"),
        (no_code_from_data, "dev/x.py", "eval(s)", "re.compile(s)"),
        (no_code_from_data, "dev/x.py", "import pickle", "import json"),
        (no_code_from_data, "dev/x.py", "from pickle import load", "from json import load"),
        (no_code_from_data, "dev/x.py", "torch.load(p)", "np.load(p)"),
        (no_code_from_data, "dev/x.py", "np.load(p, allow_pickle=True)", "np.save(p, a)"),
        (backward_in_the_loops_only, "nanochat/gpt.py", "loss.backward()", "loss.item()"),
        (backward_in_the_loops_only, "scripts/mid_train.py", "(a + b).backward()", "f.backward"),
        (no_modulo_every, "x.py", "if step % config.eval_every == 0: pass", "if step % 10 == 0: pass"),
        (no_question_first, "x.py", "def f():\n    'Whether it is.'", "def f():\n    'Return True if it is.'"),
        (no_question_first, "x.py", "'What is here.'", "'Whatever is here.'"),
        (no_question_first, "x.py", "class A:\n    'Where it is.'", "class A:\n    'A place.'\n    # where"),
        (public_is_documented, "nanochat/x.py", "def f():" + LONG_BODY, "def _f():" + LONG_BODY),
        (public_is_documented, "nanochat/x.py", "class A:\n    x = 1", CLASS + "def f(self): ..."),
        (public_is_documented, "nanochat/x.py", CLASS + "def f(self):" + LONG_BODY.replace("    ", "        "), CLASS),
        (post_init_calls_its_base, "x.py", HEIR + "pass", HEIR + "super().__post_init__()"),
        (asserts_say_why, "nanochat/x.py", "assert a", "assert a, 'why'"),
    ],
)  # fmt: skip
def test_a_rule_can_fail(rule: Callable[[Source], Iterator[str]], path: str, bad: str, good: str) -> None:
    assert list(rule(Source(path, bad)))
    assert not list(rule(Source(path, good)))


def test_packages_of_commands_prepare_the_console_first() -> None:
    """`python -m PACKAGE.MODULE` imports the package's `__init__` first: what it imports first is nanochat's."""
    folders = {source.path.split("/")[0] for source in sources() if re.search(r"^if __name__ == ", source.text, re.M)}
    texts = {source.path: source for source in sources()}
    assert folders - {"tests"} == {"nanochat", "scripts", "dev"}
    for folder in ("scripts", "dev"):
        assert imports(texts[f"{folder}/__init__.py"])[0][0] == "nanochat"
    assert [name for name, _ in imports(texts["nanochat/__init__.py"])] == ["sys", "nanochat.system.console"]
    heavy = {name.split(".")[0] for name, _ in imports(texts["nanochat/system/console.py"])}
    assert heavy - set(sys.stdlib_module_names) == {"nanochat", "tqdm"}
    assert [
        name
        for name, _ in imports(texts["nanochat/system/errors.py"])
        if name.split(".")[0] not in sys.stdlib_module_names
    ] == []
