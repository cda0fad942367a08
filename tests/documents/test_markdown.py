"""Markdown to blocks, front matter, texts of unknown marks."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.documents.markdown import read_markdown, read_text, remove_front_matter

PAGE = """# Rivers

They *flow* [far](http://x.y)[^1] and `down`.
In a second line.

[^1]: A footnote.

Nile
:   A river of Africa.

**Po**: a river of Italy.

1. first
2. second
    - inner

| river | km |
|-------|---:|
| Nile  | 6650 |

> A quote.

```python
print(1 < 2)
```

It costs $5, and $E = mc^2$ holds; press <enter>.
"""


def test_every_kind_of_block() -> None:
    blocks = read_markdown(PAGE).blocks
    assert [(block.kind, block.text) for block in blocks] == [
        ("heading", "Rivers"),
        ("paragraph", "They flow far and down. In a second line."),
        ("definition", "Nile: A river of Africa."),
        ("definition", "Po: a river of Italy."),
        ("list", "- first\n- second\n  - inner"),
        ("table", "river | km\nNile | 6650"),
        ("quote", "A quote."),
        ("code", "print(1 < 2)"),
        ("paragraph", "It costs $5, and $E = mc^2$ holds; press <enter>."),
        ("list", "- A footnote."),
    ]
    assert blocks[2].items == ("Nile", "A river of Africa.")
    assert blocks[5].rows == (("river", "km"), ("Nile", "6650"))
    assert {block.headings for block in blocks[1:]} == {("Rivers",)}


@pytest.mark.parametrize(
    ("text", "title", "body"),
    [
        ("---\ntitle: A B\ntags: [x]\n---\nbody", "A B", "body"),
        ('---\nTitle: "A: B"\n...\nbody', "A: B", "body"),
        ("+++\ntitle = 'A'\n+++\n\nbody", "A", "\nbody"),
        ("---\nlayout: page\n---\nbody", "", "body"),
        ("---\n\nA text between rules.\n\n---\nbody", "", "---\n\nA text between rules.\n\n---\nbody"),
        ("body\n---\ntitle: x\n---\n", "", "body\n---\ntitle: x\n---\n"),
    ],
)
def test_front_matter(text: str, title: str, body: str) -> None:
    assert remove_front_matter(text) == (title, body)


def test_a_text_of_unknown_marks() -> None:
    assert [block.kind for block in read_text("# A\n\nb").blocks] == ["heading", "paragraph"]
    assert read_text("2 * 3 * 4 is_not_markdown_\n\nx").blocks[0].text == "2 * 3 * 4 is_not_markdown_"


@given(st.text(max_size=300))
def test_any_text_is_read(text: str) -> None:
    read_markdown(text)
    read_text(text)


WORDS = st.text("abcdefgh", min_size=1, max_size=8)


@given(st.lists(st.lists(WORDS, min_size=1, max_size=12).map(" ".join), min_size=1, max_size=8))
def test_the_text_of_blocks_is_in_the_source(paragraphs: list[str]) -> None:
    marks = ["{}", "# {}", "- {}", "> {}", "**{}** x", "`{}`"]
    source = "\n\n".join(marks[number % len(marks)].format(text) for number, text in enumerate(paragraphs))
    plain = re.sub(r"[#>*`-]", " ", source).split()
    found = [word for block in read_markdown(source).blocks for word in block.text.removeprefix("- ").split()]
    assert found == plain
