"""Recognition of UTF-8, UTF-16 and UTF-32 with and without a mark, compared with what was encoded."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data import text_encoding
from nanochat.data.text_encoding import TextEncoding, detect_encoding, guess_encoding
from tests.support.datasets import numbered_texts

TEXTS = {
    "English": "\n".join(numbered_texts(20)),
    "short": "The brave baker hides a red river.",
    "French": "Où est l'élève ? Il a mangé des crêpes à Noël.\n" * 4,
    "Russian": "Привет, мир! Это простой рассказ о деревне.\n" * 4,
    "Greek": "Καλημέρα κόσμε, πού είναι το ψωμί;\n" * 4,
    "Hebrew": "שלום עולם, זה סיפור קצר על כפר קטן.\n" * 4,
    "Arabic": "مرحبا بالعالم، هذه قصة قصيرة عن قرية.\n" * 4,
    "Hindi": "नमस्ते दुनिया, यह एक छोटी कहानी है।\n" * 4,
    "Punjabi": "ਸਤ ਸ੍ਰੀ ਅਕਾਲ ਦੁਨੀਆ, ਇਹ ਇੱਕ ਛੋਟੀ ਕਹਾਣੀ ਹੈ।\n" * 4,
    "Malayalam": "ഹലോ ലോകം, ഇതൊരു ചെറിയ കഥയാണ്.\n" * 4,
    "Thai": "สวัสดีชาวโลก นี่คือเรื่องสั้นเกี่ยวกับหมู่บ้าน\n" * 4,
    "Chinese": "你好，世界。这是一个关于村庄的故事。\n" * 4,
    "Japanese": "こんにちは、世界。これは村の話です。\n" * 4,
    "Korean": "안녕하세요 세계, 이것은 마을 이야기입니다.\n" * 4,
    "emoji": "A cat 🐈 and a dog 🐕 met 👩‍👩‍👧‍👦 in the park.\n" * 4,
}
UNMARKED = ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
MARKS = {
    "utf-8": codecs.BOM_UTF8,
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


def _read(path: Path, encoding: TextEncoding) -> str:
    assert encoding.name is not None
    return path.read_bytes().decode(encoding.name)


@pytest.mark.parametrize("encoding", UNMARKED)
@pytest.mark.parametrize("is_marked", [True, False])
@pytest.mark.parametrize("language", TEXTS)
def test_text_is_read_as_it_was_written(tmp_path: Path, language: str, is_marked: bool, encoding: str) -> None:
    content = (MARKS[encoding] if is_marked else b"") + TEXTS[language].encode(encoding)
    (tmp_path / "a.txt").write_bytes(content)
    detected = detect_encoding(tmp_path / "a.txt")
    assert (detected.is_marked, detected.is_valid) == (is_marked, True)
    assert _read(tmp_path / "a.txt", detected) == TEXTS[language]


@settings(deadline=None)
@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=200))
def test_utf8_without_control_characters_stays_utf8(text: str) -> None:
    """No text is mistaken for another encoding because of its letters: only control characters raise a doubt."""
    assert guess_encoding(text.removeprefix("\ufeff").encode()) == ("utf-8-sig", text.startswith("\ufeff\ufeff"))


@settings(deadline=None)
@given(st.sampled_from(UNMARKED), st.text(max_size=60))
def test_a_mark_decides(encoding: str, text: str) -> None:
    name, is_marked = guess_encoding(MARKS[encoding] + text.encode(encoding))
    if encoding == "utf-16-le" and text.startswith("\0"):
        return  # the mark of UTF-32 as well
    assert is_marked
    assert (MARKS[encoding] + text.encode(encoding)).decode(str(name)) == text


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_have_an_encoding_or_are_binary(content: bytes) -> None:
    name, _ = guess_encoding(content)
    if name is None:
        assert any(byte < 32 for byte in content)
    else:
        content.decode(name, "replace")


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"", "utf-8-sig"),
        (b"one\0two and three words more", "utf-8-sig"),
        ("\0".join(numbered_texts(3)[0].split()).encode(), "utf-8-sig"),  # a list with NULs between
        ("voil\xe0, un caf\xe9\n".encode("latin-1") * 9, "utf-8-sig"),
        (TEXTS["Russian"].encode("cp1251"), "utf-8-sig"),
        (TEXTS["Russian"].encode("koi8-r"), "utf-8-sig"),
        (TEXTS["Chinese"].encode("gb18030"), "utf-8-sig"),
        (TEXTS["Japanese"].encode("shift-jis"), "utf-8-sig"),
        (b"\x1b[31mred\x1b[0m ", "utf-8-sig"),
        (b"\0" * 1000, None),
        (b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 9, None),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x04\0\0\0\x03\0\x08\x02\0\0\0\xff\xfe\x81", None),
    ],
)
def test_other_encodings_and_binary_data(content: bytes, name: str | None) -> None:
    assert guess_encoding(content) == (name, False)


@pytest.mark.parametrize("encoding", UNMARKED)
def test_a_sample_that_ends_within_a_character(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes(TEXTS["emoji"].encode(encoding))
    for size in range(40, 60):
        monkeypatch.setattr(text_encoding, "_SAMPLE_BYTES", size)
        assert _read(tmp_path / "a.txt", detect_encoding(tmp_path / "a.txt")) == TEXTS["emoji"]


@pytest.mark.parametrize("encoding", UNMARKED[1:])
def test_a_file_that_is_cut_is_not_valid(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_bytes(TEXTS["English"].encode(encoding)[:-1])
    detected = detect_encoding(tmp_path / "a.txt")
    assert (detected.name, detected.is_valid) == (encoding, False)
