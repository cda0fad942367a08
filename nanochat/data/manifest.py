"""The manifest of a data set: the names, sizes and SHA-256 of its shards, in `manifest.json`.

    {"format": 1, "source": ..., "train": [names], "validation": name, "files": {name: {...}}, "recipe": {...}}

A data set may come from someone else, so its manifest is not trusted: `find_faults` checks its whole schema before
anything is read or deleted. The name of a shard is a plain file name, and a shard is a regular file of the data set's
own folder: a symbolic link that leads out of the folder is refused (the folder itself may be a link).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanochat.common import UserError, base_dir, write_json_atomic
from nanochat.system.json_text import parse_json

FORMAT = 1
MAX_MANIFEST_BYTES = 64_000_000  # a data set of 200,000 shards has fewer
MAX_SOURCE_CHARS = 1_000
MAX_SHARD_BYTES = 1 << 44  # no file is larger than 16 TiB
MAX_SHARD_DOCUMENTS = 1 << 40

_SHARD_NAME = re.compile(r"(?=.{1,200}\Z)[A-Za-z0-9_][A-Za-z0-9_.-]*\.parquet")
_SHARD_NAME_RULE = "must be a plain file name of letters, digits, '_', '-' and '.', at most 200, that ends in .parquet"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ShardInfo:
    """Size and contents of a shard, as the manifest records them."""

    documents: int  # number of rows
    bytes: int  # size of the file
    sha256: str  # of the file, in hexadecimal


@dataclass(frozen=True)
class Manifest:
    """The data set of a folder. The fields are the keys of `manifest.json`."""

    source: str  # "hub:OWNER/NAME" (Hugging Face hub), "storyworld" or "files:NAME"
    train: tuple[str, ...]  # file names of the training shards, in order
    validation: str  # file name of the validation shard
    files: dict[str, ShardInfo]  # by file name, of all shards
    recipe: dict[str, Any]  # fingerprint of the settings that determine the data; empty for a download

    def hash(self) -> str:
        """Return a SHA-256 of the names, order and contents of the shards, without source and recipe."""
        names = (*self.train, self.validation)
        contents = [(name, self.files[name].documents, self.files[name].sha256) for name in names]
        return hashlib.sha256(json.dumps([FORMAT, contents]).encode()).hexdigest()

    def save(self, data_dir: Path) -> None:
        """Write `manifest.json`. From then on this is the data set of the folder."""
        content = {"format": FORMAT, **asdict(self)}
        faults = list(find_faults(json.loads(json.dumps(content))))
        assert not faults, f"the manifest could not be read again: {faults[0]}"
        write_json_atomic(data_dir / "manifest.json", content)


def default_data_dir() -> Path:
    """Return the folder of the pretraining data: `$NANOCHAT_BASE_DIR/base_data`."""
    return base_dir() / "base_data"


def read_manifest(data_dir: Path) -> Manifest | None:
    """Read the manifest of a folder, or return None if there is none. The shards are not checked.

    Raises UserError with the first fault for a file that is not a manifest, or one of another format.
    """
    path = data_dir / "manifest.json"
    try:
        text = _read_regular_file(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        content = parse_json(text, MAX_MANIFEST_BYTES)
        faults = list(find_faults(content))
    except UserError as error:
        faults = [str(error)]
    if faults:
        more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
        raise UserError(
            f"{path} is not a data set's manifest: {faults[0]}{more}; make the data set again, with --overwrite"
        )
    files = {name: ShardInfo(**facts) for name, facts in content["files"].items()}
    return Manifest(content["source"], tuple(content["train"]), content["validation"], files, content["recipe"])


def find_faults(content: Any) -> Iterator[str]:
    """Yield one line for each fault of a manifest's parsed JSON: a missing key, a wrong type, an impossible value."""
    if not isinstance(content, dict):
        yield f"it holds {_describe(content)}, not an object"
        return
    missing = [key for key in ("format", "source", "train", "validation", "files", "recipe") if key not in content]
    yield from (f"{key} is missing" for key in missing)
    if "format" not in missing and (type(content["format"]) is not int or content["format"] != FORMAT):
        yield f"format is {_describe(content['format'])}: must be {FORMAT}"
    if missing:
        return
    source, train, validation, files = (content[key] for key in ("source", "train", "validation", "files"))
    if not _is_text(source) or len(source) > MAX_SOURCE_CHARS:
        yield f"source is {_describe(source)}: must be a text of at most {MAX_SOURCE_CHARS} characters"
    if not isinstance(content["recipe"], dict):
        yield f"recipe is {_describe(content['recipe'])}: must be an object"
    if not isinstance(files, dict):
        yield f"files is {_describe(files)}: must be an object"
        return
    for name, facts in files.items():
        if not is_shard_name(name):
            yield f"files has {_describe(name)}: {_SHARD_NAME_RULE}"
        else:
            yield from _shard_faults(name, facts)
    if not isinstance(train, list) or not train:
        yield f"train is {_describe(train)}: must be a list of at least one shard"
        train = []
    names = [(f"train[{number}]", name) for number, name in enumerate(train)]
    seen: set[str] = set()
    for key, name in [*names, ("validation", validation)]:
        if not is_shard_name(name):
            yield f"{key} is {_describe(name)}: {_SHARD_NAME_RULE}"
        elif name not in files:
            yield f"{key} is {name}, which files does not have"
        elif name in seen:
            yield f"{key} is {name} again: a shard has one place"
        else:
            seen.add(name)


