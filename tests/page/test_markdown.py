"""Markdown of replies: what it shows, against another implementation, in pieces, and under attack."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from playwright.sync_api import Browser, Page

from tests.support.browser import open_context, open_page
from tests.support.page_server import page_server

ELEMENTS = set(
    "a blockquote button code del div em figcaption figure hr li ol p pre span strong svg table tbody td th thead tr "
    "ul use".split()
)
ATTRIBUTES = set("aria-hidden aria-label aria-level class dir href rel role start tabindex target title type".split())
# Renders documents, each in pieces of the given lengths; collects elements, attributes, addresses and text of each.
RENDER = """(documents) => documents.map(([text, pieces]) => {
  const root = document.createElement("div");
  const view = new MarkdownView(root, []);
  let start = 0;
  for (const length of [...pieces, text.length]) {
    if (start < text.length) view.append(text.slice(start, start + length));
    start += length;
  }
  view.finish();
  const all = [...root.querySelectorAll("*")];
  const links = all.filter((element) => element.localName === "a");
  const clone = root.cloneNode(true);
  clone.querySelectorAll("figcaption button").forEach((button) => button.remove());
  return {
    elements: [...new Set(all.map((element) => element.localName))],
    attributes: [...new Set(all.flatMap((element) => element.getAttributeNames()))],
    links: links.map((link) => [link.getAttribute("href"), link.rel, link.target]),
    text: clone.textContent,
    html: clone.innerHTML,
  };
})"""


@pytest.fixture(scope="module")
def page(browser: Browser) -> Iterator[Page]:
    with page_server() as server, open_context(browser, server.address) as context:
        yield open_page(context, server.address)


def render(page: Page, *texts: str, pieces: list[int] | None = None) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = page.evaluate(RENDER, [[text, pieces or []] for text in texts])
    return results


def plain_html(page: Page, text: str) -> str:
    """The HTML of a text, without what only the page adds: directions, the bar above code, the roles of areas."""
    html = render(page, text)[0]["html"]
    html = re.sub(r"<figcaption>.*?</figcaption>", "", html)
    html = re.sub(r' (?:dir|rel|target|title|role|tabindex|aria-label)="[^"]*"', "", html)
    html = re.sub(r'<div class="heading" aria-level="(\d)">(.*?)</div>', r"<h\1>\2</h\1>", html, flags=re.DOTALL)
    return re.sub(r'</?figure[^>]*>|<div class="table">|(?<=</table>)</div>| class=""', "", html)


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("one\ntwo\n\nthree", "<p>one\ntwo</p><p>three</p>"),
        ("# One #\n###### Six\n#no", "<h3>One</h3><h6>Six</h6><p>#no</p>"),
        ("a **b _c_ d** ~~e~~", "<p>a <strong>b <em>c</em> d</strong> <del>e</del></p>"),
        (
            "***both*** 2*3*4 snake_case_name **",
            "<p><em><strong>both</strong></em> 2<em>3</em>4 snake_case_name **</p>",
        ),
        ("a `b *c*` ``d`e`` `f", "<p>a <code>b *c*</code> <code>d`e</code> `f</p>"),
        (r"\*a\* \q", r"<p>*a* \q</p>"),
        (
            "- a\n- b\n  - c\n    1. d\n- e",
            "<ul><li>a</li><li>b<ul><li>c<ol><li>d</li></ol></li></ul></li><li>e</li></ul>",
        ),
        ("1. a\n  - b\n2. c", "<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>"),
        ("3) a\n\n4) b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("- a\n\n\tb\n\n  ```\n  c\n  ```", "<ul><li><p>a</p><p>b</p><pre><code>c</code></pre></li></ul>"),
        ("> a\n> > b\n\nc", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>"),
        ("a\n---\nb", "<p>a</p><hr><p>b</p>"),
        ("```py\na < b\n\n  c\n```\nd", "<pre><code>a &lt; b\n\n  c</code></pre><p>d</p>"),
        ("````\n```\n````\n~~~\nopen", "<pre><code>```</code></pre><pre><code>open</code></pre>"),
        (
            "|a|b|\n|-|:-:|\n|1 \\| 2|`x`|\n|3|4|5|\n\nc",
            '<table><thead><tr><th>a</th><th class="center">b</th></tr></thead><tbody><tr><td>1 | 2</td>'
            '<td class="center"><code>x</code></td></tr><tr><td>3</td><td class="center">4 | 5</td></tr></tbody>'
            "</table><p>c</p>",
        ),
        ("a | b\nc", "<p>a | b\nc</p>"),
        ('[a](https://b.org/c "d") <e>', '<p><a href="https://b.org/c">a</a> &lt;e&gt;</p>'),
        (
            "see https://a.org/b_c_(d), or (http://e.org).",
            '<p>see <a href="https://a.org/b_c_(d)">https://a.org/b_c_(d)</a>, or (<a href="http://e.org/">http://e.org</a>).</p>',
        ),
        ("*a [b*](https://c.org)*", '<p><em>a <a href="https://c.org/">b*</a></em></p>'),
        ("[https://a.org](https://b.org)", '<p><a href="https://b.org/">https://a.org</a></p>'),
        ("![a](https://b.org/c.png)", '<p>!<a href="https://b.org/c.png">a</a></p>'),
        ("<b>&lt;&amp;</b>", "<p>&lt;b&gt;&amp;lt;&amp;amp;&lt;/b&gt;</p>"),
    ],
)
def test_markdown(page: Page, text: str, html: str) -> None:
    assert plain_html(page, text) == html


ATTACKS = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 2'>",
    "<svg/onload=window.hit=3>",
    "[a](javascript:window.hit=4)",
    "[a](JaVaScRiPt:window.hit=4)",
    "[a](java\tscript:window.hit=4)",
    "[a](&#106;avascript:window.hit=4)",
    "[a](\\javascript:window.hit=4)",
    "[a](<javascript:window.hit=4>)",
    "[a](data:text/html,<script>window.hit=5</script>)",
    "[a](vbscript:x) [a](file:///etc/passwd) [a](blob:x) [a](//evil.org) [a](/stats) [a](stats) [a](#x)",
    "<javascript:window.hit=4> <data:text/html,x>",
    "[a](https://b.org/\"onmouseover='window.hit=6')",
    '[a](https://b.org "\' onclick=window.hit=7")',
    "![a](javascript:window.hit=4)",
    '```"><script>window.hit=8</script>\n</code></pre><img src=x onerror=window.hit=9>\n```',
    "| <img src=x onerror=window.hit=1> | [a](javascript:x) |\n|---|---|\n| <script>x</script> | b |",
    "# <img src=x onerror=window.hit=1>\n> - <iframe src=javascript:window.hit=1>",
    "[a]: javascript:window.hit=4\n[a]",
    "\ufffc0\ufffc\ufffc99999\ufffc",
    "`\ufffc0\ufffc`",
    "[__proto__](https://a.org) constructor",
]


def test_attacks(page: Page) -> None:
    for attack, result in zip(ATTACKS, render(page, *ATTACKS), strict=True):
        check_harmless(result)
        assert all(href.startswith("https://b.org/") or href == "https://a.org/" for href, _, _ in result["links"]), (
            attack
        )
    assert page.evaluate("window.hit") is None


def check_harmless(result: dict[str, Any]) -> None:
    """Only elements and attributes of the list, and links that lead to other sites."""
    assert set(result["elements"]) <= ELEMENTS
    assert set(result["attributes"]) <= ATTRIBUTES
    for href, rel, target in result["links"]:
        assert re.match(r"https?://|mailto:", href)
        assert (rel, target) == ("noopener noreferrer", "_blank")


WORD = "⟨{}⟩"
FRAGMENTS = [
    *"* ** *** _ __ ~~ ` `` ``` ~~~ [ ] ( ) < > # ## - + 1. 2) | |- :-: \\ ! & &lt; --- *** === ![ ]( &#106;".split(),
    *"](https://a.org) ](javascript:x) https://b.org/c_d <https://c.org> <script> javascript:alert(1) é🙂".split(),
    *(" ", "  ", "    ", "\t", "\n", "\n\n", "\n- ", "\n  - ", "\n1. ", "\n> ", "> > ", "\n```\n", "\n```js\n"),
    *("\n| a | b |\n|---|---|\n", "<img src=x onerror=y>", "\u202e", "\ufffc0\ufffc", "\r\n", "\x00"),
]


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, list[str], list[int]]:
    """A text of fragments with numbered words between them, the words, and the lengths of pieces."""
    fragments = draw(st.lists(st.sampled_from(FRAGMENTS), max_size=40))
    words = [WORD.format(number) for number in range(len(fragments))]
    text = "".join(part for pair in zip(fragments, words, strict=True) for part in pair)
    return text, words, draw(st.lists(st.integers(1, 30), max_size=30))


def check_documents(page: Page, documents: list[tuple[str, list[str], list[int]]]) -> None:
    """Check texts, with the words that they must show and the lengths of the pieces in which they arrive."""
    variants = [[text, lengths] for text, _, pieces in documents for lengths in ([], pieces)]
    results = page.evaluate(RENDER, variants)
    for (text, words, _), whole, in_pieces in zip(documents, results[::2], results[1::2], strict=True):
        check_harmless(whole)
        assert whole == in_pieces, text  # however it arrives
        check_words(text, words, whole["text"])


def check_words(text: str, words: list[str], shown: str) -> None:
    """Check that all words are shown in their order, except in addresses."""
    position = 0
    for word in words:
        if word not in shown:
            assert is_in_address(word, text), word
            continue
        position = shown.find(word, position)
        assert position >= 0, word


def is_in_address(word: str, text: str) -> bool:
    """True if a word is where Markdown does not show it: in the address of a link, or after the opening of code."""
    line = next(line for line in text.splitlines() if word in line)
    return "](" in line or re.search(r"(?:`{3,}|~{3,})", line) is not None


def test_random_markdown(page: Page) -> None:
    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(documents())
    def check(document: tuple[str, list[str], list[int]]) -> None:
        check_documents(page, [document])

    check()


@pytest.mark.slow
def test_much_random_markdown(page: Page) -> None:
    rng = random.Random(1)
    for _ in range(10):
        check_documents(page, [random_document(rng) for _ in range(100)])


def random_document(rng: random.Random) -> tuple[str, list[str], list[int]]:
    """A longer text of fragments and words than those of hypothesis."""
    fragments = rng.choices(FRAGMENTS, k=rng.randrange(1, 120))
    words = [WORD.format(number) for number in range(len(fragments))]
    text = "".join(part for pair in zip(fragments, words, strict=True) for part in pair)
    return text, words, [rng.randrange(1, 60) for _ in range(30)]


INLINE = ["*", "**", "***", "_", "__", "`", "``", "a", "b c", " ", ".", "(", "é", "\\*"]


@pytest.mark.slow
def test_emphasis_and_code_as_commonmark_has_them(page: Page) -> None:
    commonmark = MarkdownIt("commonmark", {"html": False})
    rng = random.Random(2)
    texts = ["a" + "".join(rng.choices(INLINE, k=rng.randrange(1, 14))) + "z" for _ in range(3000)]
    texts = [text for text in texts if not re.search(r"[*]{9}|_{9}", text)]  # longer runs are text here
    for text, result in zip(texts, render(page, *texts), strict=True):
        assert result["html"].replace(' dir="auto"', "") == commonmark.render(text).strip(), text


LONG = {
    "quotes": ">" * 10_000 + " a",
    "lists": "- " * 10_000 + "a",
    "quotes and lists": "> - " * 5_000 + "a",
    "nested items": "\n".join("  " * depth + "- a" for depth in range(300)),
    "emphasis": "*a _b " * 5_000,
    "stars": "*" * 10_000 + "a" + "*" * 10_000,
    "pairs of stars": "**a " * 5_000 + "b** " * 5_000,
    "brackets": "[" * 10_000 + "a" + "]" * 10_000,
    "links": "[a](" * 5_000,
    "links in links": "[" * 3_000 + "a" + "](https://b.org)" * 3_000,
    "backticks": " ".join("`" * n for n in range(1, 300)),
    "a line": "x" * 200_000,
    "a line of bars": "|" * 20_000 + "\n" + "|-" * 20_000,
    "table": "|a|b|\n|-|-|\n" + "|c|d|\n" * 5_000,
    "lines of bars": "a|b\n" * 10_000,
    "rules": "-" * 50_000 + "x",
    "lines": "a\n" * 20_000,
    "blank lines": "- a" + "\n" * 50_000 + "b",
    "headings": "# a\n" * 5_000,
    "code": "```\n" + "code\n" * 20_000,
    "parentheses": "https://a.org/" + ")" * 20_000,
    "spaces": "[a](" + " " * 50_000 + ")",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_long_texts(page: Page, name: str) -> None:
    text = LONG[name]
    [result] = render(page, text)
    check_harmless(result)
    for letter in ("a", "b", "x"):
        assert (letter in text) <= (letter in result["text"])


def test_the_work_grows_with_the_length_only(page: Page) -> None:
    """The characters that are parsed for a reply that arrives in small pieces: never more than 60 times its length."""
    counts = page.evaluate(
        """(texts) => texts.map((text) => {
          const view = new MarkdownView(document.createElement("div"), []);
          const parse = view.parse;
          let total = 0;
          view.parse = function () { total += this.open.length; parse.call(this); };
          for (let i = 0; i < text.length; i += 20) view.append(text.slice(i, i + 20));
          view.finish();
          return total / text.length;
        })""",
        ["word " * 12_000, "a paragraph of words\n\n" * 3_000, "```\n" + "some code\n" * 6_000, "- item\n" * 8_000],
    )
    assert all(count < 60 for count in counts), counts
