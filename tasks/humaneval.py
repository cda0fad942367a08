"""HumanEval: complete a Python function from its signature and docstring, judged by tests (`openai/openai_humaneval`).

The program is extracted from any form of answer: in a code fence or not, the whole function or only its body, with
prose before and after, truncated. It runs together with its tests in the sandbox of nanochat/execution.py.
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
_CODE_START = re.compile(r"^(?:def |async def |class |import |from \w[\w.]* import |@\w)", re.MULTILINE)
_MAX_COMPLETION_CHARS = 20_000  # the rest of a completion is ignored
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
    while lines and not _is_valid_python(head + "\n".join(lines)):
        lines.pop()
    return head + "\n".join(lines)


def _is_valid_python(program: str) -> bool:
    with _PARSE_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            ast.parse(program)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
        return True
