"""tok_train: from documents to the tokenizer's file and its section of the report."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.checkpoint_manager import build_model, check_tokenizer, open_checkpoint, run_dir, save_checkpoint
from nanochat.checkpoints.run_lock import LOCK_FILE
from nanochat.common import UserError
from nanochat.configurator import parse
from nanochat.system.locks import file_lock
from nanochat.tokenization.encoders import iter_strings
from nanochat.tokenizer import HuggingFaceTokenizer, RustBPETokenizer, Tokenizer, get_tokenizer, split_pattern
from scripts import tok_train
from tests.support.tokenizer_documents import TRAIN, InMemoryDocuments, read_section, replace_documents
from tests.support.training import CPU, META, SHAPE

pytestmark = pytest.mark.usefixtures("base_dir", "opened_splits")


@pytest.fixture
def opened_splits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return replace_documents(monkeypatch)


def test_trains_on_training_documents_only(
    base_dir: Path, opened_splits: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    trained = tok_train.main(tok_train.Config(vocab_size=330))
    assert set(opened_splits) == {"train"}
    assert get_tokenizer().hash() == trained.hash()
    assert trained.get_vocab_size() == 330
    assert "330 tokens" in capsys.readouterr().out
    report = read_section(base_dir, "tok_train")
    assert report["settings"] == {"max_chars": 2_000_000_000, "doc_cap": 10_000, "vocab_size": 330, "digits": 2}
    assert isinstance(report["metrics"], dict)
    assert report["metrics"]["vocabulary (tokens)"] == 330
    assert report["metrics"]["text (MB)"] == sum(map(len, TRAIN)) / 1e6


@pytest.mark.parametrize("trainer", [RustBPETokenizer, HuggingFaceTokenizer])
@pytest.mark.parametrize(
    ("digits", "groups"), [(1, "1|2|3|4|5|6|7"), (2, "12|34|56|7"), (3, "123|456|7")], ids=["one", "two", "three"]
)
def test_digits(monkeypatch: pytest.MonkeyPatch, trainer: type[Tokenizer], digits: int, groups: str) -> None:
    """Numbers are cut from the left, whatever is frequent in the text; the saved tokenizer cuts them so, too."""
    monkeypatch.setattr(tok_train, "trainable_tokenizer_class", lambda: trainer)
    numbers = pa.array(["1234567 " * 50, "12 34 56 123 456 23 45 67 345 " * 50])
    monkeypatch.setattr(tok_train, "cap_documents", lambda *_: iter([numbers]))
    tok_train.main(parse(tok_train.Config, ["--vocab_size=310", f"--digits={digits}"]))
    tokenizer = get_tokenizer()
    assert tokenizer.pattern == split_pattern(digits)
    assert "|".join(tokenizer.decode([i]) for i in tokenizer.encode("1234567")) == groups
    assert max(len(token) for token in tokenizer.ranks if token.isdigit()) == digits


def test_two_at_once(base_dir: Path) -> None:
    """The second is refused before its work, and changes nothing."""
    with (
        file_lock(base_dir / "tokenizer" / LOCK_FILE, "held by"),
        pytest.raises(UserError, match=r"tokenizer is in use by process .*: wait for its end, or stop it"),
    ):
        tok_train.main(tok_train.Config(vocab_size=330))
    assert not list((base_dir / "tokenizer").iterdir())
    tok_train.main(tok_train.Config(vocab_size=330))
    assert [path.name for path in (base_dir / "tokenizer").iterdir()] == ["tokenizer.json"]


def test_a_smaller_vocabulary_is_reported(base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trained = tok_train.main(tok_train.Config(vocab_size=5000, max_chars=40))
    assert trained.get_vocab_size() < 400
    assert "no more pairs to merge" in capsys.readouterr().out
    assert "no more pairs to merge" in str(read_section(base_dir, "tok_train")["notes"])


def test_a_tokenizer_that_checkpoints_need_is_kept(base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One copy, which their error names and which makes them usable again; the same tokenizer replaces nothing."""
    old = tok_train.main(tok_train.Config(vocab_size=330))
    kept = base_dir / f"tokenizer.{old.hash()[:8]}" / "tokenizer.json"
    tok_train.main(tok_train.Config(vocab_size=340))
    assert not kept.exists()  # no checkpoint needs it
    tok_train.main(tok_train.Config(vocab_size=330))
    folder = run_dir("sft", "d1")
    save_checkpoint(folder, 7, build_model(SHAPE, CPU).state_dict(), {}, META | {"tokenizer_hash": old.hash()})
    capsys.readouterr()
    tok_train.main(tok_train.Config(vocab_size=330))
    assert "NOTICE" not in capsys.readouterr().out
    for vocab_size in (340, 350):
        new = tok_train.main(tok_train.Config(vocab_size=vocab_size))
        assert ("NOTICE: 1 checkpoint cannot be used" in capsys.readouterr().out) == (vocab_size == 340)
    assert [path.name for path in base_dir.glob("tokenizer.*")] == [kept.parent.name]
    with pytest.raises(UserError, match=rf"another tokenizer .*that one is kept as {kept}, copy it back"):
        check_tokenizer(open_checkpoint(folder), new)
    shutil.copy(kept, base_dir / "tokenizer")
    check_tokenizer(open_checkpoint(folder), get_tokenizer())


def test_training_with_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
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
    """Documents are cut as Python strings would be, by characters, and none follows the last that counts."""
    expected = []
    remaining = max_chars
    for text in (text for array in texts for text in array):
        if remaining:
            expected.append(text[: remaining if doc_cap == -1 else min(doc_cap, remaining)])
            remaining -= len(expected[-1])
    arrays = tok_train.cap_documents((pa.array(array, kind) for array in texts), max_chars, doc_cap)
    strings = list(iter_strings(arrays))
    assert [text for text in strings if text] == [text for text in expected if text]


def test_the_same_tokenizer_as_from_strings() -> None:
    """Arrow arrays and Python strings give the same tokenizer, for documents of several scripts cut in the middle."""
    texts = [f"{text} été 你好 {i}" for i, text in enumerate(TRAIN)]
    arrays = tok_train.cap_documents([pa.array(texts[:100]), pa.array(texts[100:])], 5000, 40)
    strings = "".join(text[:40] for text in texts)
    cut = [strings[start : start + 40] for start in range(0, 5000, 40)]
    from_arrow, from_strings = (RustBPETokenizer.train_from_iterator(documents, 400) for documents in (arrays, cut))
    assert from_arrow.hash() == from_strings.hash()
    capped = tok_train.cap_documents([pa.array(texts)], 5000, 40)
    assert HuggingFaceTokenizer.train_from_iterator(capped, 400).ranks == (
        HuggingFaceTokenizer.train_from_iterator(cut, 400).ranks
    )


def test_nothing_is_saved_when_training_fails(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tok_train, "open_split", lambda _split: InMemoryDocuments([]))
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
