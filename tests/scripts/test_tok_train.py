"""tok_train and tok_eval, from documents to the tokenizer's file and the report's sections."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.configurator import parse
from nanochat.tokenization.encoders import iter_strings
from nanochat.tokenizer import HuggingFaceTokenizer, RustBPETokenizer, get_tokenizer
from scripts import tok_eval, tok_train

TRAIN = [f"the cat number {i} sat on mat {i * i % 17}, it's true\n" for i in range(300)]
VALIDATION = ["the cat sat on the mat", "it's 17"]
pytestmark = pytest.mark.usefixtures("base_dir", "read")


class Documents:
    """Stand-in documents."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def iter_arrays(self) -> Iterator[pa.Array]:
        return (pa.array(self.texts[i : i + 70]) for i in range(0, len(self.texts), 70))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Stand-in documents; the list fills with the splits as they are asked for."""
    asked: list[str] = []

    def texts(split: str) -> list[str]:
        asked.append(split)
        return TRAIN if split == "train" else VALIDATION

    monkeypatch.setattr(tok_train, "open_split", lambda split: Documents(texts(split)))
    monkeypatch.setattr(tok_eval, "iter_documents", lambda split: iter(texts(split)))
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
    monkeypatch.setattr(tok_train, "trainable_tokenizer_class", lambda: HuggingFaceTokenizer)
    tok_train.main(tok_train.Config(vocab_size=300))
    assert get_tokenizer().get_vocab_size() == 300


def test_reading_stops_at_max_chars() -> None:
    def endless() -> Iterator[pa.Array]:
        while True:
            yield pa.array(["abcdef"])

    def text(max_chars: int, doc_cap: int) -> str:
        return "".join(iter_strings(tok_train.cap_documents(endless(), max_chars, doc_cap)))

    assert text(max_chars=20, doc_cap=4) == "abcd" * 5
    assert text(max_chars=20, doc_cap=-1) == "abcdefabcdefabcdefab"


@given(
    st.lists(st.lists(st.text(max_size=12)), max_size=4),
    st.integers(1, 60),
    st.one_of(st.just(-1), st.integers(1, 9)),
    st.sampled_from([pa.string(), pa.large_string()]),
)
@settings(deadline=None)
def test_cut_by_characters(texts: list[list[str]], max_chars: int, doc_cap: int, kind: pa.DataType) -> None:
    """The slow twin cuts Python strings, which count characters; no text is given after the last that counts."""
    expected, left = [], max_chars
    for text in (text for array in texts for text in array):
        if left:
            expected.append(text[: left if doc_cap == -1 else min(doc_cap, left)])
            left -= len(expected[-1])
    arrays = tok_train.cap_documents((pa.array(array, kind) for array in texts), max_chars, doc_cap)
    found = list(iter_strings(arrays))
    assert [text for text in found if text] == [text for text in expected if text]


def test_the_same_tokenizer_as_from_strings() -> None:
    """Documents of several kinds of characters, cut in the middle."""
    texts = [f"{text} été 你好 {i}" for i, text in enumerate(TRAIN)]
    arrays = tok_train.cap_documents([pa.array(texts[:100]), pa.array(texts[100:])], 5000, 40)
    strings = "".join(text[:40] for text in texts)
    cut = [strings[start : start + 40] for start in range(0, 5000, 40)]
    from_arrow, from_strings = (RustBPETokenizer.train_from_iterator(given, 400) for given in (arrays, cut))
    assert from_arrow.hash() == from_strings.hash()
    capped = tok_train.cap_documents([pa.array(texts)], 5000, 40)
    assert HuggingFaceTokenizer.train_from_iterator(capped, 400).ranks == (
        HuggingFaceTokenizer.train_from_iterator(cut, 400).ranks
    )


def test_nothing_is_saved_when_training_fails(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tok_train, "open_split", lambda _split: Documents([]))
    with pytest.raises(UserError, match="nothing to train on"):
        tok_train.main(tok_train.Config(vocab_size=300))
    assert not (base_dir / "tokenizer").exists()


@pytest.mark.parametrize(
    ("flag", "message"),
    [("--max_chars=0", "max_chars is 0"), ("--doc_cap=0", "doc_cap is 0"), ("--vocab-size=264", "at least 265")],
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
