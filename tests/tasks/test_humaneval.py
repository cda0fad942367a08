"""HumanEval: the program is extracted from any form of answer, and only a correct one passes in the sandbox."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.tokenization.chat_format import Conversation
from tasks import humaneval
from tasks.humaneval import HumanEval, extract_program
from tasks.registry import get_task

PREAMBLE = "from typing import List\nimport math\n\ndef twice(x):\n    return 2 * x\n\n"
SIGNATURE = 'def total(numbers: List[int]) -> int:\n    """ Sum of doubles.\n    >>> total([1, 2])\n    6\n    """\n'
BODY = "    result = 0\n    for number in numbers:\n        result += twice(number)\n    return result\n"
PROMPT = PREAMBLE + SIGNATURE
TEST = (
    "\n\nMETADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 2]) == 6\n    assert candidate([]) == 0\n"
)


def fence(code: str, language: str = "python") -> str:
    return f"```{language}\n{code}```"


CORRECT = {
    "whole": PROMPT + BODY,
    "whole in a fence": fence(PROMPT + BODY),
    "in a fence of no language": fence(PROMPT + BODY, ""),
    "in a fence by another name": fence(PROMPT + BODY, "Python3 "),
    "function only": SIGNATURE + BODY,
    "function only, in a fence": fence(SIGNATURE + BODY),
    "body only": BODY,
    "body only, after an empty line": "\n" + BODY,
    "body only, first line not indented": BODY.lstrip(),
    "body only, not indented": textwrap.dedent(BODY),
    "body only, in a fence": fence(BODY),
    "body only, not indented, in a fence": fence(textwrap.dedent(BODY)),
    "body, then the end of a fence": BODY + "```\n\nThis adds them up.",
    "body, then prose": BODY + "\nThis adds up the numbers.\nNote: it doubles them.",
    "body, then prose that is code as well": BODY + "\nDone\nok: none",
    "body, then a function": BODY.replace("twice", "two") + "\ndef two(x):\n    return x + x\n",
    "body, then the beginning of a function": BODY + "\ndef other(x):\n    return x +",
    "prose around": "Sure! Here it is:\n\n" + fence(PROMPT + BODY) + "\n\nIt adds up the numbers.",
    "prose around, no fence": "Here is the function:\n\n" + PROMPT + BODY + "\nIt adds up the numbers, doubled.",
    "prose around, function only": "Here is the function:\n\n" + SIGNATURE + BODY + "\nI hope that this helps!",
    "a fence that is not closed": "So:\n" + fence(PROMPT + BODY)[:-3],
    "a fence in a list": "1. So:\n" + textwrap.indent(fence(SIGNATURE + BODY), "   "),
    "two fences, the second is an example": fence(SIGNATURE + BODY) + "\nUse it so:\n" + fence("print(total([1]))\n"),
    "two fences, the first installs": fence("pip install x\n", "bash") + "\nThen:\n" + fence(SIGNATURE + BODY),
    "a constant before": fence("LIMIT = 0\n\n" + SIGNATURE + BODY.replace("= 0", "= LIMIT")),
    "cut off after it": fence(SIGNATURE + BODY + "\nprint(total([1, 2")[:-3],
    "with an example": fence(SIGNATURE + BODY + "\nif __name__ == '__main__':\n    print(total([1]))\n"),
    "Windows' line ends": fence(SIGNATURE + BODY).replace("\n", "\r\n"),
    "a comment first": fence("# the sum\n" + SIGNATURE + BODY),
    "a nested function": fence(SIGNATURE + "    def total_of(x):\n        return twice(x)\n" + BODY),
}  # fmt: skip

INCORRECT = {
    "nothing": "",
    "prose": "I do not know how to write this function.",
    "wrong": SIGNATURE + BODY.replace("+=", "-="),
    "no body": SIGNATURE,
    "cut off": fence(SIGNATURE + BODY)[: -len("    return result\n```")],
    "not Python": fence("function total(numbers) { return 6 }", "js"),
    "another name": fence((SIGNATURE + BODY).replace("total", "sum_of")),
    "exit": fence("import sys\n" + SIGNATURE + BODY.replace("+=", "-=") + "sys.exit(0)"),
    "exit at once": fence("import os\n" + SIGNATURE + "    os._exit(0)\n"),
    "exit in the function": SIGNATURE + "    raise SystemExit(0)\n",
    "no end": SIGNATURE + "    while True:\n        pass\n",
    "much output": SIGNATURE + "    while True:\n        print('x' * 999)\n",
    "an own check": fence(SIGNATURE + "    return 7\n\ndef check(candidate):\n    pass\n"),
    "quiet": fence(SIGNATURE + "    return 7\n\ntry:\n    total([])\nfinally:\n    pass\n"),
}


@pytest.fixture
def task(write_to_mirror: Callable[..., Path]) -> HumanEval:
    row = {"task_id": "x/0", "prompt": PROMPT, "canonical_solution": BODY, "test": TEST, "entry_point": "total"}
    write_to_mirror("openai/openai_humaneval/openai_humaneval/test-00000-of-00001.parquet", [row])
    return HumanEval(timeout=20.0)


def test_the_conversation_of_a_row(task: HumanEval) -> None:
    question, answer = task[0]["messages"]
    assert question["content"] == f"Complete this Python function:\n\n```python\n{PROMPT.strip()}\n```"
    assert answer["content"] == f"```python\n{(PROMPT + BODY).strip()}\n```"
    assert (task.eval_type, task.chance, len(task)) == ("generative", 0.0, 1)
    assert isinstance(get_task("HumanEval"), HumanEval)


@pytest.mark.parametrize("name", CORRECT)
def test_the_program_is_extracted(name: str) -> None:
    program = extract_program(PROMPT, "total", CORRECT[name])
    names: dict[str, Any] = {}
    exec(program, names)
    assert names["total"]([1, 2]) == 6


@pytest.mark.slow
def test_correct_answers_pass_and_wrong_ones_fail(task: HumanEval) -> None:
    """In the sandbox, every form of the correct answer passes and every wrong answer fails."""
    answers = {**CORRECT, **INCORRECT}

    def is_correct(name: str) -> bool:
        evaluator = HumanEval(timeout=1.0) if name == "no end" else task
        return evaluator.evaluate(task[0], answers[name])

    with ThreadPoolExecutor(2) as pool:
        outcomes = dict(zip(answers, pool.map(is_correct, answers), strict=True))
    assert outcomes == {name: name in CORRECT for name in answers}
    assert task.reward(task[0], CORRECT["whole"]) == 1.0


FRAGMENTS = ["```", "python\n", SIGNATURE, BODY, "def ", "\n", "    ", "total", "(" * 300, "\0", "'''"]


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(st.sampled_from(FRAGMENTS)).map("".join),
    )
)  # fmt: skip
def test_any_text_gives_a_program(answer: str) -> None:
    assert isinstance(extract_program(PROMPT, "total", answer), str)


def longest_valid_prefix(head: str, code: str) -> str:
    """The readable twin of humaneval's function: it parses once for each number of lines."""
    lines = code.rstrip().splitlines()
    while lines and humaneval._parse_error(head + "\n".join(lines)) is not None:
        lines.pop()
    return head + "\n".join(lines)


