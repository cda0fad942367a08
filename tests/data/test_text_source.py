"""Text of files in any encoding."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.data.text_source import LEGACY, guess_legacy_encoding, open_text

TEXTS = {
    "cp1252": "Où est le café près de l’hôtel ? C’était déjà l’été, « dit-elle », et la forêt était très belle.",
    "cp1250": "Dawno, dawno temu żył sobie król, który miał trzy córki. Najmłodsza była piękna jak poranek.",
    "cp1251": "Съешь же ещё этих мягких французских булок, да выпей чаю. Это простая проверка кодировки.",
    "koi8_r": "Съешь же ещё этих мягких французских булок, да выпей чаю. Это простая проверка кодировки.",
    "shift_jis": "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "gb18030": "今天天气很好，我们一起去公园散步。孩子们在草地上玩耍。",
    "big5": "今天天氣很好，我們一起去公園散步。孩子們在草地上玩耍。",
    "euc_kr": "오늘은 날씨가 좋아서 우리는 공원에 갔습니다. 아이들이 놀고 있습니다.",
    "cp1253": "Η γρήγορη καφέ αλεπού πηδάει πάνω από το τεμπέλικο σκυλί.",
    "utf-16": "A text of Windows, in two lines.",
    "utf-8": "Ein Satz über Bäume.",
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_every_encoding_gives_its_text(tmp_path: Path, encoding: str) -> None:
    text = f"{TEXTS[encoding]}\n" * 3
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    source = open_text(tmp_path / "a.txt")
    assert source is not None
    assert source.read(10_000) == text
    assert "".join(source.pieces()) == text
    assert not source.is_damaged


def test_a_given_encoding_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("köy".encode("cp1254") + b"\xfe")
    source = open_text(tmp_path / "a.txt", legacy_encoding="cp1254")
    assert source is not None
    assert source.read(100) == "köyş"


def test_a_few_wrong_bytes_are_replaced(tmp_path: Path) -> None:
    text = "Bäume und Gärten. " * 20
    (tmp_path / "a.txt").write_bytes(text.encode() + b"\xff end")
    source = open_text(tmp_path / "a.txt")
    assert source is not None
    assert source.read(10_000) == text + "\ufffd end"
    assert source.is_damaged


def test_binary_data_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(bytes(range(256)) * 10)
    assert open_text(tmp_path / "a.txt") is None


def test_a_long_text_comes_in_pieces(tmp_path: Path) -> None:
    text = "".join(f"Paragraph {number}.\n\n" for number in range(10_000))
    (tmp_path / "a.txt").write_text(text.replace("\n", "\r\n"), encoding="utf-8", newline="")
    source = open_text(tmp_path / "a.txt")
    assert source is not None
    pieces = list(source.pieces(max_chars=20_000))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 20_000
    assert all(piece.endswith("\n\n") for piece in pieces[:-1])


@given(st.binary(min_size=1, max_size=300))
def test_any_bytes_have_a_guess(sample: bytes) -> None:
    encoding = guess_legacy_encoding(sample)
    assert encoding in LEGACY
    sample.decode(encoding, errors="replace")
