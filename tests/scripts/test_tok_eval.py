"""tok_eval: bytes per token, with and without other tokenizers."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import tiktoken

from nanochat.common import UserError
from nanochat.tokenizer import get_tokenizer
from scripts import tok_eval, tok_train
from tests.support.tokenizer_documents import VALIDATION, read_section, replace_documents


@pytest.fixture(autouse=True)
def opened_splits(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-in documents, and the list of splits that are opened."""
    assert base_dir.is_dir()
    return replace_documents(monkeypatch)


@pytest.fixture
def _trained(opened_splits: list[str]) -> None:
    """A tokenizer in the base folder."""
    tok_train.main(tok_train.Config(vocab_size=400))
    opened_splits.clear()


@pytest.mark.usefixtures("_trained")
def test_ratios(base_dir: Path, opened_splits: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    ratios = tok_eval.main(tok_eval.Config(peers=False))
    assert opened_splits == ["val"]
    assert set(ratios) == {*tok_eval.TEXTS, "validation documents"}
    text = "\n\n".join(VALIDATION)
    assert ratios["validation documents"]["nanochat"] == len(text) / len(get_tokenizer().encode(text))
    assert all(row["nanochat"] >= 1 for row in ratios.values())
    assert "validation documents" in capsys.readouterr().out
    assert read_section(base_dir, "tok_eval")["metrics"]


@pytest.mark.usefixtures("_trained")
def test_comparison_with_peers(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)}
    peer = tiktoken.Encoding("bytes", pat_str=r"(?s:.)", mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setattr(tiktoken, "get_encoding", lambda _name: peer)
    ratios = tok_eval.main(tok_eval.Config())
    assert set(ratios["English"]) == {"nanochat", "GPT-2", "GPT-4"}
    assert ratios["English"]["GPT-2"] == 1.0


@pytest.mark.usefixtures("_trained")
def test_a_peer_that_is_not_available(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def no_network(_name: str) -> tiktoken.Encoding:
        raise OSError("no route to host")

    monkeypatch.setattr(tiktoken, "get_encoding", no_network)
    ratios = tok_eval.main(tok_eval.Config(max_chars=0))
    assert set(ratios["English"]) == {"nanochat"}
    assert "GPT-2's tokenizer is not available (OSError)" in capsys.readouterr().out


@pytest.mark.usefixtures("_trained")
def test_a_peer_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(tok_eval, "_LOAD_SECONDS", 0.01)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda _name: release.wait(60))
    assert tok_eval.load_peer("gpt2") == "no answer within 0.01 s"
    release.set()


def test_evaluating_without_a_tokenizer() -> None:
    with pytest.raises(UserError, match="train one with"):
        tok_eval.main(tok_eval.Config())