HEADS = ["", "def f(x):\n", "import a\n\ndef f():\n    '''doc'''\n", "def f():\n    '''doc\n", "x = (\n", "\0\n"]
LINES = r"""
@a
@a(1)
x = (
y = 1
    y = 2
        z = 3
if x:
    if y:
else:
try:
    try:
    pass
        pass
except E:
    except E:
        return 1
finally:
# c
    # c

    '''
'''
s = 'a
This is prose, isn't it
)
x = 1 \
\
def f():
    return (1,
  2)
class A:
f'{x!}'
f'{'
f'''
{a
x[1:
	y
a @ \
@b
'''# '''
# '''
x = = 1
match x:
    case 1:
1 = x
f(a=1, 2)
print(f"{x['a']}")
    '
""".split("\n")  # fmt: skip
LINES += ["\0", "\ud800", "x\x0cy", "-" * 3000 + "1", '    """']
SOURCE = Path(humaneval.__file__).read_text(encoding="utf-8").splitlines()


@st.composite
def broken_source(draw: st.DrawFn) -> str:
    """A part of a program with a few other lines in it, or such lines alone."""
    start = draw(st.integers(0, len(SOURCE)))
    lines = SOURCE[start : start + draw(st.integers(0, 30))]
    for line in draw(st.lists(st.sampled_from(LINES), max_size=12)):
        lines.insert(draw(st.integers(0, len(lines))), line)
    return "\n".join(lines)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(HEADS), broken_source())
