"""Plain text and program code to blocks.

Text has no marks, so these rules guess: blank lines end a paragraph; a short line by itself is a heading if it is
underlined, numbered, in capitals, in title case or the first of a file; lines that all begin with a bullet or a number
are a list. The lines of a paragraph are joined if they were broken at a width, as in e-mails; the lines of poems stay.
"""

from __future__ import annotations

import re

from nanochat.documents.document import Block
from nanochat.documents.html_blocks import list_block, with_headings

MAX_HEADING_CHARS = 100
_BLANK_LINES = re.compile(r"\n[ \t\f\v]*(?:\n[ \t\f\v]*)*\n|\f")
_BULLET = re.compile(r"[ \t]{0,40}(?:[-*+\u2022\u25cf\u25e6\u2013]|\(?\d{1,3}[.)])[ \t]{1,8}(?=\S)")
_UNDERLINE = re.compile(r"([=\-~^#*+])\1{2,}")
_NUMBER = re.compile(r"(\d{1,3}(?:\.\d{1,3})*)\.?\s+(?=[^\W\d_])")
_CHAPTER = re.compile(r"(?i)(?:chapter|part|section|book|act|scene|appendix|kapitel|chapitre|глава|часть)\b[\s\w]*")
_SMALL_WORDS = set(
    "a an and as at but by for from in into is its of on or over per than that the to vs via with".split()
)
_MIN_WRAPPED_CHARS = 50  # of a line that was broken at a width
_MAX_WRAPPED_CHARS = 120


def read_plain_text(text: str) -> list[Block]:
    """Return the blocks of a text.

    >>> [(block.kind, block.text) for block in read_plain_text("The Nile\\n\\nIt is long.\\n\\n- It flows\\n- It ends")]
    [('heading', 'The Nile'), ('paragraph', 'It is long.'), ('list', '- It flows\\n- It ends')]
    """
    blocks: list[Block] = []
    paragraphs = [part.strip("\n\r\f\v ") for part in _BLANK_LINES.split(text)]
    paragraphs = [part for part in paragraphs if part]
    for number, paragraph in enumerate(paragraphs):
        lines = [line.rstrip() for line in paragraph.split("\n")]
        if len(lines) >= 2 and _is_underlined(lines):
            blocks.append(Block("heading", lines[0].strip(), (), level=1 if lines[1].strip()[0] in "=#*" else 2))
            del lines[:2]
        if not lines:
            continue
        is_last = number == len(paragraphs) - 1
        if len(lines) == 1 and not is_last and (level := _heading_level(lines[0].strip(), is_first=not number)):
            blocks.append(Block("heading", lines[0].strip(), (), level=level))
        elif len(lines) >= 2 and all(map(_BULLET.match, lines)):
            blocks.append(list_block([(0, _BULLET.sub("", line, count=1).strip()) for line in lines]))
        else:
            blocks.append(Block("paragraph", _joined(lines), ()))
    return with_headings(_lists_joined(blocks))


def read_code(text: str) -> list[Block]:
    """Return a program as one block, without spaces at the ends of its lines."""
    code = "\n".join(line.rstrip() for line in text.replace("\f", "\n").split("\n")).strip("\n")
    return [Block("code", code, ())] if code.strip() else []


def _is_underlined(lines: list[str]) -> bool:
    underline = _UNDERLINE.fullmatch(lines[1].strip())
    return bool(underline) and 0 < len(lines[0].strip()) <= MAX_HEADING_CHARS and _UNDERLINE.fullmatch(lines[0]) is None


def _heading_level(line: str, is_first: bool) -> int:
    """Return the level of a line that stands alone and looks like a heading, else 0."""
    if (
        len(line) > MAX_HEADING_CHARS
        or (_BULLET.match(line) and not _NUMBER.match(line))
        or line[-1:] in '.,;:!\u2026"\u201d'
    ):
        return 0
    words = re.findall(r"[^\W\d_][\w'\u2019-]*", line)
    if not words or len(words) > 14:
        return 0
    if is_first:
        return 1
    if match := _NUMBER.match(line):
        return min(6, 1 + match[1].count(".") + 1) if line[match.end()].isupper() else 0
    if _CHAPTER.fullmatch(line) or (line.isupper() and len(line) >= 4):
        return 2
    has_capitals = line[0].isupper() and all(word[0].isupper() or word.lower() in _SMALL_WORDS for word in words)
    return 2 if has_capitals and line[0] not in "\"\u201c\u2018'" else 0


def _joined(lines: list[str]) -> str:
    """Return a paragraph whose lines are joined with spaces if they were broken at a width, else with line ends."""
    widths = [len(line) for line in lines]
    is_wrapped = len(lines) > 1 and min(widths[:-1]) >= _MIN_WRAPPED_CHARS and max(widths) <= _MAX_WRAPPED_CHARS
    return " ".join(line.strip() for line in lines) if is_wrapped else "\n".join(lines)


def _lists_joined(blocks: list[Block]) -> list[Block]:
    """Return the blocks with single bulleted lines, which stand between blank lines, made one list."""
    result: list[Block] = []
    for block in blocks:
        is_item = block.kind == "paragraph" and "\n" not in block.text and re.match(r"[-*\u2022]\s+\S", block.text)
        if is_item:
            block = list_block([(0, _BULLET.sub("", block.text, count=1).strip())])
        if is_item and result and result[-1].kind == "list":
            items = [(0, item) for item in (*result.pop().items, *block.items)]
            block = list_block(items)
        result.append(block)
    return result
