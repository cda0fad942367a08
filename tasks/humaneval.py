"""HumanEval: complete a Python function from its signature and docstring, judged by tests (`openai/openai_humaneval`).

The program is extracted from any form of answer: in a code fence or not, the whole function or only its body, with
prose before and after, truncated. It runs together with its tests in the sandbox of nanochat/execution.py.
"""

from __future__ import annotations

import ast
import bisect
import math
import re
import secrets
import textwrap
import threading
import warnings
from typing import Any

from nanochat.execution import run_program
from nanochat.tokenization.chat_format import Conversation
from tasks.common import make_conversation
from tasks.hub import HubTask

_FENCE = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_CODE_START = re.compile(r"^(?:def |async def |class |import |from \w[\w.]* import |@\w)", re.MULTILINE)
_LINE_END = re.compile(r"\r\n|\r|\n")
_UNREADABLE = re.compile("[\0\ud800-\udfff]")  # characters that make any program invalid
_TRIPLE_QUOTE = re.compile("\"\"\"|'''")
_EMPTY = re.compile(r"\s*(?:#(?!.*(?:\"\"\"|''')).*)?$")  # lines without code: a comment, or nothing
_DECORATOR = re.compile(r"@[^#'\"\\]*$")
_TRY = re.compile(r"\s*try\s*:")
_MAX_COMPLETION_CHARS = 20_000  # the rest of a completion is ignored
_MAX_PARSES = 30  # attempts to parse a completion, of which each is shorter than the one before; most take one or two
_PARSE_LOCK = threading.Lock()  # `catch_warnings` changes the warning filter of all threads


class HumanEval(HubTask):
    """Split: test (164 rows). A program is correct if all tests of its row pass within `timeout` seconds."""

    name = "HumanEval"
    repo_id = "openai/openai_humaneval"
    columns = ("prompt", "canonical_solution", "test", "entry_point")

    def __init__(self, split: str = "test", *, timeout: float = 10.0, **kwargs: Any) -> None:
        super().__init__("openai_humaneval", split, **kwargs)
        self.timeout = timeout

    def get_example(self, index: int) -> Conversation:
        row = self.get_row(index)
        question = f"Complete this Python function:\n\n```python\n{row['prompt'].strip()}\n```"
        answer = f"```python\n{(row['prompt'] + row['canonical_solution']).strip()}\n```"
        extras = {key: row[key] for key in ("prompt", "test", "entry_point")}
        return make_conversation(question, answer, **extras)

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        prompt = conversation["prompt"]
        entry_point = conversation["entry_point"]
        # The last line of the program prints a random word, so a program that exits early does not count as a success.
        sentinel = secrets.token_hex(8)
        parts = [
            extract_program(prompt, entry_point, completion),
            conversation["test"],
            f"check({entry_point})",
            f"print('\\n{sentinel}')",
        ]
        result = run_program("\n\n".join(parts), timeout=self.timeout)
        return result.ok and sentinel in result.stdout.splitlines()


def extract_program(prompt: str, entry_point: str, completion: str) -> str:
    """Return the program that a completion contains.

    `prompt` is the source up to the body of the function `entry_point`: imports and helpers, signature, docstring.

    >>> extract_program("def two():", "two", "Here it is:\\n```python\\ndef two():\\n    return 2\\n```\\nEasy!")
    'def two():\\n    return 2'
    >>> extract_program("def two():", "two", "    return 2\\nThat is all.")
    'def two():\\n    return 2'
    """
    completion = completion[:_MAX_COMPLETION_CHARS].replace("\r\n", "\n")
    definition = re.compile(rf"^[ \t]*(?:async )?def {re.escape(entry_point)}\b", re.MULTILINE)
    code = _find_code(completion, definition)
    if definition.search(code):
        # The completion may omit what precedes the function in the prompt: imports, other functions.
        last_definition = [match.start() for match in definition.finditer(prompt)][-1]
        preamble = prompt[:last_definition].rstrip()
        return _longest_valid_prefix(f"{preamble}\n" if preamble else "", code)
    head = prompt.rstrip() + "\n"
    bodies = _candidate_bodies(code)
    body = next((body for body in bodies if _is_valid_python(head + body)), bodies[0])
    return _longest_valid_prefix(head, body)


