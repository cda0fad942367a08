"""The report from sections to Markdown, read back by an independent parser; the summary; the command line."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from nanochat import report
from nanochat.common import UserError
from nanochat.report import log_section, render
from nanochat.reporting.schema import proportion

ROOT = Path(__file__).resolve().parent.parent
CURVE = {"x": [0, 1, 2], "y": [3.0, math.nan, 1.0], "xlabel": "step", "ylabel": "loss (nats per token)"}


@pytest.fixture(autouse=True, scope="module")
def _font_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """matplotlib writes a list of fonts to the home folder, unless MPLCONFIGDIR is set before its import."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
        patch.delenv("NANOCHAT_USD_PER_HOUR", raising=False)
        yield


def headings(markdown: str) -> list[str]:
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    return [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"]


def tables(markdown: str) -> list[list[list[str]]]:
    """Return every table as rows of cells, unescaped."""
    tables: list[list[list[str]]] = []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type == "inline" and token.level > 3:
            tables[-1][-1].append("".join(child.content for child in token.children or []))
    return tables


def rendered() -> str:
    return render().read_text(encoding="utf-8")


@dataclass(frozen=True)
class Settings:
    depth: int = 4
    lr: float = 0.0
    target_flops: float | None = None
    folder: Path = Path("a|b")


@pytest.mark.usefixtures("base_dir")
def test_sections_are_in_the_order_of_a_run() -> None:
    for name in ("zoo", "chat_eval_sft", "base_train", "another", "chat_sft", "dataset", "mid_train", "tok_train"):
        log_section(name, {})
    log_section("base_loss", {"title": "Bits per byte"})
    assert headings(rendered()) == [
        *("nanochat report", "Summary", "Time and cost", "Environment"),
        *("dataset", "tok_train", "base_train", "Bits per byte"),
        *("mid_train", "chat_sft", "chat_eval_sft", "another", "zoo"),
    ]


@pytest.mark.usefixtures("base_dir")
def test_the_summary_has_a_column_for_each_stage_and_a_row_for_each_metric() -> None:
    log_section("tok_train", {"metrics": {"bytes per token": 4.1}})
    log_section(
        "base_train", {"metrics": {"validation bpb": 0.9, "parameters": 5_242_880}, "headline": ["validation bpb"]}
    )
    log_section("base_loss", {"metrics": {"validation bpb": 0.8123, "CORE": None}})
    log_section("chat_eval_rl", {"metrics": {"GSM8K": {"value": 0.25, "n": 1319, "interval": [0.227, 0.274]}}})
    log_section("my_eval", {"model": "sft", "metrics": {"validation bpb": float("nan")}})
    assert tables(rendered())[0] == [
        ["metric", "base", "sft", "rl"],
        ["validation bpb", "0.8123", "not finite", ""],
        ["GSM8K", "", "", "0.2500 [0.2270, 0.2740], n = 1,319"],
    ]


@pytest.mark.usefixtures("base_dir")
def test_time_and_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    log_section("base_train", {"seconds": 3600 * 3.5})
    log_section("chat_sft", {"seconds": 1800.0})
    log_section("base_eval", {})
    text = rendered()
    assert [row[::2] for row in tables(text)[0]] == [
        ["script", "time"],
        ["base_train", "3h 30m"],
        ["chat_sft", "30m 00s"],
        ["total", "4h 00m"],
    ]
    assert "Cost: not stated." in text
    monkeypatch.setenv("NANOCHAT_USD_PER_HOUR", "24")
    assert r"Cost: \$96.00 at \$24 an hour." in rendered()
    for price in ("a lot", "nan", "-1"):
        monkeypatch.setenv("NANOCHAT_USD_PER_HOUR", price)
        with pytest.raises(UserError, match="NANOCHAT_USD_PER_HOUR"):
            render()


@pytest.mark.usefixtures("base_dir")
def test_the_environment_shows_different_values_with_their_sections() -> None:
    log_section("base_train", {"environment": {"device": "cuda", "processes": 8}})
    log_section("chat_sft", {"environment": {"device": "cpu", "processes": 8}})
    rows = dict(tables(rendered())[0])
    assert rows["device"] == "cuda (base_train); cpu (chat_sft)"
    assert rows["processes"] == "8"
    assert rows["cores"].isdecimal()


def test_a_section_shows_notes_curves_samples_and_settings(base_dir: Path) -> None:
    verdicts = [
        {"sentence": "Mira has a cat.", "sound": True, "reason": ""},
        {"sentence": "The cat is a *dog*.", "sound": False, "reason": "Tom is a cat"},
    ]
    sample = {"prompt": "Mira", "text": " has a cat. ```The cat is a *dog*.", "share_sound": 0.5, "verdicts": verdicts}
    log_section(
        "base_train",
        {"settings": Settings(), "notes": ["no | compiler"], "curves": {"training loss": CURVE}, "samples": [sample]},
    )
    text = rendered()
    assert "- no \\| compiler\n" in text
    assert "![training loss](base_train.png)" in text
    assert (base_dir / "report" / "base_train.png").read_bytes().startswith(b"\x89PNG")
    assert "````text\nMira has a cat. ```The cat is a *dog*.\n````" in text
    assert "Checker: 50% of the sentences are sound." in text
    assert "- not sound: The cat is a \\*dog\\*. (Tom is a cat)" in text
    assert "Mira has a cat.\n" not in text
    expected = [["setting", "value"], ["depth", "4"], ["lr", "0.0"], ["target_flops", "not set"], ["folder", "a|b"]]
    assert tables(text)[-1] == expected
    assert "None" not in text


def test_unreferenced_pictures_are_removed(base_dir: Path) -> None:
    log_section("base_train", {"curves": {"loss": CURVE}})
    render()
    log_section("base_train", {})
    log_section("chat_sft", {"curves": {"loss": CURVE}})
    render()
    assert sorted(os.listdir(base_dir / "report")) == ["base_train.json", "chat_sft.json", "chat_sft.png", "report.md"]


@pytest.mark.parametrize("content", [b"", b'{"title": "cut', b"\xff\xfe", b"[1]", b"[" * 100_000, b'{"format": 9}'])
def test_an_invalid_file_is_named_and_the_others_are_rendered(
    content: bytes, base_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log_section("base_train", {})
    (base_dir / "report" / "chat_sft.json").write_bytes(content)
    text = rendered()
    out = capsys.readouterr().out
    assert out.startswith("report: chat_sft.json is left out: ")
    assert out.count("\n") == 1
    assert "chat_sft.json is left out" in text
    assert headings(text)[-1] == "base_train"


def test_nothing_to_report(base_dir: Path) -> None:
    with pytest.raises(UserError, match="run a script first"):
        render()
    assert not list(base_dir.iterdir())


TEXTS = st.one_of(
    st.text(st.characters(), max_size=12), st.sampled_from(["```", "a|b\n# c", "<details>", "\ud800", "~~~"])
)
NUMBERS = st.one_of(st.integers(-(2**63), 2**63), st.floats(), st.none())
INTERVALS = st.none() | st.lists(NUMBERS, min_size=2, max_size=2)
METRICS = st.one_of(
    NUMBERS,
    st.fixed_dictionaries(
        {"value": NUMBERS, "n": st.none() | st.integers(0, 99), "interval": INTERVALS, "chance": NUMBERS}
    ),
)
TALKS = st.builds(
    lambda question, answer, call: {
        "messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": [{"type": "text", "text": answer}, {"type": "python", "text": call}]},
        ]
    },
    *(TEXTS, TEXTS, TEXTS),
)