def test_the_longest_valid_prefix(head: str, code: str) -> None:
    assert humaneval._longest_valid_prefix(head, code) == longest_valid_prefix(head, code)


# Repeated, these lines make a text of which nothing, or only its beginning, can be parsed.
REPEATED = [
    *("@a", "@a(1)", "@a\n# c", "x y", "isn't", "(", ")", "x = (", "\\", "x = 1 \\", "'", "'''", "{1:", "[", "f'{"),
    *("if x:", "x:", "try:", " try:", "try:\n  a", "try:\n  a\n  b", "try: a", "for x in", "lambda:", "a = 1\n b"),
    *("try:\n try:\n  a\n except E:\n  a", "try:\n '''\n'''", "-", "a\n" * 9 + "(", "\0", "\ud800", "else:"),
    *("if x:\n  a\nelse:", "a = 1\n@b", "a.b[", "a\f", "1 = x", "def f(a=1, b): 1", "return (", "x = '\\", "async"),
    *("@a\n\\", "@a '", "a @", "#", "match x:", "f'{'"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("start", ["", "a = 1\n", "try:\n", "if a:\n  try:\n    b\n", "x = (\n", "'''\n"])
def test_the_work_is_in_proportion_to_the_text(start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser reads a text 30 times at most; once for each of its lines would be 50 million characters."""
    parse_error = humaneval._parse_error
    num_parsed = 0

    def count(program: str) -> Exception | None:
        nonlocal num_parsed
        num_parsed += len(program)
        return parse_error(program)

    monkeypatch.setattr(humaneval, "_parse_error", count)
    for line in REPEATED:
        bad = start + f"{line}\n" * 3000
        for completion in (bad, SIGNATURE + textwrap.indent(bad, "    ")):
            num_parsed = 0
            extract_program(PROMPT, "total", completion)
            assert num_parsed < 2_000_000, (line, num_parsed)


def test_a_long_answer_is_truncated() -> None:
    assert len(extract_program(PROMPT, "total", "(" * 10**7)) < 30_000


# Appended to a correct program, it changes the results of the function slightly.
NEAR_MISS = """

def _changed(value):
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, dict):
        return {**value, "x": 1}
    return value + type(value)("x")


def _of(function):
    return lambda *arguments: _changed(function(*arguments))


ENTRY = _of(ENTRY)
"""


@pytest.mark.shared_data
@pytest.mark.usefixtures("hub_data")
def test_canonical_solutions_pass_and_near_misses_fail() -> None:
    task = HumanEval(timeout=30.0)
    assert len(task) == 164

    def evaluate_both(conversation: Conversation) -> tuple[bool, bool]:
        answer = conversation["messages"][-1]["content"]
        near_miss = answer.removesuffix("```") + NEAR_MISS.replace("ENTRY", conversation["entry_point"]) + "```"
        return task.evaluate(conversation, answer), task.evaluate(conversation, near_miss)

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(evaluate_both, task))
    assert [index for index, (is_canonical_correct, _) in enumerate(outcomes) if not is_canonical_correct] == []
    assert [index for index, (_, is_near_miss_correct) in enumerate(outcomes) if is_near_miss_correct] == []
