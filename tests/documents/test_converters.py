"""Formats that pandoc and pypdf read. Tests that need the extra `documents` are skipped without it."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from nanochat.documents import converters
from nanochat.documents.converters import blocks_of_pages, find_pandoc, missing_extra, read_pdf, read_with_pandoc
from nanochat.documents.formats import DAMAGED, EXTRA, PANDOC_FORMATS, TOO_LARGE, TOO_MUCH_MEMORY, ReadFailure

needs_pandoc = pytest.mark.skipif(missing_extra(".rst"), reason="pypandoc_binary is not installed")
needs_pypdf = pytest.mark.skipif(missing_extra(".pdf"), reason="pypdf is not installed")

MARKDOWN = "# Rivers\n\nThe Nile *flows* north.\n\n- Nile\n- Po\n\n| river | km |\n|---|---|\n| Nile | 6650 |\n"


def written(path: Path, text: str = MARKDOWN) -> Path:
    """A file that pandoc has made of Markdown."""
    pandoc = find_pandoc()
    assert pandoc
    subprocess.run([pandoc, "-s", "-o", str(path), "--metadata", "title=T"], input=text, text=True, check=True)
    return path


@needs_pandoc
@pytest.mark.slow
@pytest.mark.parametrize("suffix", sorted(set(PANDOC_FORMATS) - {".latex", ".fb2"}))
def test_every_format_of_pandoc(tmp_path: Path, suffix: str) -> None:
    path = written(tmp_path / f"a{suffix}")
    blocks = read_with_pandoc(path, path.read_bytes(), 60).blocks
    texts = [block.text for block in blocks]
    assert "Rivers" in texts
    assert "The Nile flows north." in texts
    assert "- Nile\n- Po" in texts or suffix == ".rtf"  # there an item is a paragraph with a sign
    assert [block.rows for block in blocks if block.kind == "table"] == [
        (("river", "km"), ("Nile", "6650"))
    ] or suffix in (
        ".rtf",
        ".textile",
        ".typ",
    )


@needs_pandoc
def test_pandoc_opens_no_other_file(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret", encoding="utf-8")
    content = f"Text.\n\n.. include:: {tmp_path}/secret.txt\n\n.. csv-table::\n   :file: {tmp_path}/secret.txt\n"
    try:
        page = read_with_pandoc(tmp_path / "a.rst", content.encode(), 60)
    except ReadFailure:
        return
    assert all("secret" not in block.text for block in page.blocks)


@needs_pandoc
@pytest.mark.parametrize("suffix", [".docx", ".epub", ".odt"])
def test_damaged_packages(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    for content in (b"", b"no zip", b"PK\x03\x04" + b"\0" * 100):
        path.write_bytes(content)
        with pytest.raises(ReadFailure) as failure:
            read_with_pandoc(path, content, 60)
        assert failure.value.reason == DAMAGED
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.xml", "<x/>")
    with pytest.raises(ReadFailure):
        read_with_pandoc(path, path.read_bytes(), 60)


@needs_pandoc
def test_a_package_that_unpacks_to_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.docx"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"\0" * 2_000_000)
    monkeypatch.setattr(converters, "MAX_UNZIPPED_BYTES", 1_000_000)
    with pytest.raises(ReadFailure, match="unpacks to 2,000,000 bytes") as failure:
        read_with_pandoc(path, path.read_bytes(), 60)
    assert failure.value.reason == TOO_LARGE


@needs_pandoc
@pytest.mark.slow
def test_the_memory_of_pandoc_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converters, "MAX_PANDOC_MEMORY", "8M")
    with pytest.raises(ReadFailure) as failure:
        read_with_pandoc(tmp_path / "a.rst", b"text *emphasis* and more\n\n" * 40_000, 60)
    assert failure.value.reason == TOO_MUCH_MEMORY


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(converters, "find_spec", lambda _: None)
    monkeypatch.setattr(converters, "find_pandoc", lambda: None)
    assert missing_extra(".docx")
    assert missing_extra(".pdf")
    assert not missing_extra(".md")
    with pytest.raises(ReadFailure) as failure:
        read_with_pandoc(tmp_path / "a.rst", b"x", 60)
    assert failure.value.reason == EXTRA
    with pytest.raises(ReadFailure) as failure:
        read_pdf(tmp_path / "a.pdf")
    assert failure.value.reason == EXTRA


def pdf(stream: bytes) -> bytes:
    """A file with a page in the simplest form of the format. `stream`: what draws the page."""
    font = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 300 300] /Contents 4 0 R /Resources << /Font << /F1 "
        + font
        + b" >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
    ]
    content = b"%PDF-1.4\n"
    places = []
    for number, body in enumerate(objects, start=1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"xref\n0 5\n0000000000 65535 f \n" + b"".join(b"%010d 00000 n \n" % place for place in places)
    return content + table + b"trailer\n<< /Root 1 0 R /Size 5 >>\nstartxref\n%d\n%%%%EOF\n" % len(content)


@needs_pypdf
def test_pdf(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(pdf(b"BT /F1 12 Tf 20 200 Td (The Nile flows north.) Tj ET"))
    assert [block.text for block in read_pdf(path).blocks] == ["The Nile flows north."]


@needs_pypdf
@pytest.mark.parametrize("content", [b"", b"no pdf", pdf(b"BT ET")[:200], pdf(b"BT ET")])
def test_pdf_without_text(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.pdf"
    path.write_bytes(content)
    with pytest.raises(ReadFailure):
        read_pdf(path)


def test_pages_become_paragraphs() -> None:
    """Lines are joined, also over pages and hyphens; a header and the number of a page are left out."""
    pages = [
        "\n".join(
            [
                "The Rivers of Africa",
                f"This line about the {river} is as long as every other line of",
                "the book, it goes on to the next one, and there it ends hy-",
                "phenated.",
                f"The next paragraph about the {river} begins here, and is long,",
                "so that it goes on",
                str(number),
            ]
        )
        for number, river in enumerate("Nile Niger Congo Volta Zambezi".split(), start=1)
    ]
    texts = [block.text for block in blocks_of_pages(pages)]
    assert texts[0] == (
        "This line about the Nile is as long as every other line of the book, it goes on to the next one, and there it "
        "ends hyphenated."
    )
    assert not any("Rivers of Africa" in text or text.isdigit() for text in texts)
    assert sum(text.count("next paragraph") for text in texts) == 5
