"""BaseText: every character of the documents stands in one piece, and mixtures take the pieces as documents."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.data.shards import write_dataset
from tasks.documents.base_text import BaseText, cut
from tasks.mixture import build_mixture


@given(st.text(alphabet="ab \n", max_size=200), st.integers(1, 30))
def test_pieces_are_the_text(text: str, max_chars: int) -> None:
    pieces = list(cut(text, max_chars))
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= max_chars for piece in pieces)


def test_splits(base_dir: Path) -> None:
    write_dataset(["One line.\nAnother line.", "Short."], ["Held out."], base_dir / "base_data", source="test")
    assert list(BaseText(max_chars=16)) == [{"text": "One line.\n"}, {"text": "Another line."}, {"text": "Short."}]
    assert list(BaseText("test")) == [{"text": "Held out."}]
    for wrong in ({"split": "val"}, {"max_chars": 0}):
        with pytest.raises(UserError):
            BaseText(**wrong)  # type: ignore[arg-type]


def test_in_a_mixture(base_dir: Path, tmp_path: Path) -> None:
    write_dataset([f"Document {number}." for number in range(50)], ["Held out."], base_dir / "base_data", source="test")
    file = tmp_path / "mine.toml"
    file.write_text('[[entry]]\ntask = "BaseText"\nrows = 20\noptions = {max_chars = 100}\n', encoding="utf-8")
    mixture = build_mixture("sft", "web", mixture_file=file)
    assert len(mixture.train) == 20
    assert all("text" in row for row in mixture.train)
    assert list(mixture.val) == [{"text": "Held out."}]