@settings(max_examples=40, deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "title": TEXTS,
            "settings": st.dictionaries(TEXTS, TEXTS | NUMBERS | st.lists(NUMBERS), max_size=3),
            "metrics": st.dictionaries(TEXTS, METRICS, max_size=3),
            "samples": st.lists(st.fixed_dictionaries({"prompt": TEXTS, "text": TEXTS}) | TALKS, max_size=2),
            "notes": st.lists(TEXTS, max_size=2),
        }
    )
)
@pytest.mark.slow
def test_no_section_breaks_the_report(section: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", folder)
        log_section("base_train", section)
        log_section("chat_sft", {"title": "the end"})
        first = render().read_bytes()
        assert render().read_bytes() == first
    text = first.decode("utf-8")
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    talks = ["A conversation with the base model"] * sum("messages" in sample for sample in section["samples"])
    names = [name for name in headings(text) if name not in ("Accuracy by stage", "Gain of each stage")]
    assert names[:4] == ["nanochat report", "Summary", "Time and cost", "Environment"]
    assert names[5:] == ["the end", *talks]
    assert sum(token.type == "fence" for token in tokens) == len(section["samples"])
    assert sum(token.type == "html_block" for token in tokens) == 2 * bool(section["settings"])
    assert {token.type for token in tokens}.isdisjoint({"code_block", "hr", "ordered_list_open", "blockquote_open"})


def test_the_summary_for_the_terminal(base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = "Mira walked to the mill. " * 20
    log_section(
        "base_train",
        {
            "seconds": 65,
            "metrics": {"validation bpb": 1.234},
            "samples": [{"prompt": "", "text": words + "\x1b[31m", "share_sound": 0.875}],
        },
    )
    report.main(report.Config())
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "--- base_train: 88% of the sentences sound"
    assert "validation bpb: 1.234 (base)" in lines
    assert "  1m 05s  base_train" in lines
    assert lines[-1] == f"report: {base_dir / 'report' / 'report.md'}"
    assert max(map(len, lines[:-1])) <= 100
    assert "\x1b" not in "".join(lines)


@pytest.mark.usefixtures("base_dir")
def test_a_caption_of_a_conversation() -> None:
    talk = {
        "messages": [{"role": "user", "content": "6?"}, {"role": "assistant", "content": "7"}],
        "caption": "*a*, wrong",
    }
    log_section("chat_eval_sft", {"model": "sft", "samples": [talk]})
    assert "\n## A conversation with the sft model (\\*a\\*, wrong)\n" in render().read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="caption"):
        log_section("chat_eval_sft", {"model": "sft", "samples": [{**talk, "caption": 3}]})


def log_evaluation(stage: str, correct: str, answer: str) -> None:
    """Write a section as chat_eval does: an accuracy, and a conversation with a calculator call."""
    call = [
        {"type": "python", "text": "6*7"},
        {"type": "python_output", "text": "42"},
        {"type": "text", "text": answer},
    ]
    talk = {"messages": [{"role": "user", "content": "6 x 7?"}, {"role": "assistant", "content": call}]}
    metrics = {"Facts": {**proportion(correct.count("1"), len(correct)), "chance": 0.25}, "ChatCORE": 0.5}
    answers = {"Facts": {"problems": "x", "correct": correct}}
    log_section(f"chat_eval_{stage}", {"model": stage, "metrics": metrics, "answers": answers, "samples": [talk]})


def test_accuracies_gains_and_conversations(base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_evaluation("mid", "0" * 80 + "1" * 20, " is it.")
    log_evaluation("sft", "0" * 10 + "1" * 90, " it is.")
    report.main(report.Config())
    text = (base_dir / "report" / "report.md").read_text(encoding="utf-8")
    all_tables = tables(text)
    assert all_tables[0] == [["metric", "mid", "sft"], ["ChatCORE", "0.5000", "0.5000"]], (
        "accuracies have a table of their own"
    )
    assert all_tables[1] == [
        ["task", "chance", "mid", "sft", "problems"],
        ["Facts", "25.0", "20.0 [13.3, 28.9]", "90.0 [82.6, 94.5]", "100"],
    ]
    assert all_tables[2][1][1].startswith("+70.0 [")
    assert all_tables[2][1][1].endswith("p < 0.001")
    assert "![accuracy by stage](accuracies.png)" in text
    assert (base_dir / "report" / "accuracies.png").read_bytes().startswith(b"\x89PNG")
    assert headings(text)[-2:] == ["A conversation with the mid model", "A conversation with the sft model"]
    assert text.endswith("```text\nuser: 6 x 7?\n\nassistant: [6*7 = 42] it is.\n```\n")
    lines = capsys.readouterr().out.splitlines()
    assert "Facts            25.0   20.0 ±7.8     90.0 ±6.0 *" in lines
    end = lines.index("--- a conversation with the sft model")
    assert lines[end + 1 : -2] == ["user: 6 x 7?", "", "assistant: [6*7 = 42] it is."]
    (base_dir / "report" / "chat_eval_mid.json").unlink()
    (base_dir / "report" / "chat_eval_sft.json").unlink()
    log_section("base_train", {})
    render()
    assert not (base_dir / "report" / "accuracies.png").exists()


def test_the_command_line(base_dir: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-W", "error", "-m", "nanochat.report", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")

    refused = run()
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    log_section("base_train", {})
    assert run("generate").returncode == 0
    assert (base_dir / "report" / "report.md").exists()
    assert run("reset").returncode == 0
    assert not list((base_dir / "report").iterdir())


def test_importing_it_imports_neither_torch_nor_matplotlib() -> None:
    program = "import sys, nanochat.report; sys.exit(bool({'torch', 'matplotlib', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0