def _find_code(completion: str, definition: re.Pattern[str]) -> str:
    """Return the code of a completion: the fence that defines the function, else code before a fence, else a fence."""
    blocks = _FENCE.findall(completion)
    for block in blocks:
        if definition.search(block):
            return textwrap.dedent(block)
    unfenced = completion.partition("```")[0]
    if first_code := definition.search(unfenced) and _CODE_START.search(unfenced):
        return unfenced[first_code.start() :]
    is_body = unfenced.lstrip("\n").startswith((" ", "\t"))
    return unfenced if is_body or not blocks else str(blocks[0])


def _candidate_bodies(code: str) -> list[str]:
    """Return readings of a text as a function body: as is if indented, else with all lines, or the first, indented."""
    lines = code.strip("\n").splitlines() or [""]
    if lines[0].startswith((" ", "\t")):
        # Unindented code, such as another function, may follow the body; unindented prose ends it.
        prose = (
            index
            for index, line in enumerate(lines)
            if re.match(r"\S", line) and not re.match(_CODE_START.pattern + "|#", line)
        )
        return ["\n".join(lines[: next(prose, len(lines))])]
    return [textwrap.indent("\n".join(lines), "    "), "\n".join(["    " + lines[0], *lines[1:]])]


def _longest_valid_prefix(head: str, code: str) -> str:
    """Return `head` followed by as many leading lines of the code as parse together with it."""
    lines = code.rstrip().splitlines()
    return head + "\n".join(lines[: _num_valid_lines(head, lines)])


def _num_valid_lines(head: str, lines: list[str]) -> int:
    """Return the largest number of lines that parse together with `head`, or 0 after _MAX_PARSES attempts.

    To parse once for each number of lines would take time in proportion to the square of their number. Instead, the
    place of each error tells which shorter texts have the same error.
    """
    if _UNREADABLE.search(head):
        return 0
    num_lines = next((index for index, line in enumerate(lines) if _UNREADABLE.search(line)), len(lines))
    num_head_lines = len(_LINE_END.findall(head))
    for _ in range(_MAX_PARSES):
        error = _parse_error(head + "\n".join(lines[:num_lines])) if num_lines else None
        if error is None:
            return num_lines
        if isinstance(error, SyntaxError):
            num_lines = _shorten(lines[:num_lines], error, num_head_lines)
        else:  # nested too deeply for the parser, as are all texts that are longer still
            num_lines = bisect.bisect_left(
                range(1, num_lines),
                True,
                key=lambda size: not isinstance(_parse_error(head + "\n".join(lines[:size])), SyntaxError | None),
            )
    return 0


def _shorten(lines: list[str], error: SyntaxError, num_head_lines: int) -> int:
    """Return a number of lines, fewer than all, such that no larger number of them is valid. `error`: that of all."""
    error_line = error.lineno - num_head_lines if error.lineno else len(lines)  # the first line is 1
    before = max(0, min(error_line - 1, len(lines)))  # if more must follow, the error is after the last line
    if error.msg.startswith("expected 'except' or 'finally'"):
        start = _find_open_try(lines[:before])
        before = before if start is None else start
    return _drop_incomplete(lines[: min(before, len(lines) - 1)])


def _drop_incomplete(lines: list[str]) -> int:
    """Return the number of lines without those at the end after which more must follow, whatever they mean.

    These are headers of blocks and decorators, both also if only comments follow, and continued lines.
    """
    while lines:
        last = next((index for index in range(len(lines) - 1, -1, -1) if not _EMPTY.match(lines[index])), None)
        if last is None:
            break
        text = lines[last].strip()
        is_continuation = last > 0 and lines[last - 1].endswith("\\")
        is_header = text.endswith(":") and "#" not in text
        is_decorator = _DECORATOR.match(text) and text.count("(") == text.count(")") and not is_continuation
        if is_header or is_decorator:
            lines = lines[:last]
        elif lines[-1].endswith("\\") and "#" not in lines[-1]:
            lines = lines[:-1]
        else:
            break
    return len(lines)


def _find_open_try(lines: list[str]) -> int | None:
    """Return the index of the innermost `try` whose block contains the last line; None if it is not certain."""
    indent: float = math.inf
    for index in range(len(lines) - 1, -1, -1):
        text = lines[index].expandtabs(8)
        if _TRIPLE_QUOTE.search(text):
            return None  # within a string, indentation has no meaning
        width = len(text) - len(text.lstrip())
        if not _EMPTY.match(text) and width < indent:
            indent = width
            if _TRY.match(text):
                return index
    return None


def _is_valid_python(program: str) -> bool:
    return _parse_error(program) is None


def _parse_error(program: str) -> Exception | None:
    with _PARSE_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(program)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            return error
        return None
