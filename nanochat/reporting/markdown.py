r"""Numbers and arbitrary text as Markdown that GitHub renders literally: tables, fences and escapes.

>>> format_number(0.98764), format_number(560_988_160), format_duration(3725)
('0.9876', '561M', '1h 02m')
>>> print(format_table(["name", "value"], [["a|b", "1"]]))
| name | value |
| --- | --- |
| a\|b | 1 |
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence

from nanochat.common import visible

# Characters that Markdown or GitHub's extensions (tables, HTML, mathematics, strikethrough, entities) interpret. An
# underscore inside a word has no effect and is common in nanochat's names, so it stays readable in the source.
_ACTIVE = re.compile(r"[\\`*\[\]<>|~$&#]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")
_OPENS_BLOCK = re.compile(r"^(\d{0,9})([-+.)])(?=[-\s]|$)")
_LINE_BREAKS = re.compile(r"\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")


def format_number(value: float | None) -> str:
    """Return a number with four significant digits and thousands separators; from a million on with M, B or T."""
    if value is None or not math.isfinite(value):
        return "not finite"
    if isinstance(value, bool):
        return "yes" if value else "no"
    size = abs(value)
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if size >= unit:
            return f"{value / unit:.3g}{letter}" if size < 999.5e12 else f"{value:.3g}"
    if isinstance(value, int) or size >= 1000 or size == 0:
        return f"{value:,.0f}"
    return f"{value:#.4g}".rstrip(".") if size >= 1e-3 else f"{value:.3g}"


def format_duration(seconds: float) -> str:
    """Return seconds as `4.2s`, `3m 05s` or `33h 12m`."""
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    if seconds < 3599.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes}m {rest:02d}s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}h {minutes:02d}m"


def to_printable(text: str) -> str:
    r"""Return text that cannot control a terminal: line breaks become `\n`, control characters become `\x1b`."""
    return visible(_LINE_BREAKS.sub("\n", text))


def wrap_text(text: str, width: int, indent: int = 0) -> str:
    """Return printable text with long lines wrapped at spaces. Continuation lines are indented by `indent`."""
    lines = to_printable(text).expandtabs(4).split("\n")
    wrapper = textwrap.TextWrapper(
        width,
        subsequent_indent=" " * indent,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join("\n".join(wrapper.wrap(line)) for line in lines)


def escape(text: str) -> str:
    """Return text as one line of Markdown for a paragraph, a list item, a heading or a table cell."""
    line = " ".join(to_printable(text).split())
    return _OPENS_BLOCK.sub(r"\1\\\2", _ACTIVE.sub(r"\\\g<0>", line))


def fence(text: str, width: int = 100) -> str:
    """Return text as a fenced block, wrapped at `width`. The fence is longer than any run of backticks inside."""
    text = wrap_text(text, width).strip("\n")
    ticks = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{ticks}text\n{text}\n{ticks}"


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    cells = ([cell if index == 1 else escape(cell) for cell in line] for index, line in enumerate(lines))
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
