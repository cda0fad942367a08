"""List files and functions that are longer than the guide: 300 lines a file, 200 a script, 40 a function, 9 arguments.

    python -m dev.list_long

A guide for reading and splitting, not a limit: the exit code is always 0, and code is never squeezed to leave the list.
A function's docstring does not count.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from nanochat.common import command

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("nanochat", "scripts", "tasks", "dev")
FILE_LINES = 300
SCRIPT_LINES = 200
FUNCTION_LINES = 40
ARGUMENTS = 9


def long_code(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Yield (lines or arguments, description) for what exceeds the guide in one file.

    >>> list(long_code("scripts/x.py", "x = 1\\n" * 201))
    [(201, 'scripts/x.py: 201 lines (guide: 200)')]
    """
    num_lines = text.count("\n")
    limit = SCRIPT_LINES if path.startswith("scripts/") else FILE_LINES
    if num_lines > limit:
        yield num_lines, f"{path}: {num_lines} lines (guide: {limit})"
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        has_docstring = ast.get_docstring(node) is not None and len(node.body) > 1
        docstring_lines = node.body[1].lineno - node.body[0].lineno if has_docstring else 0
        num_lines = (node.end_lineno or node.lineno) - node.lineno + 1 - docstring_lines
        if num_lines > FUNCTION_LINES:
            yield num_lines, f"{path}:{node.lineno} {node.name}: {num_lines} lines (guide: {FUNCTION_LINES})"
        num_arguments = len(node.args.posonlyargs + node.args.args + node.args.kwonlyargs)
        if num_arguments > ARGUMENTS:
            yield num_arguments, f"{path}:{node.lineno} {node.name}: {num_arguments} arguments (guide: {ARGUMENTS})"


def main() -> None:
    """Print the list, the longest first."""
    paths = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    entries = [
        entry for path in paths for entry in long_code(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8"))
    ]
    for _, description in sorted(entries, reverse=True):
        print(description)
    print(f"{len(entries)} entries in {len(paths)} files" if entries else "Nothing is longer than the guide.")


if __name__ == "__main__":
    with command():
        main()
