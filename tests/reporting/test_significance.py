"""Is one model better than another? Against enumeration, simulation and published examples; and the tables of it."""

from __future__ import annotations

import itertools
import math
import random
from typing import Any

import pytest
from markdown_it import MarkdownIt

from nanochat.reporting.accuracy_tables import accuracies_by_task, accuracy_lines, accuracy_tables, gains_by_stage
from nanochat.reporting.schema import proportion
from nanochat.reporting.significance import mcnemar, mean_metric, paired_gain, unpaired_gain


def pairs(lost: int, won: int, both: int = 0, neither: int = 0) -> tuple[list[bool], list[bool]]:
    """Problems that only the first, only the second, both, neither model solved."""
    first = [True] * lost + [False] * won + [True] * both + [False] * neither
    return first, [False] * lost + [True] * won + [True] * both + [False] * neither


@pytest.mark.parametrize(("lost", "won"), list(itertools.product(range(5), repeat=2)))
def test_mcnemar_is_the_share_of_coin_tosses_as_far_from_even(lost: int, won: int) -> None:
    """Every sequence of heads and tails is counted, one by one."""
    tosses = list(itertools.product((0, 1), repeat=lost + won))
    far = sum(abs(sum(toss) - (lost + won) / 2) >= abs(won - lost) / 2 for toss in tosses)
    assert mcnemar(*pairs(lost, won, both=3, neither=2)) == far / len(tosses)


def test_mcnemar_of_many_problems() -> None:
    """Sixty to forty: twice the sum of the binomial distribution's tail, by hand 0.0569; and no overflow."""
    assert mcnemar(*pairs(40, 60)) == pytest.approx(0.05689, abs=5e-6)
    assert mcnemar(*pairs(60, 40, both=10_000)) == mcnemar(*pairs(40, 60))
    assert 0 < mcnemar(*pairs(3000, 3300)) < 0.001
    assert mcnemar(*pairs(0, 5000)) == pytest.approx(0, abs=1e-300)


@pytest.mark.parametrize(("won", "lost", "n"), [(0.1, 0.05, 1000), (0.01, 0.0, 300), (0.3, 0.3, 60)])
def test_the_paired_interval_covers_the_truth(won: float, lost: float, n: int) -> None:
    """Of many experiments with a known difference, at least about 95 in 100 have it in their interval."""
    rng, covered, repeats = random.Random(7), 0, 600
    for _ in range(repeats):
        draws = [rng.random() for _ in range(n)]
        wins, losses = sum(d < won for d in draws), sum(won <= d < won + lost for d in draws)
        low, high = paired_gain(*pairs(losses, wins, neither=n - wins - losses))["interval"]
        covered += low <= won - lost <= high
    assert covered / repeats > 0.93
    assert (covered / repeats < 0.975) or won < 0.05


def test_the_paired_gain_by_hand() -> None:
    gain = paired_gain(*pairs(4, 14, both=20, neither=10))
    assert (gain["value"], gain["n"]) == (10 / 48, 48)
    middle, margin = 10 / 50, 1.959964 * math.sqrt((15 / 50 + 5 / 50 - 0.2**2) / 50)
    assert gain["interval"] == pytest.approx([middle - margin, middle + margin])
    assert paired_gain([], [])["value"] == 0


def test_the_unpaired_gain_is_newcombes_example() -> None:
    """56 of 70 and 48 of 80: from +0.0524 to +0.3339 (Newcombe 1998, table II, method 10)."""
    gain = unpaired_gain(proportion(48, 80), proportion(56, 70))
    assert gain["value"] == pytest.approx(0.2)
    assert gain["interval"] == pytest.approx([0.0524, 0.3339], abs=5e-5)


def test_the_mean_of_one_and_of_equal_metrics() -> None:
    metric = {"value": 0.5, "interval": [0.3, 0.6]}
    assert mean_metric([metric]) == {"value": 0.5, "interval": pytest.approx([0.3, 0.6])}
    assert mean_metric([metric] * 4) == {"value": 0.5, "interval": pytest.approx([0.4, 0.55])}, "half as wide for four"


def section(model: str, problems: str = "p", chance: float = 0.0, **correct: str) -> dict[str, Any]:
    """What chat_eval reports of a model."""
    return {
        "model": model,
        "metrics": {
            task: {**proportion(marks.count("1"), len(marks)), "chance": chance} for task, marks in correct.items()
        },
        "answers": {task: {"problems": problems, "correct": marks} for task, marks in correct.items()},
    }


def test_accuracies_stand_in_the_order_of_the_stages() -> None:
    odd = {"value": 3.0, "interval": [0.0, 1.0], "chance": 0.0}
    plain = {
        "metrics": {"loss": 1.0, "sound": proportion(1, 2), "odd": odd, "no interval": {"value": 1.0, "chance": 0.0}}
    }
    found = accuracies_by_task(
        {"x": section("rl", A="11"), "y": section("base", A="10"), "base_train": plain, "dataset": plain}
    )
    assert list(found) == ["A"]
    assert list(found["A"]) == ["base", "rl"]
    assert (found["A"]["base"]["value"], found["A"]["rl"]["answers"]) == (0.5, {"problems": "p", "correct": "11"})


def test_gains_are_paired_where_the_problems_are_the_same() -> None:
    sections = {
        "a": section("base", A="0000000000"),
        "b": section("mid", A="1111110000"),
        "c": section("sft", "others", A="1111111111"),
    }
    found = gains_by_stage(accuracies_by_task(sections)["A"])
    assert list(found) == ["mid", "sft"]
    assert (found["mid"]["value"], found["mid"]["p"], found["mid"]["over"]) == (0.6, 1 / 32, "base")
    assert found["sft"]["value"] == pytest.approx(0.4)
    assert "p" not in found["sft"]
    del sections["b"]["answers"]
    assert "p" not in gains_by_stage(accuracies_by_task(sections)["A"])["mid"]


def test_the_tables() -> None:
    long = {"mid": "0" * 50 + "1" * 50, "sft": "1" * 100, "rl": "0" * 6 + "1" * 94}
    sections = {
        "a": section("base", A="0" * 100, B="1" * 10),
        **{model: section(model, chance=0.25, A=marks) for model, marks in long.items()},
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
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    for token in tokens:
        if token.type == "tr_open":
            row: list[Any] = []
        elif token.type == "inline" and token.level > 3:
            token.content = "".join(child.content for child in token.children or [])
            row.append(token)
        elif token.type == "tr_close":
            yield row


def test_nothing_was_scored() -> None:
    sections = {"base_train": {"metrics": {"loss": 1.0}}}
    assert not list(accuracy_tables(sections, "p.png"))
    assert not list(accuracy_lines(sections))
    only = {"a": section("sft", A="10")}
    assert "brought" not in "".join(accuracy_tables(only, "p.png")), "one stage has nothing to be compared with"
    assert len(list(accuracy_lines(only))) == 2


def test_a_task_without_problems_has_a_place() -> None:
    sections = {"a": section("mid", A=""), "b": section("sft", A="")}
    assert "0.0 \\[0.0, 100.0\\]" in "\n".join(accuracy_tables(sections, "p.png"))
