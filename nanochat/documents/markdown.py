"""Markdown to blocks, through the HTML that markdown-it makes of it; front matter, and text that may be Markdown."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from nanochat.documents.html_blocks import HtmlText, read_html
from nanochat.documents.plain_text import read_plain_text

# A block of settings at the beginning of a file, as generators of web pages have it: YAML or TOML.
_FRONT_MATTER = re.compile(r"\s*(---|\+\+\+)[ \t]*\n(.{0,20000}?\n)??(?:\1|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_SETTING = re.compile(r"^[\w-]+[ \t]*[:=]", re.MULTILINE)
_TITLE = re.compile(r"""^title[ \t]*[:=][ \t]*(["']?)(.+?)\1[ \t]*$""", re.MULTILINE | re.IGNORECASE)
_LOOKS_LIKE_MARKDOWN = re.compile(
    r"^(?:#{1,6} \S|```|\|.+\|[ \t]*$|(?:\d+\.|[-*]) .*\*\*)|\[[^\[\]\n]{1,200}\]\([^()\s]{1,300}\)", re.MULTILINE
)


def read_markdown(text: str) -> HtmlText:
    """Return the blocks of Markdown, and the title that its front matter gives, else "".

    >>> page = read_markdown("---\\ntitle: Notes\\n---\\n# Rivers\\n\\nThey *flow*.\\n")
    >>> page.title, [block.text for block in page.blocks]
    ('Notes', ['Rivers', 'They flow.'])
    """
    title, body = remove_front_matter(text)
    html = _parser().render(body)
    return HtmlText(title, read_html(html, is_from_markdown=True).blocks)


def read_text(text: str) -> HtmlText:
    """Return the blocks of a text of unknown marks, as a column of a table has it: Markdown if it looks so."""
    if _LOOKS_LIKE_MARKDOWN.search(text):
        return read_markdown(text)
    return HtmlText("", read_plain_text(text))


def remove_front_matter(text: str) -> tuple[str, str]:
    """Return the title in the front matter of a text, or "", and the text without it."""
    match = _FRONT_MATTER.match(text)
    if not match or not _SETTING.search(match[2] or ""):
        return "", text
    title = _TITLE.search(match[2])
    return (title[2].strip() if title else ""), text[match.end() :]


@cache
def _parser() -> Any:
    """Return the parser: CommonMark with tables, strikethrough, footnotes, definition lists and formulas."""
    from markdown_it import MarkdownIt
    from mdit_py_plugins.deflist import deflist_plugin
    from mdit_py_plugins.dollarmath import dollarmath_plugin
    from mdit_py_plugins.footnote import footnote_plugin

    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    parser.use(footnote_plugin).use(deflist_plugin)
    parser.use(dollarmath_plugin, allow_space=False, allow_digits=False)
    for name in ("math_inline", "math_inline_double", "math_block"):
        parser.add_render_rule(name, _keep_formula)
    return parser


def _keep_formula(_: Any, tokens: Any, index: int, *__: Any) -> str:
    """Render a formula as it was written."""
    from markdown_it.common.utils import escapeHtml

    token = tokens[index]
    mark = token.markup or "$"
    text = escapeHtml(f"{mark}{token.content.strip()}{mark}")
    return f"<p>{text}</p>\n" if token.type.startswith("math_block") else text
