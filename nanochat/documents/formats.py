"""Formats that are read, by the names of files, and the reasons why files, or parts of them, are left out.

A reason is the heading of a row in the table of what was read.
"""

from __future__ import annotations

import re
from pathlib import PurePath

# --- reasons ----------------------------------------------------------------------------------------------------------
EXTRA = "need the extra `documents`: uv pip install -e '.[documents]'"
OTHER_KIND = "of kinds that are not read"
HIDDEN = "hidden"
GENERATED = "in folders of generated or foreign files"
LOCK = "lock files"
LOG = "logs (one that is named by itself is read)"
MINIFIED = "minified or generated code"
BINARY = "binary data, not text"
NO_TEXT = "without text"
SCANNED = "PDF without text (scanned pages need text recognition first)"
ENCRYPTED = "encrypted"
DAMAGED = "damaged, or not what their names say"
TOO_LARGE = "too large (--max_megabytes)"
TOO_SLOW = "took too long (--max_seconds)"
TOO_MUCH_MEMORY = "needed too much memory"
UNREADABLE = "may not be read"
OUTSIDE = "symbolic links out of the folder (--follow_links reads them)"
BROKEN = "symbolic links that lead nowhere"
SPECIAL = "pipes, sockets or devices"
DUPLICATE = "the same text as another"
NEAR_DUPLICATE = "almost the same text as another (--similarity)"
REPEATED = "nothing but text that other files have, too"


class ReadFailure(Exception):
    """A file that cannot be read, or has nothing to read. `reason`: one of this module; `detail`: about this file."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)  # both, so that it can be sent to another process
        self.reason = reason
        self.detail = detail


# --- formats ----------------------------------------------------------------------------------------------------------

MARKDOWN = (".md", ".markdown", ".mdown", ".mkd", ".mdx", ".qmd", ".rmd")
TEXT = (".txt", ".text", ".asc", ".adoc", ".asciidoc", ".srt", ".vtt")
LOGS = (".log",)
HTML = (".html", ".htm", ".xhtml")
CSV = (".csv", ".tsv")
CODE = tuple(
    ".py .pyi .js .mjs .cjs .ts .tsx .jsx .java .kt .kts .scala .groovy .c .h .cc .cpp .cxx .hh .hpp .hxx .cu "
    ".cuh .m .mm .cs .fs .vb .go .rs .rb .php .pl .pm .lua .r .jl .swift .dart .hs .ml .mli .ex .exs .erl .clj "
    ".cljs .lisp .el .scm .sh .bash .zsh .fish .ps1 .bat .sql .proto .graphql .vue .svelte "
    ".cmake .mk .gradle .nix .zig .nim .f90 .f .pas .asm .s .v .sv .vhd .tcl .yaml .yml .toml .ini .cfg .conf "
    ".xml .xsd .xsl .tf .dockerfile".split()
)
PANDOC_FORMATS = {  # suffix: pandoc's name of the format
    ".rst": "rst",
    ".org": "org",
    ".tex": "latex",
    ".latex": "latex",
    ".docx": "docx",
    ".epub": "epub",
    ".odt": "odt",
    ".rtf": "rtf",
    ".fb2": "fb2",
    ".textile": "textile",
    ".mediawiki": "mediawiki",
    ".typ": "typst",
}
PDF = ".pdf"
FORMATS: dict[str, str] = {  # suffix: name of the format
    **dict.fromkeys(MARKDOWN, "markdown"),
    **dict.fromkeys(TEXT, "text"),
    **dict.fromkeys(LOGS, "text"),
    **dict.fromkeys(HTML, "html"),
    **dict.fromkeys(CSV, "csv"),
    **dict.fromkeys(CODE, "code"),
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".ipynb": "notebook",
    ".parquet": "parquet",
    PDF: "pdf",
    **PANDOC_FORMATS,
}
SHOWN = "md, txt, rst, html, org, tex, csv, json, jsonl, parquet, ipynb, docx, pdf, epub, odt, rtf and source code"
# Names without a suffix are text if they look so: README, LICENSE, Makefile.
_GENERATED_FOLDERS = set(
    "node_modules bower_components jspm_packages __pycache__ site-packages dist-packages vendor third_party build dist "
    "target out _build htmlcov venv env virtualenv Pods DerivedData".split()
)
_GENERATED_SUFFIXES = (".egg-info", ".dist-info", ".app", ".framework")
_LOCK_NAMES = set(
    "package-lock.json npm-shrinkwrap.json pnpm-lock.yaml bun.lockb go.sum flake.lock packages.lock.json".split()
)
_MINIFIED = re.compile(r"(?i)[.-]min\.(?:js|css|mjs|html)$|\.bundle\.js$|\.chunk\.js$")


def format_of(path: PurePath) -> str | None:
    """Return the name of a file's format, None if it is not read.

    >>> format_of(PurePath("a/Notes.MD")), format_of(PurePath("README")), format_of(PurePath("cat.jpg"))
    ('markdown', 'text', None)
    """
    suffix = path.suffix.lower()
    return "text" if not suffix else FORMATS.get(suffix)


def reason_to_leave_out(path: PurePath) -> str | None:
    """Return why a file of a folder is left out by its name alone, None if it is read."""
    name = path.name
    if name in _LOCK_NAMES or path.suffix.lower() == ".lock":
        return LOCK
    if path.suffix.lower() in LOGS:
        return LOG
    if _MINIFIED.search(name):
        return MINIFIED
    return None if format_of(path) else OTHER_KIND


def reason_to_leave_folder_out(name: str) -> str | None:
    """Return why a folder in the source is left out by its name, None if it is searched."""
    if name.startswith("."):
        return HIDDEN
    if name in _GENERATED_FOLDERS or name.endswith(_GENERATED_SUFFIXES):
        return GENERATED
    return None
