"""GSM8K: solutions become text and calls of the calculator, and the calculator gives the annotated results."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from fractions import Fraction
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nanochat.sandbox.calculator import calculate
from tasks.common import TaskSequence, extract_final_number, reference_text, text_part, tool_call_parts
from tasks.gsm8k import GSM8K, solution_parts


def test_annotations_become_calls() -> None:
    parts = solution_parts("Half of 12 is 12/2=$<<12/2=6>>6.\nAnd <<6-7=-1>>-1 < 2.\n#### -1")
    assert parts == [
        text_part("Half of 12 is 12/2=$"),
        *tool_call_parts("12/2", "6"),
        text_part("6.\nAnd "),
        *tool_call_parts("6-7", "-1"),
        text_part("-1 < 2.\n#### -1"),
    ]
    assert solution_parts("no <<call>>, no <<a=b=>>") == [text_part("no <<call>>, no <<a=b=>>")]


@pytest.mark.parametrize(("split", "count"), [("train", 7473), ("test", 1319)])
def test_every_solution_is_parsed(split: str, count: int, hub_data: Path) -> None:
    task = GSM8K(split)
    assert len(task) == count
    table = pq.read_table(next((hub_data / "openai/gsm8k/main").glob(f"{split}-*")))
    num_calls = 0
    for conversation, solution in zip(task, table["answer"].to_pylist(), strict=True):
        parts = conversation["messages"][-1]["content"]
        text = reference_text(conversation)
        assert text == re.sub(r"<<.*?>>", "", solution)
        assert len([part for part in parts if part["type"] == "python"]) == solution.count("<<")
        assert task.evaluate(conversation, text)
        assert not task.evaluate(conversation, text + "1")
        assert int(solution.rpartition("#### ")[2].replace(",", "")) == extract_final_number(text)
        num_calls += solution.count("<<")
    assert num_calls == {"train": 23716, "test": 4282}[split]


@pytest.mark.shared_data
@pytest.mark.usefixtures("hub_data")
def test_the_calculator_gives_the_annotated_results() -> None:
    """27,998 annotations: the calculator gives 27,175 results as text, 822 as the same number with other zeros; one,
    `<<3/4=3/4>>`, repeats its expression."""
    outcomes: Counter[str] = Counter()
    for conversation in TaskSequence([GSM8K("train"), GSM8K("test")]):
        parts = conversation["messages"][-1]["content"]
        for call, output in itertools.pairwise(parts):
            if call["type"] != "python":
                continue
            result = calculate(call["text"])
            assert result is not None
            if result == output["text"]:
                outcomes["same text"] += 1
            elif re.fullmatch(r"\d*\.?\d*", output["text"]) and Fraction(result) == Fraction(output["text"]):
                outcomes["same number"] += 1
            else:
                outcomes[f"{call['text']}={output['text']}"] += 1
    assert outcomes == {"same text": 27_175, "same number": 822, "3/4=3/4": 1}