def is_shard_name(name: Any) -> bool:
    """Return True if a value is a file name that a shard may have: no path, not hidden, nothing but ASCII.

    >>> [is_shard_name(name) for name in ("shard_00000.parquet", "../shard.parquet", ".parquet", "manifest.json", 7)]
    [True, False, False, False, False]
    """
    return isinstance(name, str) and _SHARD_NAME.fullmatch(name) is not None


def load_manifest(data_dir: Path | None = None) -> Manifest:
    """Read the manifest of a folder (default: `default_data_dir()`) and check that all of its shards are there.

    Raises UserError if there is no data set or a shard is missing.
    """
    folder = data_dir or default_data_dir()
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"no data set in {folder}: make one, for example with python -m nanochat.dataset -n 8")
    missing = missing_shards(manifest, folder)
    if missing:
        raise_if_link_leads_out(folder / missing[-1])
        kind = "the validation shard" if manifest.validation in missing else "a training shard"
        raise UserError(f"{folder / missing[-1]}, {kind}, is missing or cut short: make the data set again")
    return manifest


def missing_shards(manifest: Manifest, data_dir: Path) -> list[str]:
    """Return the names of shards that are not files of the recorded size in the folder; the validation shard is last.

    Raises UserError if the folder cannot be read.
    """
    folder = data_dir.resolve()

    def is_complete(name: str) -> bool:
        path = folder / name
        if path.is_symlink() and not path.resolve().is_relative_to(folder):
            return False
        return path.is_file() and path.stat().st_size == manifest.files[name].bytes

    try:
        return [name for name in (*manifest.train, manifest.validation) if not is_complete(name)]
    except OSError as error:
        raise UserError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from error


def raise_if_link_leads_out(path: Path) -> None:
    """Raise UserError if a path is a symbolic link to a file outside its folder."""
    if path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve()):
        raise UserError(
            f"{path} is a symbolic link to {os.readlink(path)}, out of the data set's folder: put the file itself there"
        )


def _shard_faults(name: str, facts: Any) -> Iterator[str]:
    if not isinstance(facts, dict) or set(facts) != {"documents", "bytes", "sha256"}:
        yield f"files has {_describe(facts)} for {name}: must be an object with documents, bytes and sha256"
        return
    for key, maximum in (("documents", MAX_SHARD_DOCUMENTS), ("bytes", MAX_SHARD_BYTES)):
        value = facts[key]
        if type(value) is not int or not 0 <= value <= maximum:
            yield f"{key} of {name} is {_describe(value)}: must be a whole number of at most {maximum}"
    if not isinstance(facts["sha256"], str) or not _SHA256.fullmatch(facts["sha256"]):
        yield f"sha256 of {name} is {_describe(facts['sha256'])}: must be 64 hexadecimal digits"


def _read_regular_file(path: Path) -> bytes:
    """Read a file of bounded size. A pipe or a device, which could block or never end, is refused."""
    raise_if_link_leads_out(path)
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is not a regular file: make the data set again")
        if status.st_size > MAX_MANIFEST_BYTES:
            raise UserError(f"{path} has {status.st_size:,} bytes: a manifest has at most {MAX_MANIFEST_BYTES:,}")
        return file.read(MAX_MANIFEST_BYTES)


def _is_text(value: Any) -> bool:
    """Return True for a string that can be written as UTF-8, so without half of a surrogate pair."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def _describe(value: Any) -> str:
    """Return a value of untrusted JSON in a few printable ASCII characters."""
    if isinstance(value, (dict, list)):
        kind = "an object" if isinstance(value, dict) else "a list"
        return f"{kind} of {len(value)} entries" if value else f"{kind} without entries"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**18:
        return "a number of more than 18 digits"  # Python refuses to print very large ones
    text = ascii(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 80 else text[:60] + "..."
