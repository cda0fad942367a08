"""The sentences and figures of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nanochat.configurator import Settings, setting
from nanochat.data.shards import write_dataset
from nanochat.pipeline.plan import Choices
from nanochat.pipeline.steps import StepRunner
from nanochat.pipeline.summary import BPB, QUOTED, advise_on_answers, report_run, summarize
from nanochat.report import log_section, read_sections


@dataclass(frozen=True)
class Config(Settings):
    minutes: float = setting(1.0, "minutes")


def log_bpb(stage: str, value: float) -> None:
    log_section(f"memorisation_{stage}", {"metrics": {BPB: value}, "notes": [f"about {stage}"]})


@pytest.mark.parametrize(("after", "words"), [(2.04, "nothing that matters"), (2.3, "part of its text")])
def test_what_fine_tuning_forgets(base_dir: Path, after: float, words: str) -> None:
    log_bpb("base", 2.0)
    log_bpb("sft", after)
    metrics, notes = summarize(read_sections(base_dir / "report")[0], None)
    assert metrics == {f"{BPB} before fine-tuning": 2.0, f"{BPB} after fine-tuning": after}
    assert words in notes[0]
    assert "about base" in notes


def test_without_measurements() -> None:
    assert summarize({}, None) == ({}, [])


def test_a_run_from_a_base_model_is_compared(
    base_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value, text in (("on-x", 2.0, "a"), ("on-x-from-d4", 1.5, "a"), ("on-y-from-d4", 1.5, "b")):
        folder = base_dir / name
        monkeypatch.setenv("NANOCHAT_BASE_DIR", str(folder))
        write_dataset([text], ["held out"], folder / "base_data", source="test")
        log_bpb("base", 3.0 if "from" in name else value)
        if "from" in name:
            log_bpb("mid", value)
            log_bpb("sft", value)
            report_run(Choices(folder, "x", base="d4"), StepRunner(folder), Config(), 60)
            output = capsys.readouterr().out
            assert "1.500 bits per byte; it took 3.000 with d4" in output
            if name == "on-x-from-d4":
                assert "25.0% better than the model without --base, which takes 2.000" in output
            else:
                assert "train it, too" in output
    section = read_sections(base_dir / "on-x-from-d4" / "report")[0]["train_on"]
    assert section["metrics"][f"{BPB} of the run without --base"] == 2.0


def answers(share: float, count: int, words: str = "documents") -> dict[str, Any]:
    """A section of document_eval."""
    return {"metrics": {f"{words}: answered right": {"value": share, "n": count}, "documents: refused": {"value": 1.0}}}


@pytest.mark.parametrize(
    ("sections", "is_advised"),
    [
        ({}, False),
        ({"document_eval_sft": answers(0.1, 9)}, True),
        ({"document_eval_sft": answers(0.6, 9)}, False),
        ({"document_eval_sft": answers(0.1, 0)}, False),
        # With passages is what counts, where it was asked so.
        (
            {"document_eval_sft": answers(0.1, 9), "document_eval_sft_grounded": answers(0.9, 9, "d, with passages")},
            False,
        ),
        (
            {"document_eval_sft": answers(0.9, 9), "document_eval_sft_grounded": answers(0.2, 9, "d, with passages")},
            True,
        ),
    ],
)
def test_few_right_answers_are_said_in_words(sections: dict[str, Any], is_advised: bool) -> None:
    advice = advise_on_answers(sections)
    assert len(advice) == is_advised
    assert all("seldom answers right" in sentence and "--base" in sentence for sentence in advice)


def test_quotations_are_told_from_what_the_model_writes() -> None:
    sections = {
        "document_eval_sft": answers(0.1, 9),
        "document_eval_sft_grounded": answers(0.9, 9, "documents, quoted"),
    }
    assert advise_on_answers(sections) == [QUOTED]
    sections["document_eval_sft_grounded"] = answers(0.2, 9, "documents, quoted")
    assert "seldom answers right" in advise_on_answers(sections)[0]
