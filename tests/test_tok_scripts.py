"""tok_train and tok_eval, from documents to the tokenizer's file and the report's sections."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiktoken

from nanochat.common import UserError
from nanochat.configurator import parse
from nanochat.tokenizer import HuggingFaceTokenizer, get_tokenizer
from scripts import tok_eval, tok_train

TRAIN = [f"the cat number {i} sat on mat {i * i % 17}, it's true\n" for i in range(300)]
VALIDATION = ["the cat sat on the mat", "it's 17"]
pytestmark = pytest.mark.usefixtures("base_dir", "read")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-in documents; the list fills with the splits as they are asked for."""
    asked: list[str] = []

    def iter_documents(split: str) -> Iterator[str]:
        asked.append(split)
        return iter(TRAIN if split == "train" else VALIDATION)

    monkeypatch.setattr(tok_train, "iter_documents", iter_documents)
    monkeypatch.setattr(tok_eval, "iter_documents", iter_documents)
    return asked


def section(base_dir: Path, stage: str) -> dict[str, object]:
    return dict(json.loads((base_dir / "report" / f"{stage}.json").read_text(encoding="utf-8")))


def test_training_documents_only(base_dir: Path, read: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    trained = tok_train.main(tok_train.Config(vocab_size=330))
    assert set(read) == {"train"}
    assert get_tokenizer().hash() == trained.hash()
    assert trained.get_vocab_size() == 330
    assert "330 tokens" in capsys.readouterr().out
    report = section(base_dir, "tok_train")
    assert report["settings"] == {"max_chars": 2_000_000_000, "doc_cap": 10_000, "vocab_size": 330}
    assert isinstance(report["metrics"], dict)
    assert report["metrics"]["vocabulary (tokens)"] == 330
    assert report["metrics"]["text (MB)"] == sum(map(len, TRAIN)) / 1e6


def test_a_smaller_vocabulary_is_told(base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = tok_train.main(tok_train.Config(vocab_size=5000, max_chars=40))
    assert trained.get_vocab_size() < 400
    assert "no more pairs to merge" in capsys.readouterr().out
    assert "no more pairs to merge" in str(section(base_dir, "tok_train")["notes"])


def test_hugging_face_trains_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tok_train, "trainable_tokenizer", lambda: HuggingFaceTokenizer)
    tok_train.main(tok_train.Config(vocab_size=300))
    assert get_tokenizer().get_vocab_size() == 300


def test_reading_stops_at_max_chars() -> None:
    def endless() -> Iterator[str]:
        while True:
            yield "abcdef"

    assert "".join(tok_train.capped(endless(), max_chars=20, doc_cap=4)) == "abcd" * 5
    assert "".join(tok_train.capped(endless(), max_chars=20, doc_cap=-1)) == "abcdefabcdefabcdefab"


def test_nothing_is_saved_when_training_fails(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tok_train, "iter_documents", lambda _split: iter([]))
    with pytest.raises(UserError, match="nothing to train on"):
        tok_train.main(tok_train.Config(vocab_size=300))
    assert not (base_dir / "tokenizer").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--max_chars=0", "max_chars = 0"), ("--doc_cap=0", "doc_cap = 0"), ("--vocab-size=264", "at least 265")],
)
def test_impossible_settings(flag: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(tok_train.Config, [flag])


class TestEval:
    @pytest.fixture(autouse=True)
    def _trained(self, base_dir: Path, read: list[str]) -> None:
        tok_train.main(tok_train.Config(vocab_size=400))
        assert (base_dir / "tokenizer" / "tokenizer.json").exists()
        read.clear()

    def test_ratios(self, base_dir: Path, read: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        ratios = tok_eval.main(tok_eval.Config(peers=False))
        assert read == ["val"]
        assert set(ratios) == {*tok_eval.TEXTS, "validation documents"}
        text = "\n\n".join(VALIDATION)
        assert ratios["validation documents"]["nanochat"] == len(text) / len(get_tokenizer().encode(text))
        assert all(row["nanochat"] >= 1 for row in ratios.values())
        assert "validation documents" in capsys.readouterr().out
        assert section(base_dir, "tok_eval")["metrics"]

    def test_beside_peers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        ranks = {bytes([byte]): byte for byte in range(256)}
        peer = tiktoken.Encoding("bytes", pat_str=r"(?s:.)", mergeable_ranks=ranks, special_tokens={})
        monkeypatch.setattr(tiktoken, "get_encoding", lambda _name: peer)
        ratios = tok_eval.main(tok_eval.Config())
        assert set(ratios["English"]) == {"nanochat", "GPT-2", "GPT-4"}
        assert ratios["English"]["GPT-2"] == 1.0

    def test_a_peer_that_cannot_be_had(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def no_network(_name: str) -> tiktoken.Encoding:
            raise OSError("no route to host")

        monkeypatch.setattr(tiktoken, "get_encoding", no_network)
        ratios = tok_eval.main(tok_eval.Config(max_chars=0))
        assert set(ratios["English"]) == {"nanochat"}
        assert "GPT-2's tokenizer cannot be had here (OSError)" in capsys.readouterr().out

    def test_a_peer_that_does_not_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        release = threading.Event()
        monkeypatch.setattr(tok_eval, "_LOAD_SECONDS", 0.01)
        monkeypatch.setattr(tiktoken, "get_encoding", lambda _name: release.wait(60))
        assert tok_eval.load_peer("gpt2") == "no answer within 0.01 s"
        release.set()


def test_evaluating_without_a_tokenizer() -> None:
    with pytest.raises(UserError, match="train one with"):
        tok_eval.main(tok_eval.Config())
