"""scripts/document_eval.py: from the test questions to the report's section."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from nanochat.checkpoint_manager import model_meta, run_dir, save_checkpoint
from nanochat.common import UserError
from nanochat.documents.document import write_documents
from nanochat.passages.build import build_index
from nanochat.report import render
from nanochat.runtime import Runtime
from scripts import document_eval, document_talks
from scripts.document_eval import Config, main
from tests.support.models import constant_model
from tests.support.tale_documents import documents
from tests.support.talks import TOKENIZER

RUNTIME = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 0)


@pytest.fixture
def with_model(base_dir: Path) -> Path:
    """The conversations of a few documents, and a model that says one character without end."""
    write_documents(documents())
    document_talks.main(document_talks.Config(examples=0))
    model = constant_model(384, ord("x"))
    TOKENIZER.save(run_dir("sft", "").parent / "tokenizer")
    save_checkpoint(run_dir("sft", "d1"), 5, model.state_dict(), {}, model_meta(model, RUNTIME, TOKENIZER))
    return base_dir


@pytest.mark.slow
def test_a_model_that_knows_nothing(with_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = main(Config(max_problems=6, max_new_tokens=4, device="cpu"))
    assert metrics["documents: answered right"]["value"] == 0
    assert not any("right passage" in name for name in metrics), "there is no index"
    build_index()
    grounded = main(Config(max_problems=6, max_new_tokens=4, device="cpu", grounded=True, quote=False))
    name = "documents, with passages: right passage among the first 3"
    assert grounded[name]["value"] > 0.5
    quoted = main(Config(max_new_tokens=4, device="cpu", grounded=True))
    assert quoted["documents, quoted: answered right"]["value"] > 0.5
    assert quoted["documents, quoted: refused, without an answer in the documents"]["value"] > 0.5
    assert "right: " in capsys.readouterr().out
    for suffix in ("", "_generated"):
        rows = json.loads((with_model / "document_eval" / f"sft_d1{suffix}.json").read_text(encoding="utf-8"))
        assert [row["reply"] for row in rows] == ["x" * 4] * 6
        section = json.loads((with_model / "report" / f"document_eval_sft{suffix}.json").read_text(encoding="utf-8"))
        assert section["checkpoint"] == "d1:5"
    report = render().read_text(encoding="utf-8")
    assert "Questions about the documents, with passages" in report


@pytest.mark.slow
def test_right_replies_are_counted(with_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for a perfect model: the expected sentences, or a refusal."""
    rows = [
        json.loads(line)
        for line in (with_model / "documents" / "conversations" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    answers = {row["question"]: row["messages"][-1]["content"] for row in rows}

    def perfect(_engine: object, questions: list[dict[str, str]], prompts: list[object], *_: object) -> list[object]:
        return [
            document_eval.Reply(question, prompt, answers[question["question"]])  # type: ignore[arg-type]
            for question, prompt in zip(questions, prompts, strict=True)
        ]

    monkeypatch.setattr(document_eval, "answer_questions", perfect)
    metrics = main(Config(device="cpu", max_problems=60))
    assert metrics["documents: answered right"]["value"] == 1
    assert metrics["documents: refused, without an answer in the documents"]["value"] == 1
    assert metrics["documents: refused, with an answer in the documents"]["value"] == 0


@pytest.mark.usefixtures("base_dir")
def test_what_is_missing_is_named(with_model: Path) -> None:
    (with_model / "documents/conversations/test.jsonl").unlink()
    with pytest.raises(UserError, match=r"no questions in .*document_talks"):
        main(Config())


def test_a_missing_model_is_named() -> None:
    with pytest.raises(UserError, match="no chat model"):
        main(Config())
