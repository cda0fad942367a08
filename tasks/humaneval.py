"""HumanEval: write a Python function from its head and docstring (`openai/openai_humaneval`); tests judge it.

The program is taken out of the answer wherever it stands: in a fence or not, with the function's head or only its body,
with prose before and after, cut off in the middle. It runs with its tests in nanochat/execution.py's sandbox.
"""

from __future__ import annotations

import ast
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
_CODE = re.compile(r"^(?:def |async def |class |import |from \w[\w.]* import |@\w)", re.MULTILINE)
_LONGEST = 20_000  # characters of an answer that are looked at
_PARSING = threading.Lock()  # the filter of warnings belongs to all threads


class HumanEval(HubTask):
    """Split: test (164 rows). Right is a program with which all tests of its row pass within `timeout` seconds."""

    name = "HumanEval"
    repository = "openai/openai_humaneval"
    columns = ("prompt", "canonical_solution", "test", "entry_point")

    def __init__(self, split: str = "test", *, timeout: float = 10.0, **rows: Any) -> None:
        super().__init__("openai_humaneval", split, **rows)
        self.timeout = timeout

    def get_example(self, index: int) -> Conversation:
        row = self.row(index)
        question = f"Complete this Python function:\n\n```python\n{row['prompt'].strip()}\n```"
        answer = f"```python\n{(row['prompt'] + row['canonical_solution']).strip()}\n```"
        keys = ("prompt", "test", "entry_point")
        return make_conversation(question, answer, **{key: row[key] for key in keys})

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        prompt, entry_point = conversation["prompt"], conversation["entry_point"]
        # Only a program that gets to its last line prints this word: an early exit is no success.
        word = secrets.token_hex(8)
        parts = [extract_program(prompt, entry_point, completion), conversation["test"], f"check({entry_point})"]
        result = run_program("\n\n".join([*parts, f"print('\\n{word}')"]), timeout=self.timeout)
        return result.ok and word in result.stdout.splitlines()


def extract_program(prompt: str, entry_point: str, completion: str) -> str:
    """The program that an answer means; `prompt` is the head of the function `entry_point`, with what stands before.

    >>> extract_program("def two():", "two", "Here it is:\\n```python\\ndef two():\\n    return 2\\n```\\nEasy!")
    'def two():\\n    return 2'
    >>> extract_program("def two():", "two", "    return 2\\nThat is all.")
    'def two():\\n    return 2'
    """
    completion = completion[:_LONGEST].replace("\r\n", "\n")
    defines = re.compile(rf"^[ \t]*(?:async )?def {re.escape(entry_point)}\b", re.MULTILINE)
    code = _code(completion, defines)
    if defines.search(code):
        # The answer may leave out what the prompt has before the function: imports, other functions.
        before = prompt[: [match.start() for match in defines.finditer(prompt)][-1]].rstrip()
        return _parsable(f"{before}\n" if before else "", code)
    head = prompt.rstrip() + "\n"
    bodies = _bodies(code)
    return _parsable(head, next((body for body in bodies if _parses(head + body)), bodies[0]))


def _code(completion: str, defines: re.Pattern[str]) -> str:
    """The part of an answer that is code: the fence with the function, else its body, before a fence or in one."""
    blocks = _FENCE.findall(completion)
    for block in blocks:
        if defines.search(block):
            return textwrap.dedent(block)
    before = completion.partition("```")[0]
    if first := defines.search(before) and _CODE.search(before):
        return before[first.start() :]
    return before if before.lstrip("\n").startswith((" ", "\t")) or not blocks else str(blocks[0])


def _bodies(code: str) -> list[str]:
    """Ways to read a text as the body of a function: as it is; else all of it indented, or its first line."""
    lines = code.strip("\n").splitlines() or [""]
    if lines[0].startswith((" ", "\t")):
        # Other functions may follow; prose ends it.
        ends = (n for n, line in enumerate(lines) if re.match(r"\S", line) and not re.match(_CODE.pattern + "|#", line))
        return ["\n".join(lines[: next(ends, len(lines))])]
    return [textwrap.indent("\n".join(lines), "    "), "\n".join(["    " + lines[0], *lines[1:]])]


def _parsable(head: str, code: str) -> str:
    """`head` and as many of the first lines of the code as can be parsed together."""
    lines = code.rstrip().splitlines()
    while lines and not _parses(head + "\n".join(lines)):
        lines.pop()
    return head + "\n".join(lines)


def _parses(program: str) -> bool:
    with _PARSING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(program)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
        return True
