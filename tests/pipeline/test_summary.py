"""The sentences and figures of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nanochat.configurator import Settings, setting
from nanochat.data.shards import write_dataset
from nanochat.eval.memorisation import GROUNDED_HELPS
from nanochat.pipeline.plan import Choices
from nanochat.pipeline.steps import StepRunner
from nanochat.pipeline.summary import BPB, QUOTED, advise_on_answers, describe_time, report_run, summarize
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


def test_a_grounded_run_is_not_advised_to_be_grounded(base_dir: Path) -> None:
    log_section("memorisation_base", {"metrics": {BPB: 2.0}, "notes": ["Expect sentences.", GROUNDED_HELPS]})
    sections = read_sections(base_dir / "report")[0]
    assert summarize(sections, None)[1] == ["Expect sentences.", GROUNDED_HELPS]
    assert summarize(sections, None, is_grounded=True)[1] == ["Expect sentences."]


def test_answers_in_words() -> None:
    """The way in which the model will be asked comes first; shares of no question at all are left out."""
    shares = {"answered right": (0.98, 81), "right passage among the first 3": (0.97, 81), "refused, without": (0, 0)}
    sections = {
        f"document_eval_sft{suffix}": {
            "metrics": {f"documents{way}: {name}": {"value": value, "n": n} for name, (value, n) in shares.items()}
        }
        for suffix, way in (("", ""), ("_grounded", ", quoted"))
    }
    notes = summarize(sections, None, is_grounded=True)[1]
    assert notes[0] == (
        "Held-out questions, answered with quotations: 98% of 81 are answered right; 97% of 81 have the right passage "
        "among the first 3."
    )
    assert notes[1].startswith("Held-out questions, answered by the model alone: 98%")


def test_the_time_of_a_call() -> None:
    words = describe_time({"a": 3.2, "b": 60.0, "c": 1.0, "d": 0.4, "e": 2.0}, 66.6, 5.0)
    assert words.startswith("This call took 1.1 minutes of 5, with ")
    assert words.endswith(" of processor time (b 60 s, a 3 s, e 2 s, c 1 s).")


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
            report_run(Choices(folder, "x", base="d4"), StepRunner(folder), Config(), 60, 5)
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
