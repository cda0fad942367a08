"""The report's section of a run on documents: what came out, in figures and in words."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nanochat.common import print0
from nanochat.configurator import Settings
from nanochat.eval.memorisation import GROUNDED_HELPS
from nanochat.passages.grounding import NUM_PASSAGES
from nanochat.pipeline.plan import Choices
from nanochat.pipeline.steps import StepRunner
from nanochat.report import log_section, read_sections

BPB = "validation bits per byte"
FEW_RIGHT = 0.5  # share of right answers below which the report says so in words
QUOTED = (
    "With --grounded a reply is a quotation of the documents, found by the words of the question, or says that they do "
    "not answer: trust it as far as the question has words of the documents. What the model writes itself, as with "
    "--quote=false, is as good as the rows without quoting say."
)
EVALUATIONS = {  # section of the report -> the way in which the questions are answered
    "document_eval_sft_grounded": "answered with quotations",
    "document_eval_sft": "answered by the model alone",
}
SHARES = {  # share of an evaluation -> words
    "answered right": "are answered right",
    "refused, with an answer in the documents": "are refused though the documents answer them",
    "refused, without an answer in the documents": "that the documents do not answer are refused",
    f"right passage among the first {NUM_PASSAGES}": f"have the right passage among the first {NUM_PASSAGES}",
}
MAX_FORGOTTEN = 0.03  # share by which fine-tuning may raise the bits per byte of held-out text


def report_run(choices: Choices, runner: StepRunner, settings: Settings, seconds: float, minutes: float) -> None:
    """Write the section `train_on` and print its sentences.

    `seconds`: that this call of the command took. `minutes`: that it may take.
    """
    sections = read_sections(choices.folder / "report")[0]
    metrics, notes = summarize(sections, choices.base, choices.grounded)
    notes += compare_with_other_start(choices, metrics)
    if runner.seconds:
        notes.append(describe_time(runner.seconds, seconds, minutes))
    print0("\n== What came out")
    for note in notes:
        print0(note)
    log_section("train_on", {"title": "Your own documents", "notes": notes, "metrics": metrics, "settings": settings})


def describe_time(steps: Mapping[str, float], seconds: float, minutes: float) -> str:
    """Return a sentence on the time of a call. `steps`: seconds of each step that ran; `minutes`: that it may take."""
    times = os.times()  # of the steps, which are processes of their own
    processor_minutes = (times.children_user + times.children_system) / 60
    longest = sorted(steps.items(), key=lambda step: -step[1])[:4]
    shown = ", ".join(f"{name} {taken:.0f} s" for name, taken in longest)
    processors = f"{processor_minutes:.1f} minutes of processor time" if processor_minutes else "no processor time"
    return f"This call took {seconds / 60:.1f} minutes of {minutes:g}, with {processors} ({shown})."


def summarize(
    sections: Mapping[str, Any], base: str | None, is_grounded: bool = False
) -> tuple[dict[str, float], list[str]]:
    """Return metrics of the run, and sentences about it, from the sections of its steps.

    `base`: tag of the base model that the run started from.
    """

    def value(section: str, metric: str) -> float | None:
        found = sections.get(section, {}).get("metrics", {}).get(metric)
        return found if isinstance(found, (int, float)) else None

    start = "mid" if base else "base"
    before, after = value(f"memorisation_{start}", BPB), value("memorisation_sft", BPB)
    metrics: dict[str, float] = {}
    notes: list[str] = []
    if base and (untrained := value("memorisation_base", BPB)) and before:
        metrics[f"{BPB} of {base}, before it read the documents"] = untrained
        notes.append(
            f"Held-out text takes {before:.3f} bits per byte; it took {untrained:.3f} with {base} as it was, before it "
            "read the documents."
        )
    if before and after:
        change = after / before - 1
        metrics |= {f"{BPB} before fine-tuning": before, f"{BPB} after fine-tuning": after}
        verdict = "has forgotten nothing that matters" if change <= MAX_FORGOTTEN else "has forgotten part of its text"
        notes.append(
            f"Fine-tuning changed the bits per byte of held-out text from {before:.3f} to {after:.3f} ({change:+.1%}): "
            f"the chat model {verdict}."
        )
    for section, answered_by in EVALUATIONS.items():
        if found := describe_answers(sections.get(section, {}).get("metrics", {})):
            notes.append(f"Held-out questions, {answered_by}: {found}.")
    notes += advise_on_answers(sections)
    about_memory = sections.get(f"memorisation_{start}", {}).get("notes", [])
    notes += [note for note in about_memory if not (is_grounded and note == GROUNDED_HELPS)]
    return metrics, notes


def describe_answers(metrics: Mapping[str, Any]) -> str:
    """Return the shares of an evaluation on the documents' questions in words; none without questions.

    >>> describe_answers({"documents: answered right": {"value": 0.5, "n": 8}})
    '50% of 8 are answered right'
    """
    shares = {
        name.partition(": ")[2]: (metric["value"], metric["n"])
        for name, metric in metrics.items()
        if isinstance(metric, dict) and metric.get("n")
    }
    parts = [
        f"{shares[name][0]:.0%} of {shares[name][1]:,} {words}" for name, words in SHARES.items() if name in shares
    ]
    return "; ".join(parts)


def advise_on_answers(sections: Mapping[str, Any]) -> list[str]:
    """Return a sentence on a model that seldom answers its held-out questions right, or none.

    The questions with passages before them count, if they were asked so.
    """
    for section in ("document_eval_sft_grounded", "document_eval_sft"):
        for name, metric in sections.get(section, {}).get("metrics", {}).items():
            if name.endswith(": answered right") and isinstance(metric, dict) and metric["n"]:
                if metric["value"] >= FEW_RIGHT:
                    return [QUOTED] if "quoted" in name else []
                return [
                    "It seldom answers right. So small a model, after so little text, has its language but not its "
                    "facts, and has not learned to copy from a passage: trust the passages beside an answer, not the "
                    "answer. A longer run (--minutes) or a start from a model that has read more (--base) may help."
                ]
    return []


def compare_with_other_start(choices: Choices, metrics: dict[str, float]) -> list[str]:
    """Return a sentence that compares a run from a base model with the run from nothing on the same documents.

    That run is looked for beside this one. Adds its figure to `metrics`.
    """
    suffix = f"-from-{choices.base}"
    if not choices.base or not choices.folder.name.endswith(suffix):
        return []
    other = choices.folder.with_name(choices.folder.name.removesuffix(suffix))
    figure = bits_per_byte_of(other)
    mine = metrics.get(f"{BPB} before fine-tuning")
    if not figure or not mine or not is_same_text(other, choices.folder):
        return [f"{other.name} would hold the run without --base: train it, too, to compare the two."]
    metrics[f"{BPB} of the run without --base"] = figure
    better = "better" if mine < figure else "worse"
    return [f"That is {abs(1 - mine / figure):.1%} {better} than the model without --base, which takes {figure:.3f}."]


def bits_per_byte_of(folder: Path) -> float | None:
    """Return the bits per byte of the base model of another run, if it has measured them."""
    sections = read_sections(folder / "report")[0]
    found = sections.get("memorisation_base", {}).get("metrics", {}).get(BPB)
    return found if isinstance(found, float) else None


def is_same_text(folder: Path, other: Path) -> bool:
    """Return True if two runs have the same text in the same splits."""
    from nanochat.data.manifest import read_manifest

    manifests = [read_manifest(path / "base_data") for path in (folder, other)]
    return None not in manifests and len({manifest.hash() for manifest in manifests if manifest}) == 1
