"""Make the data set that everything trains on, in $NANOCHAT_BASE_DIR/base_data.

python -m nanochat.dataset -n 8                              # 8 shards of web text, and its validation shard
python -m nanochat.dataset --source storyworld -n 4          # the embedded data, without internet
python -m nanochat.dataset --source FOLDER_OR_FILE           # your own txt, md, jsonl and parquet files

A second call does only what is missing. A folder with another data set in it is left alone unless --overwrite is given.
The hub is reached at $HF_ENDPOINT (default https://huggingface.co), after a look into $NANOCHAT_HUB_DIR.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from tqdm import tqdm

from nanochat import report
from nanochat.common import UserError, print0
from nanochat.configurator import Settings, cli, setting
from nanochat.data.download import download_all
from nanochat.data.import_text import TextFiles
from nanochat.data.shards import (
    Documents,
    Manifest,
    ShardInfo,
    default_data_dir,
    iter_documents,
    load_manifest,
    missing_shards,
    open_split,
    read_manifest,
    read_shard_info,
    shard_paths,
    write_dataset,
    write_shards,
)

__all__ = [
    "Documents",
    "Manifest",
    "iter_documents",
    "load_manifest",
    "open_split",
    "shard_paths",
    "write_dataset",
    "write_shards",
]

HUB_REPOSITORY = "karpathy/fineweb-edu-100b-shuffle"
HUB_SHARDS = 1823  # the last one is the validation shard
MAX_BUCKETS = 256  # temporary files that are open at once while documents are shuffled
_SHUFFLE_BYTES = 256_000_000  # text that is shuffled in memory at a time
_HUB_NAME = re.compile(r"shard_\d{5}\.parquet(\.part|\.lock)?")
_MADE_NAME = re.compile(r"shard_[0-9a-f]{8}_(\d{5}|val)\.parquet")


@dataclass(frozen=True)
class Config(Settings):
    source: str = setting("hub", "hub, storyworld, or the path of a folder or file of txt, md, jsonl, parquet")
    num_shards: int = setting(
        8,
        "training shards from the hub (-1 = all 1,822) or of the storyworld",
        short="n",
        at_least=1,
        also=-1,
    )
    workers: int = setting(4, "downloads at the same time", short="w", at_least=1)
    docs_per_shard: int = setting(8192, "documents in a shard that is written here (not downloaded)", at_least=1)
    seed: int = setting(0, "of the storyworld, and of the order in which imported documents are shuffled", at_least=0)
    shuffle: bool = setting(True, "shuffle imported training documents; false keeps the order of the files")
    text_column: str = setting("text", "column of parquet and field of jsonl that holds the text")
    max_chars: int = setting(100_000, "imported documents are cut at about this many characters", at_least=100)
    overwrite: bool = setting(False, "replace the data set that is there")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source == "hub" and self.num_shards >= HUB_SHARDS:
            raise UserError(f"num_shards is {self.num_shards}: the hub has {HUB_SHARDS - 1} training shards")
        if self.source != "hub" and self.num_shards == -1:
            raise UserError("num_shards is -1: only the hub has an end; say how many")


def main(config: Config) -> None:
    """Make the data set, tell what it is, and note it for the report."""
    start = time.monotonic()
    manifest = prepare(config)
    counts = [manifest.files[name].documents for name in manifest.train]
    held_out = manifest.files[manifest.validation]
    print0(f"{default_data_dir()}: {manifest.source}, {sum(counts):,} documents in {len(counts)} training shards")
    print0(f"validation shard: {manifest.validation}, {held_out.documents:,} documents")
    size = sum(facts.bytes for facts in manifest.files.values())
    metrics = {"training documents": sum(counts), "validation documents": held_out.documents, "bytes on disk": size}
    settings = {**asdict(config), "source": manifest.source, "validation shard": manifest.validation}
    section = {"title": "Data", "seconds": time.monotonic() - start, "settings": settings, "metrics": metrics}
    report.log_section("dataset", {**section, "headline": []})


def prepare(config: Config, data_dir: Path | None = None) -> Manifest:
    """Bring the folder's data set to what the config asks for, and return its manifest.

    One process at a time works on a folder. UserError if the source cannot be had, or another data set is in the way.
    """
    folder = data_dir or default_data_dir()
    make = {"hub": _from_hub, "storyworld": _from_storyworld}.get(config.source, _from_files)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _only_writer(folder):
            for leftover in folder.glob(".*.tmp"):  # of a process that was killed
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            old = None if config.overwrite and not _readable(folder) else read_manifest(folder)
            manifest = make(config, folder, old)
            if manifest != old:
                _tidy(folder, old, manifest, config.overwrite)
            return manifest
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror or error}") from error


def _from_hub(config: Config, folder: Path, old: Manifest | None) -> Manifest:
    source = f"hub:{HUB_REPOSITORY}"
    if old and old.source != source:
        _must_overwrite(config, folder, old, source)
        old = None
    count = HUB_SHARDS - 1 if config.num_shards == -1 else config.num_shards
    if old and not config.overwrite:
        count = max(count, len(old.train))  # a second, smaller call takes nothing away
    names = [f"shard_{number:05d}.parquet" for number in (HUB_SHARDS - 1, *range(count))]
    cut_short = missing_shards(old, folder) if old else []
    for name in cut_short:
        (folder / name).unlink(missing_ok=True)
    known = {name: facts for name, facts in old.files.items() if name not in cut_short} if old else {}
    wanted = [name for name in names if name not in known]
    if wanted:
        _copy_from_mirror(wanted, folder)
        root = f"{os.environ.get('HF_ENDPOINT') or 'https://huggingface.co'}/datasets/{HUB_REPOSITORY}/resolve/main"
        print0(f"{len(wanted)} shards to bring from {root} (without internet: --source storyworld)")
        found = download_all([(f"{root}/{name}", folder / name) for name in wanted], config.workers, _check_shard)
        known.update(zip(wanted, found, strict=True))
    manifest = Manifest(source, tuple(names[1:]), names[0], {name: known[name] for name in names}, {})
    if manifest != old:
        manifest.save(folder)
    return manifest


def _check_shard(path: Path) -> ShardInfo:
    try:
        return read_shard_info(path)
    except UserError as error:
        path.unlink()  # whole, and not what it should be: another call must ask for it again
        raise UserError(f"the server sent something else than a shard as {path.name}: {error}") from error


def _copy_from_mirror(names: Iterable[str], folder: Path) -> None:
    mirror = os.environ.get("NANOCHAT_HUB_DIR")
    for name in names if mirror else ():
        stored = Path(str(mirror), HUB_REPOSITORY, name)
        if stored.is_file() and not (folder / name).exists():
            shutil.copyfile(stored, folder / f".{name}.tmp")
            os.replace(folder / f".{name}.tmp", folder / name)


def _from_storyworld(config: Config, folder: Path, old: Manifest | None) -> Manifest:
    from nanochat.data.storyworld import generate_stories  # not needed, and so not loaded, for the other sources

    def take(split: str, count: int) -> Iterator[str]:
        return itertools.islice(generate_stories(split, seed=config.seed), count)

    if old and old.source != "storyworld":
        _must_overwrite(config, folder, old, "storyworld")
    count = config.num_shards * config.docs_per_shard
    held_out = min(config.docs_per_shard, 2048)
    settings = {"seed": config.seed, "documents": [count, held_out], "docs_per_shard": config.docs_per_shard}
    recipe = _recipe(**settings, probe=[*take("train", 16), *take("val", 16)])  # the generator itself may change
    if old and old.recipe == recipe and not missing_shards(old, folder):
        return old
    written = tqdm(take("train", count), desc="writing stories", total=count, unit="", disable=None)
    return _write(written, take("val", held_out), folder, "storyworld", recipe, config)


def _from_files(config: Config, folder: Path, old: Manifest | None) -> Manifest:
    path = Path(config.source).expanduser().resolve()
    if path.is_dir() and path in (folder.resolve(), *folder.resolve().parents):
        raise UserError(f"--source {config.source}: the data set is written below it, to {folder}; name another folder")
    files = TextFiles(path, config.text_column, config.max_chars)
    source = f"files:{path.name}"
    settings = {name: getattr(config, name) for name in ("text_column", "max_chars", "docs_per_shard", "shuffle")}
    recipe = _recipe(**settings, seed=config.seed, files=files.fingerprint())
    if old and old.recipe == recipe and not missing_shards(old, folder):
        return old
    if old and old.recipe != recipe:
        same = old.source == source
        _must_overwrite(config, folder, old, f"{source} with these files and settings" if same else source)
    train, validation = files.split()
    train = tqdm(train, desc="importing", unit=" documents", disable=None)
    if config.shuffle:
        train = shuffle_on_disk(train, config.seed, 1 + files.text_bytes() // _SHUFFLE_BYTES, folder)
    manifest = _write(train, validation, folder, source, recipe, config)
    for notice in files.notices():
        print0(f"notice: {notice}")
    return manifest


def _write(
    train: Iterable[str], validation: Iterable[str], folder: Path, source: str, recipe: dict[str, Any], config: Config
) -> Manifest:
    """Write the shards under names of this recipe alone, so that those of the data set of before stay as they are."""
    prefix = f"shard_{recipe['fingerprint'][:8]}"
    per_shard = config.docs_per_shard
    return write_dataset(
        train, validation, folder, source=source, recipe=recipe, prefix=prefix, docs_per_shard=per_shard
    )


def _recipe(**settings: Any) -> dict[str, Any]:
    """What was asked for, in short: equal recipes make equal data sets."""
    return {"fingerprint": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()}


def _must_overwrite(config: Config, folder: Path, old: Manifest, source: str) -> None:
    if not config.overwrite:
        raise UserError(
            f"{folder} holds {old.source}, not {source}: --overwrite replaces it, another $NANOCHAT_BASE_DIR keeps both"
        )


def shuffle_on_disk(documents: Iterable[str], seed: int, num_buckets: int, scratch_dir: Path) -> Iterator[str]:
    """Yield the documents in a random order that depends on the seed only.

    Each document is appended to a random one of `num_buckets` temporary files (at most 256) below `scratch_dir`; then
    one bucket after the other is shuffled in memory. About 1/num_buckets of the text is in memory at a time.
    """
    rng = random.Random(seed)
    with ExitStack() as stack:
        bucket_dir = stack.enter_context(
            tempfile.TemporaryDirectory(prefix=".shuffle_", suffix=".tmp", dir=scratch_dir)
        )
        buckets = [
            stack.enter_context(open(Path(bucket_dir, str(number)), "w+", encoding="utf-8"))
            for number in range(min(num_buckets, MAX_BUCKETS))
        ]
        for text in documents:
            rng.choice(buckets).write(json.dumps(text) + "\n")
        for bucket in buckets:
            bucket.seek(0)
            texts = [json.loads(line) for line in bucket]
            rng.shuffle(texts)
            yield from texts


def _tidy(folder: Path, old: Manifest | None, new: Manifest, overwrite: bool) -> None:
    """Delete the shards that were replaced, and those that a stopped import left. What others put here stays."""

    def ours(name: str) -> bool:
        return bool(
            _MADE_NAME.fullmatch(name) or (overwrite and _HUB_NAME.fullmatch(name)) or (old and name in old.files)
        )

    for path in list(folder.iterdir()):
        if ours(path.name) and path.name not in new.files:
            path.unlink()


def _readable(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except UserError:
        return False
    return True


@contextmanager
def _only_writer(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print0(f"another process is writing to {folder}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


if __name__ == "__main__":
    cli(Config, main, __doc__)
