"""Tables of accuracies by stage and of the stages' gains."""

from __future__ import annotations

from typing import Any

import pytest
from markdown_it import MarkdownIt

from nanochat.reporting.accuracy_tables import accuracies_by_task, accuracy_lines, accuracy_tables, gains_by_stage
from nanochat.reporting.schema import proportion


def section(stage: str, problems: str = "p", chance: float = 0.0, **correct: str) -> dict[str, Any]:
    """A section as chat_eval writes it. `correct`: task -> which examples are solved, as "0110..."."""
    return {
        "model": stage,
        "metrics": {
            task: {**proportion(marks.count("1"), len(marks)), "chance": chance} for task, marks in correct.items()
        },
        "answers": {task: {"problems": problems, "correct": marks} for task, marks in correct.items()},
    }


def test_accuracies_are_in_the_order_of_the_stages() -> None:
    odd = {"value": 3.0, "interval": [0.0, 1.0], "chance": 0.0}
    plain = {
        "metrics": {"loss": 1.0, "sound": proportion(1, 2), "odd": odd, "no interval": {"value": 1.0, "chance": 0.0}}
    }
    by_task = accuracies_by_task(
        {"x": section("rl", A="11"), "y": section("base", A="10"), "base_train": plain, "dataset": plain}
    )
    assert list(by_task) == ["A"]
    assert list(by_task["A"]) == ["base", "rl"]
    assert (by_task["A"]["base"]["value"], by_task["A"]["rl"]["answers"]) == (0.5, {"problems": "p", "correct": "11"})


def test_gains_are_paired_if_the_examples_are_the_same() -> None:
    sections = {
        "a": section("base", A="0000000000"),
        "b": section("mid", A="1111110000"),
        "c": section("sft", "others", A="1111111111"),
    }
    gains = gains_by_stage(accuracies_by_task(sections)["A"])
    assert list(gains) == ["mid", "sft"]
    assert (gains["mid"]["value"], gains["mid"]["p"], gains["mid"]["over"]) == (0.6, 1 / 32, "base")
    assert gains["sft"]["value"] == pytest.approx(0.4)
    assert "p" not in gains["sft"]
    del sections["b"]["answers"]
    assert "p" not in gains_by_stage(accuracies_by_task(sections)["A"])["mid"]


def test_the_tables() -> None:
    long = {"mid": "0" * 50 + "1" * 50, "sft": "1" * 100, "rl": "0" * 6 + "1" * 94}
    sections = {
        "a": section("base", A="0" * 100, B="1" * 10),
        **{stage: section(stage, chance=0.25, A=marks) for stage, marks in long.items()},
        "e": section("sft", A=long["sft"], B="1" * 10),
    }
    blocks = "\n\n".join(accuracy_tables(sections, "p.png"))
    rows = [[cell.content for cell in tokens] for tokens in _rows(blocks)]
    assert rows[0] == ["task", "chance", "base", "mid", "sft", "rl", "problems"]
    assert rows[1][:4] == ["A", "25.0", "0.0 [0.0, 3.7]", "50.0 [40.4, 59.6]"]
    assert rows[1][-1] == "100"
    assert rows[2] == ["B", "0.0", "100.0 [72.2, 100.0]", "", "100.0 [72.2, 100.0]", "", "10"]
    assert rows[3] == ["task", "mid over base", "sft over mid", "rl over sft"]
    assert rows[4][1].startswith("+50.0 [")
    assert rows[4][1].endswith("], p < 0.001")
    assert rows[4][3].startswith("-6.0 [")
    assert rows[4][3].endswith("], p = 0.031")
    assert rows[5][2].endswith("], p = 1.00, over base")
    assert "![accuracy by stage](p.png)" in blocks
    lines = list(accuracy_lines(sections))
    assert lines[1].split() == "A 25.0 0.0 ±1.8 50.0 ±9.6 * 100.0 ±1.8 * 94.0 ±4.8 !".split()
    assert lines[2].split() == "B 0.0 100.0 ±13.9 100.0 ±13.9".split()
    assert len({line.index("±") for line in lines[1:2]}) == 1


def _rows(markdown: str) -> Any:
    """Yield the rows of all tables as lists of tokens."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    for token in tokens:
        if token.type == "tr_open":
            row: list[Any] = []
        elif token.type == "inline" and token.level > 3:
            token.content = "".join(child.content for child in token.children or [])
            row.append(token)
        elif token.type == "tr_close":
            yield row


def test_without_accuracies() -> None:
    sections = {"base_train": {"metrics": {"loss": 1.0}}}
    assert not list(accuracy_tables(sections, "p.png"))
    assert not list(accuracy_lines(sections))
    only = {"a": section("sft", A="10")}
    assert "Gain of each stage" not in "".join(accuracy_tables(only, "p.png")), "one stage has no gain"
    assert len(list(accuracy_lines(only))) == 2


def test_a_task_without_examples() -> None:
    sections = {"a": section("mid", A=""), "b": section("sft", A="")}
    assert "0.0 \\[0.0, 100.0\\]" in "\n".join(accuracy_tables(sections, "p.png"))
