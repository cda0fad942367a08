"""HTML to blocks. Every format with a structure comes here: web pages, and what markdown-it and pandoc make of others.

Scripts, styles, forms and navigation are left out. If a page marks its main part (`main`, `article`), only that is
read. A table whose cells hold headings, lists or other tables is layout: its cells are read as ordinary text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

from nanochat.documents.document import Block

MAX_DEPTH = 500  # of elements in each other; a deeper one is read as part of its parent
_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_VOID = set("area base br col embed hr img input link meta param source track wbr".split())
_SKIPPED = set(
    "script style template noscript svg math iframe object form button select textarea nav aside footer dialog".split()
)
_SKIPPED_ROLES = {
    "navigation",
    "search",
    "contentinfo",
    "complementary",
    "banner",
    "menu",
    "doc-backlink",
    "doc-noteref",
}
# Words of a class or an id that name what stands around a text on a page.
_SKIPPED_CLASS = re.compile(
    r"(?:^|[\s_-])(?:navbar|navigation|breadcrumbs?|sidebar|sphinxsidebar|cookies?|headerlink|footnote-ref|footnote-back(?:ref)?|"
    r"toctree|skip-?link|sr-only|noprint|mw-editsection|related|footer)(?:$|[\s_-])"
)
_MAIN = {"main", "article"}
_LISTS = {"ul", "ol", "dir"}
_INLINE = set(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i ins kbd label mark q rp rt ruby s samp small span "
    "strike strong sub sup time tt u var wbr img br".split()
)
_BLOCKS = set(
    "address article blockquote body caption center col colgroup dd details dir div dl dt fieldset figcaption figure "
    "frameset header head h1 h2 h3 h4 h5 h6 hgroup hr html legend li link main meta ol p pre section summary table "
    "tbody td tfoot th thead title tr ul base input area embed param source track audio video picture canvas".split()
)
_KNOWN = _INLINE | _BLOCKS | _SKIPPED
_SPACES = re.compile(r"[ \t\n\r\f\v\u00a0]+")
_DEFINITION = re.compile(
    r"\0([^\0]{1,80})\0\s*[:\u2013\u2014-]\s+(\S.*)", re.DOTALL
)  # a term in bold, then its meaning


@dataclass
class HtmlText:
    """The blocks of a page, or of another text, and its own title, which may be empty."""

    title: str
    blocks: list[Block]


def read_html(text: str, is_from_markdown: bool = False) -> HtmlText:
    """Return the blocks of a page. Never raises: what is no HTML is read as a text with odd characters.

    `is_from_markdown`: an element that HTML does not have, as in "press <key>", is text that someone forgot to quote.

    >>> page = read_html("<h1>Rivers</h1><p>They <b>flow</b>.<ul><li>Nile<li>Po")
    >>> [(block.kind, block.text) for block in page.blocks]
    [('heading', 'Rivers'), ('paragraph', 'They flow.'), ('list', '- Nile\\n- Po')]
    """
    reader = _Reader(is_from_markdown)
    try:
        reader.feed(text)
        reader.close()
    except AssertionError:  # of html.parser, for some malformed declarations: what came before them is kept
        pass
    reader.finish()
    main = [block for block, is_main in reader.found if is_main]
    if sum(len(block.text) for block in main if block.kind != "heading") < 200:
        main = [block for block, _ in reader.found]
    return HtmlText(reader.title, with_headings(main))


def with_headings(blocks: list[Block]) -> list[Block]:
    """Return the blocks with the headings that each stands under."""
    path: list[Block] = []
    result = []
    for block in blocks:
        if block.kind == "heading":
            while path and path[-1].level >= block.level:
                path.pop()
        headings = tuple(heading.text for heading in path)
        result.append(Block(block.kind, block.text, headings, block.level, block.items, block.rows))
        if block.kind == "heading":
            path.append(block)
    return result


def list_block(items: list[tuple[int, str]]) -> Block:
    """Return the block of a list. An item is its depth in lists, from 0, and its text."""
    lines = [f"{'  ' * depth}- {text}" for depth, text in items]
    return Block("list", "\n".join(lines), (), items=tuple(text for _, text in items))


def table_block(rows: list[tuple[str, ...]]) -> Block:
    """Return the block of a table: its text has a line for each row, with `|` between the cells."""
    return Block("table", "\n".join(map(" | ".join, rows)), (), rows=tuple(rows))


def definition_block(term: str, definition: str) -> Block:
    """Return the block of a term and its definition."""
    return Block("definition", f"{term}: {definition}", (), items=(term, definition))


@dataclass
class _Table:
    rows: list[list[str]] = field(default_factory=list)
    is_layout: bool = False


class _Reader(HTMLParser):
    """The state of reading: open elements, the text since the last block, and the block that is being built."""

    def __init__(self, is_from_markdown: bool) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[Block, bool]] = []  # with True in the main part of the page
        self.title = ""
        self._is_from_markdown = is_from_markdown
        self._open: list[str] = []
        self._skipped_at = 0  # number of open elements with the outermost that is left out; 0: none is
        self._text: list[str] = []
        self._items: list[tuple[int, str]] = []  # of the list that is being read
        self._parts: list[str] = []  # of the item that is being read, or of a definition
        self._term: str | None = None  # whose definition is being read
        self._tables: list[_Table] = []

    # --- events of the parser -----------------------------------------------------------------------------------------

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if self._is_from_markdown and tag not in _KNOWN and not self._skipped_at:
            self._text.append(self.get_starttag_text() or "")
            return
        if tag in _VOID:
            self._void(tag)
            return
        if len(self._open) >= MAX_DEPTH:
            return
        self._close_implied(tag)
        self._open.append(tag)
        if self._skipped_at:
            return
        if tag in _SKIPPED or (tag not in ("html", "body", *_MAIN) and _is_around_the_text(dict(attrs))):
            self._skipped_at = len(self._open)
        elif tag in ("b", "strong"):
            self._text.append("\0")  # a mark, see _DEFINITION
        elif tag not in _INLINE:
            self._begin(tag, dict(attrs))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self._open:
            if self._is_from_markdown and tag not in _KNOWN and not self._skipped_at:
                self._text.append(f"</{tag}>")
            elif tag == "p" and not self._skipped_at:
                self._end_text()
            return
        while self._open:  # also elements in it that were not closed
            last = self._open[-1]
            if not self._skipped_at:
                self._end(last)
            self._open.pop()
            if self._skipped_at > len(self._open):
                self._skipped_at = 0
            if last == tag:
                return

    def handle_data(self, data: str) -> None:
        if not self._skipped_at:
            self._text.append(data.replace("\0", "\ufffd"))

    def unknown_decl(self, data: str) -> None:
        """Ignore a declaration, as of CDATA."""

    def finish(self) -> None:
        """Close what is still open."""
        while self._open:
            self.handle_endtag(self._open[-1])
        self._end_text()
        self._end_list()

    # --- elements -----------------------------------------------------------------------------------------------------

    def _void(self, tag: str) -> None:
        if self._skipped_at:
            return
        if tag == "br":
            self._text.append("\r")  # a line break that stays; those of the source are spaces
        elif tag == "hr":
            self._end_text()

    def _close_implied(self, tag: str) -> None:
        """Close elements whose end tag HTML allows to be left out."""
        if not self._open:
            return
        last = self._open[-1]
        if last == "p" and tag not in _INLINE:
            self.handle_endtag("p")
            last = self._open[-1] if self._open else ""
        siblings = {
            "li": ("li",),
            "dt": ("dt", "dd"),
            "dd": ("dt", "dd"),
            "tr": ("tr", "td", "th"),
            "option": ("option",),
        }
        siblings |= dict.fromkeys(("td", "th"), ("td", "th"))
        if last in siblings.get(tag, ()):
            self.handle_endtag(last)
            if tag == "tr" and self._open and self._open[-1] == "tr":
                self.handle_endtag("tr")

    def _begin(self, tag: str, attributes: dict[str, str | None]) -> None:
        is_in_cell = bool(self._tables) and not self._tables[-1].is_layout
        if is_in_cell and (tag in _HEADINGS or tag in ("table", "pre")):
            self._end_text()
            self._make_layout()
        if tag == "table":
            self._end_text()
            self._end_list()
            self._tables.append(_Table(is_layout=attributes.get("role") == "presentation"))
        elif tag == "tr" and is_in_cell:
            self._text.clear()  # spaces between the tags
            self._tables[-1].rows.append([])
        elif tag in ("td", "th") and is_in_cell:
            self._text.clear()
            if not self._tables[-1].rows:
                self._tables[-1].rows.append([])
        elif is_in_cell:
            self._text.append(" ")
        elif tag == "li":
            self._end_item()
        elif tag in _LISTS:
            self._end_item(self._open[:-1])
            self._end_definition()
        elif tag == "dt" and self._term is not None and not self._parts:
            self._text.clear()  # another term of the same definition
        elif tag in ("dl", "dt") or tag in _HEADINGS or tag == "pre":
            self._end_text()
            self._end_list()
            self._end_definition()
        else:
            self._end_text()

    def _end(self, tag: str) -> None:
        if tag in ("b", "strong"):
            self._text.append("\0")
            return
        if tag in _INLINE:
            return
        is_in_cell = bool(self._tables) and not self._tables[-1].is_layout
        if tag == "table":
            self._end_table()
        elif is_in_cell and tag in ("td", "th"):
            if self._tables[-1].rows:
                self._tables[-1].rows[-1].append(self._take_text().replace("\n", " "))
        elif is_in_cell:
            self._text.append(" ")
        elif tag == "title":
            self.title = self.title or self._take_text().replace("\n", " ")
        elif tag in _HEADINGS:
            if text := self._take_text().replace("\n", " "):
                self._add(Block("heading", text, (), level=_HEADINGS[tag]))
        elif tag == "pre":
            self._add_code()
        elif tag == "li":
            self._end_item()
        elif tag in _LISTS:
            self._end_item()
            if not self._is_in_list(self._open[:-1]):
                self._end_list()
        elif tag == "dt":
            term = self._take_text().replace("\n", " ")
            self._term = f"{self._term}, {term}" if self._term and not self._parts else term
        elif tag in ("dd", "dl"):
            self._end_text()
            self._end_definition()
        else:
            self._end_text()

    # --- blocks -------------------------------------------------------------------------------------------------------

    def _take_text(self, keeps_marks: bool = False) -> str:
        """Return the text since the last block, its spaces joined, and begin anew."""
        text = "".join(self._text)
        self._text.clear()
        lines = (_SPACES.sub(" ", line).strip() for line in _SPACES.sub(" ", text.replace("\r", "\1")).split("\1"))
        joined = "\n".join(lines).strip()
        return joined if keeps_marks else joined.replace("\0", "")

    def _end_text(self) -> None:
        """Make a block of the text since the last one, or a part of the item, definition or cell that is open."""
        if self._tables and not self._tables[-1].is_layout:
            return
        marked = self._take_text(keeps_marks=True)
        text = marked.replace("\0", "").strip()
        if not text:
            return
        if self._is_in_list(self._open) or self._term is not None:
            self._parts.append(text)
        elif "blockquote" in self._open:
            self._add(Block("quote", text, ()))
        elif match := _DEFINITION.fullmatch(re.sub(r"[:\u2013\u2014-]\0", r"\0:", marked)):
            term, definition = match[1].strip(), match[2].replace("\0", "").strip()
            self._add(Block("definition", text, (), items=(term, definition)))
        else:
            self._add(Block("paragraph", text, ()))

    def _end_item(self, path: list[str] | None = None) -> None:
        """Make an item of the text of the list since the last one. `path`: the elements that the item is in."""
        self._end_text()
        depth = sum(tag in _LISTS for tag in (self._open if path is None else path))
        if self._parts and depth:
            self._items.append((depth - 1, " ".join(self._parts)))
            self._parts.clear()

    def _end_list(self) -> None:
        if self._is_in_list(self._open):
            self._end_item()
        if self._items:
            block = list_block(self._items)
            self._items = []
            self._add(block)

    def _end_definition(self) -> None:
        """Make a block of a term and what is known of its definition; what comes later in it are ordinary blocks."""
        if self._term is None:
            return
        self._end_text()
        term, self._term = self._term, None
        definition = "\n".join(self._parts)
        self._parts.clear()
        if term and definition:
            self._add(definition_block(term, definition))
        elif term or definition:
            self._add(Block("paragraph", term or definition, ()))

    def _add_code(self) -> None:
        text = "".join(self._text).replace("\0", "").replace("\r", "\n").strip("\n").rstrip()
        self._text.clear()
        if text.strip():
            self._add(Block("code", text, ()))

    def _make_layout(self) -> None:
        """Turn the open table into ordinary text: a cell of it has what no cell of a table of data has."""
        table = self._tables[-1]
        table.is_layout = True
        for row in table.rows:
            if text := " ".join(filter(None, row)):
                self._add(Block("paragraph", text, ()))
        self._end_text()

    def _end_table(self) -> None:
        if not self._tables:
            return
        self._end_text()
        table = self._tables.pop()
        if table.is_layout:
            return
        self._text.clear()
        rows = [tuple(row) for row in table.rows if any(row)]
        if len(rows) >= 2 and max(map(len, rows)) >= 2:
            width = max(map(len, rows))
            self._add(table_block([row + ("",) * (width - len(row)) for row in rows]))
        else:
            for row in rows:
                self._add(Block("paragraph", " ".join(filter(None, row)), ()))

    def _add(self, block: Block) -> None:
        if block.kind != "list":
            self._end_list()
        is_main = any(tag in _MAIN for tag in self._open)
        self.found.append((block, is_main))

    @staticmethod
    def _is_in_list(path: list[str]) -> bool:
        return any(tag in _LISTS for tag in path)


def _is_around_the_text(attributes: dict[str, str | None]) -> bool:
    """Return True for an element that its attributes describe as navigation, or as hidden."""
    if attributes.get("role") in _SKIPPED_ROLES or attributes.get("aria-hidden") == "true" or "hidden" in attributes:
        return True
    names = f"{attributes.get('class') or ''} {attributes.get('id') or ''}".lower()
    return bool(names.strip()) and _SKIPPED_CLASS.search(names) is not None
