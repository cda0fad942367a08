"""The files of a folder that is imported: which are read, and one line for each kind that is not.

Rules:
  * Hidden files and folders are skipped. A folder may have any name, also `a.txt`.
  * A symbolic link to a file or folder within the source is followed, and each file is read once. One that leads out of
    the source, as to /etc/passwd, is followed with `follow_links` only. Folders that link to each other are no problem.
  * Pipes, sockets and devices are never opened.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

from nanochat.common import UserError, print0

SUFFIXES = (".txt", ".md", ".jsonl", ".parquet")

_NOTICES = {  # kind of skipped file: its notice
    "other": "{count} files of other kinds are skipped ({names})",
    "outside": "{count} symbolic links lead out of the folder: not followed without --follow_links ({names})",
    "broken": "{count} symbolic links lead nowhere ({names})",
    "special": "{count} pipes, sockets or devices are skipped ({names})",
    "unreadable": "{count} files or folders may not be read and are skipped ({names})",
}


def find_text_files(source: Path, follow_links: bool = False) -> list[Path]:
    """Return the readable files under a path, sorted by name; print what is skipped and which links are followed.

    Raises UserError if there are none.
    """
    name = f"--source {source}"
    if not source.exists():
        raise UserError(f"{name}: no such file or folder (the other sources are hub and storyworld)")
    search = FileSearch(source.resolve(), follow_links)
    if source.is_dir():
        search.run()
    elif not source.is_file():
        raise UserError(f"{name}: neither a file nor a folder; a pipe must be saved to a file first")
    else:
        search.add_file(source, source)
    paths = sorted(search.files.values())
    readable = [path for path in paths if path.suffix.lower() in SUFFIXES]
    search.skipped["other"] += set(paths) - set(readable)
    notices = [
        text.format(count=len(search.skipped[kind]), names=some_names(search.skipped[kind]))
        for kind, text in _NOTICES.items()
        if search.skipped[kind]
    ]
    if not readable and not paths and not notices:
        raise UserError(f"{name}: holds no files ({', '.join(SUFFIXES)} can be read)")
    if not readable:
        others = "".join(f"; {notice}" for notice in notices)
        raise UserError(f"{name}: none of its {len(paths)} files can be read ({', '.join(SUFFIXES)} can){others}")
    if search.num_followed:
        notices.append(f"{search.num_followed} symbolic links are followed; each file is read once")
    for notice in notices:
        print0(notice)
    return readable


def some_names(paths: Iterable[Path]) -> str:
    """Return the names of the first three paths, for a notice."""
    names = sorted(path.name for path in paths)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


class FileSearch:
    """One walk through a folder. `files` maps the real path of each file to the path under which it was found.

    `skipped`: paths by kind: "outside", "broken", "special", "unreadable", "hidden", and "folder" for the folders below
    the root whose names `is_skipped` knows, and those of `without`.
    """

    def __init__(
        self,
        root: Path,
        follow_links: bool,
        is_skipped: Callable[[str], bool] | None = None,
        without: Iterable[Path] = (),
    ) -> None:
        self.root = root
        self.follow_links = follow_links
        self._is_skipped = is_skipped
        self._without = set(without)
        self.files: dict[Path, Path] = {}
        self.skipped: defaultdict[str, list[Path]] = defaultdict(list)
        self.num_followed = 0
        self._folders_seen: set[Path] = set()
        self._links: list[Path] = []

    def run(self) -> None:
        """Walk through the folder, and then through what its links lead to, so that a file's own name comes first."""
        self._walk(self.root)
        while self._links:
            links, self._links = sorted(self._links), []
            for link in links:
                self._follow(link)

    def add_file(self, path: Path, real_path: Path) -> None:
        """Add a regular file, once, if it may be read."""
        if not os.access(path, os.R_OK):
            self.skipped["unreadable"].append(path)
        else:
            self.files.setdefault(real_path, path)

    def _walk(self, start: Path) -> None:
        waiting = [start]
        while waiting:
            folder = waiting.pop()
            real_folder = folder.resolve()
            if real_folder in self._folders_seen:
                continue
            self._folders_seen.add(real_folder)
            try:
                entries = list(os.scandir(folder))
            except OSError:
                self.skipped["unreadable"].append(folder)
                continue
            for entry in entries:
                path = folder / entry.name
                if entry.name.startswith("."):
                    self.skipped["hidden"].append(path)
                elif entry.is_symlink():
                    self._links.append(path)
                elif entry.is_dir(follow_symlinks=False):
                    is_skipped = real_folder / entry.name in self._without
                    is_skipped = is_skipped or (self._is_skipped is not None and self._is_skipped(entry.name))
                    (self.skipped["folder"] if is_skipped else waiting).append(path)
                elif entry.is_file(follow_symlinks=False):
                    self.add_file(path, real_folder / entry.name)
                else:
                    self.skipped["special"].append(path)

    def _follow(self, link: Path) -> None:
        try:
            target = link.resolve(strict=True)
            mode = target.stat().st_mode
        except (OSError, RuntimeError):  # RuntimeError: a link to itself, before Python 3.13
            self.skipped["broken"].append(link)
            return
        if not (self.follow_links or target.is_relative_to(self.root)):
            self.skipped["outside"].append(link)
        elif stat.S_ISDIR(mode):
            self.num_followed += 1
            self._walk(link)
        elif stat.S_ISREG(mode):
            self.num_followed += 1
            self.add_file(link, target)
        else:
            self.skipped["special"].append(link)
