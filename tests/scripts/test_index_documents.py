"""The command that indexes documents: its output, a second run, and faults of a user."""

from __future__ import annotations

from pathlib import Path

import pytest

from nanochat.common import UserError
from nanochat.documents.document import write_documents
from scripts.index_documents import Config, main
from tests.support.documents import TEA, make_documents


def test_index_and_query(base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_documents(base_dir / "documents")
    main(Config(query="Who is awake?", num_passages=1))
    out = capsys.readouterr().out
    assert out.startswith(f"Indexed 6 passages in {source.with_name('passages.sqlite')} (0.")
    assert "drinks/coffee.md: Coffee (score " in out
    assert "keeps Ngozi awake" in out
    main(Config(query="giraffe"))
    assert capsys.readouterr().out.endswith("is up to date: 6 passages\nNo passage has a word of it.\n")
    write_documents([TEA], source)
    main(Config())
    assert capsys.readouterr().out.startswith("Indexed 2 passages")


@pytest.mark.usefixtures("base_dir")
def test_faults() -> None:
    with pytest.raises(UserError, match="no documents in"):
        main(Config())
    with pytest.raises(UserError, match="query is ' ': must contain words"):
        Config(query=" ")
    with pytest.raises(UserError, match="num_passages"):
        Config(num_passages=0)
