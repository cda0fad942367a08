"""HTML to blocks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.documents.document import KINDS, Block
from nanochat.documents.html_blocks import read_html, with_headings


def shown(html: str, is_from_markdown: bool = False) -> list[tuple[str, str]]:
    return [(block.kind, block.text) for block in read_html(html, is_from_markdown).blocks]


@pytest.mark.parametrize(
    ("html", "blocks"),
    [
        ("<p>a\n  b<br>c</p>", [("paragraph", "a b\nc")]),
        ("a<div>b</div>c", [("paragraph", "a"), ("paragraph", "b"), ("paragraph", "c")]),
        ("<p>a &lt;b&gt; &eacute;", [("paragraph", "a <b> é")]),
        ("<ul><li>a<li>b<ol><li>c</ol>d<li>e</ul>", [("list", "- a\n- b\n  - c\n- d\n- e")]),
        ("<ul><li><p>a</p><p>b</p></li></ul>", [("list", "- a b")]),
        ("<ul><li>a<pre>x\n  y</pre>b</ul>", [("list", "- a"), ("code", "x\n  y"), ("list", "- b")]),
        ("<dl><dt>t<dd>x<p>y<dt>u<dd>z</dl>", [("definition", "t: x\ny"), ("definition", "u: z")]),
        ("<dl><dt>t<dt>u<dd>x</dl>", [("definition", "t, u: x")]),
        ("<dl><dt>t<dd>x<pre>c</pre>y</dl>", [("definition", "t: x"), ("code", "c"), ("paragraph", "y")]),
        ("<p><b>Term</b>: what it is.", [("definition", "Term: what it is.")]),
        ("<p><b>Term:</b> what it is.", [("definition", "Term: what it is.")]),
        ("<p><b>bold</b> and more", [("paragraph", "bold and more")]),
        ("<blockquote><p>a<p>b</blockquote>", [("quote", "a"), ("quote", "b")]),
        ("<pre><code>if x &lt; 1:\n    y\n</code></pre>", [("code", "if x < 1:\n    y")]),
        ("<table><tr><th>a<th>b<tr><td>1<td><p>2</p></table>", [("table", "a | b\n1 | 2")]),
        ("<table><tr><td>only</table>", [("paragraph", "only")]),
        ("<table><tr><td><h2>t</h2>x<td>y</table>", [("heading", "t"), ("paragraph", "x"), ("paragraph", "y")]),
        ("<p>a<script>b</script><style>c</style>", [("paragraph", "a")]),
        ("<nav>a</nav><p>b<footer>c</footer>", [("paragraph", "b")]),
        ("<div class='sphinxsidebar'>a<div>b</div></div>c", [("paragraph", "c")]),
        ("<div role=navigation>a</div>b", [("paragraph", "b")]),
        ("<h1>T<a class=headerlink>#</a></h1>", [("heading", "T")]),
        ("<p>a<!-- b -->c", [("paragraph", "ac")]),
        ("</p></ul></td>x", [("paragraph", "x")]),
        ("", []),
    ],
)
def test_elements(html: str, blocks: list[tuple[str, str]]) -> None:
    assert shown(html) == blocks


def test_the_main_part_of_a_page() -> None:
    long = "words " * 50
    page = f"<title>T</title><p>around</p><main><h1>A</h1><p>{long}</p></main><p>around</p>"
    assert shown(page) == [("heading", "A"), ("paragraph", long.strip())]
    assert read_html(page).title == "T"
    assert ("paragraph", "around") in shown(page.replace(long, "short"))


def test_forgotten_quotes_of_markdown() -> None:
    assert shown("<p>press <key> in List<String></p>", is_from_markdown=True) == [
        ("paragraph", "press <key> in List<String>")
    ]


def test_headings_of_blocks() -> None:
    def heading(text: str, level: int) -> Block:
        return Block("heading", text, (), level=level)

    blocks = [
        heading("a", 1),
        heading("b", 3),
        Block("paragraph", "x", ()),
        heading("c", 2),
        Block("paragraph", "y", ()),
    ]
    assert [block.headings for block in with_headings(blocks)] == [(), ("a",), ("a", "b"), ("a",), ("a", "c")]


TAGS = st.sampled_from("p div ul li dl dt dd table tr td th pre h1 h2 b a blockquote nav main script br x".split())
PIECES = st.one_of(
    TAGS.map(lambda tag: f"<{tag}>"),
    TAGS.map(lambda tag: f"</{tag}>"),
    st.text(max_size=8),
    st.sampled_from(["<!--", "-->", "<![CDATA[", "]]>", "&#x110000;", "<!", "<?", "\0", "a", "b c"]),
)


@given(st.lists(PIECES, max_size=40).map("".join), st.booleans())
def test_any_page_is_read(html: str, is_from_markdown: bool) -> None:
    for block in read_html(html, is_from_markdown).blocks:
        assert block.kind in KINDS
        assert block.text.strip()
        assert "\0" not in block.text
        assert (block.level > 0) == (block.kind == "heading")
        assert bool(block.items) == (block.kind in ("list", "definition"))
        assert len(set(map(len, block.rows))) == (block.kind == "table")


@given(st.lists(st.text("abcdefg ", min_size=1).filter(str.strip), min_size=1, max_size=10))
def test_no_word_is_lost_or_moved(texts: list[str]) -> None:
    """Text outside of what is left out comes back in its order, whatever elements it stands in."""
    elements = [
        "<p>{}</p>",
        "<ul><li>{}</li></ul>",
        "<div>{}</div>",
        "<pre>{}</pre>",
        "<h2>{}</h2>",
        "<blockquote>{}</blockquote>",
    ]
    html = "".join(elements[number % len(elements)].format(text) for number, text in enumerate(texts))
    found = " ".join(block.text.removeprefix("- ") for block in read_html(html).blocks)
    assert found.split() == " ".join(texts).split()


def test_deep_nesting_is_read_without_recursion() -> None:
    assert shown("<div>" * 5000 + "x" + "</div>" * 5000) == [("paragraph", "x")]
    assert shown("<ul><li>" * 2000 + "x")[0][0] == "list"
