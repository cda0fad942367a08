"""Download or build the data set of pretraining, in $NANOCHAT_BASE_DIR/base_data.

    python -m nanochat.dataset -n 8                              # 8 shards of web text, and its validation shard
    python -m nanochat.dataset --source storyworld -n 4          # the embedded data, without internet
    python -m nanochat.dataset --source FOLDER_OR_FILE           # your own txt, md, jsonl and parquet files

Your own text may be UTF-8, UTF-16 or UTF-32; jsonl has an object on each line, parquet a column of strings, bytes or a
dictionary (--text_column). Nulls are left out, bytes that are no text replaced, and both are counted. Symbolic links
within the folder are followed, each file once; those that lead out of it are named, and read with --follow_links.

A second call adds only the missing shards. A different data set in the folder, also a storyworld of another seed, is
replaced only with --overwrite. Web text comes from the Hugging Face hub: its shards are copied from $NANOCHAT_HUB_DIR
if they are there, else downloaded from $HF_ENDPOINT (default https://huggingface.co). The parts of this program are in
`nanochat/data/`.
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
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from nanochat import report
from nanochat.common import UserError, expand_path, print0
from nanochat.configurator import Settings, cli, setting
from nanochat.data.download import download_all
from nanochat.data.import_text import TextFiles
from nanochat.data.manifest import raise_if_link_leads_out
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
from nanochat.data.source_files import some_names
from nanochat.system.credentials import hub_address
from nanochat.system.locks import file_lock

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
MAX_STORYWORLD_VALIDATION = 2048  # documents
MAX_BUCKETS = 256  # temporary files that are open at once while documents are shuffled
_SHUFFLE_BYTES = 256_000_000  # bytes of text shuffled in memory at a time
_HUB_SHARD = re.compile(r"shard_\d{5}\.parquet(\.part|\.lock)?")
_WRITTEN_SHARD = re.compile(r"shard_[0-9a-f]{8}_(\d{5}|val)\.parquet")


@dataclass(frozen=True)
class Config(Settings):
    source: str = setting(
        "hub", "hub (Hugging Face), storyworld (embedded), or a folder or file of txt, md, jsonl, parquet", names="path"
    )
    num_shards: int = setting(
        8,
        "number of training shards, from the hub (-1 = all 1,822) or of the storyworld",
        short="n",
        at_least=1,
        or_value=-1,
    )
    workers: int = setting(4, "number of parallel downloads", short="w", at_least=1)
    docs_per_shard: int = setting(8192, "documents per shard of the storyworld or of your own files", at_least=1)
    seed: int = setting(0, "seed of the storyworld, and of the order of imported documents", at_least=0)
    shuffle: bool = setting(True, "shuffle imported training documents; false = keep the order of the files")
    text_column: str = setting("text", "parquet column or jsonl field that holds the text")
    follow_links: bool = setting(
        False, "follow symbolic links that lead out of the source folder; those within it always are"
    )
    max_chars: int = setting(100_000, "cut imported documents at about this many characters", at_least=100)
    overwrite: bool = setting(False, "replace a different data set in the folder")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.source == "hub" and self.num_shards >= HUB_SHARDS:
            raise UserError(
                f"num_shards is {self.num_shards}: the hub has {HUB_SHARDS - 1} training shards (-1 = all of them)"
            )
        if self.source != "hub" and self.num_shards == -1:
            raise UserError("num_shards is -1: only the hub has a fixed number of shards; set one of at least 1")


def main(config: Config) -> None:
    """Prepare the data set, print its size, and write its section of the report."""
    start = time.monotonic()
    report.check_results_writable("dataset")
    manifest = prepare(config)
    num_train = sum(manifest.files[name].documents for name in manifest.train)
    num_validation = manifest.files[manifest.validation].documents
    print0(f"{default_data_dir()}: {manifest.source}, {num_train:,} documents in {len(manifest.train)} training shards")
    print0(f"validation shard: {manifest.validation}, {num_validation:,} documents")
    report.log_section(
        "dataset",
        {
            "title": "Data",
            "seconds": time.monotonic() - start,
            "settings": {
                **asdict(config),
                "source": manifest.source,
                "validation shard": manifest.validation,
            },
            "metrics": {
                "training documents": num_train,
                "validation documents": num_validation,
                "bytes on disk": sum(info.bytes for info in manifest.files.values()),
            },
            "headline": [],
        },
    )


def prepare(config: Config, data_dir: Path | None = None) -> Manifest:
    """Download or write the shards of the configured data set that the folder lacks; return the manifest.

    A lock lets only one process at a time write to a folder. Raises UserError if the source is not available, or if the
    folder has a different data set and `overwrite` is not set.
    """
    prepare_source = {"hub": _from_hub, "storyworld": _from_storyworld}.get(config.source, _from_files)
    return replace_dataset(
        lambda folder, old: prepare_source(config, folder, old), data_dir or default_data_dir(), config.overwrite
    )


def replace_dataset(
    make: Callable[[Path, Manifest | None], Manifest], folder: Path, overwrite: bool = False
) -> Manifest:
    """Make the data set of a folder with `make(folder, old manifest)`, then delete the shards that it replaces.

    One process at a time. `make` refuses to replace another data set; `overwrite` is for one that cannot be read.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _write_lock(folder):
            for leftover in folder.glob(".*.tmp"):  # of a process that was killed
                if leftover.is_dir() and not leftover.is_symlink():
                    shutil.rmtree(leftover)
                else:
                    leftover.unlink()
            old = None if overwrite and not _has_readable_manifest(folder) else read_manifest(folder)
            manifest = make(folder, old)
            if manifest != old:
                _delete_replaced_shards(folder, old, manifest, overwrite)
                _print_kept_shards(folder, manifest)
            return manifest
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror or error}") from error


def _from_hub(config: Config, folder: Path, old: Manifest | None) -> Manifest:
    source = f"hub:{HUB_REPOSITORY}"
    if old and old.source != source:
        require_overwrite(config.overwrite, folder, old, source)
        old = None
    num_train = HUB_SHARDS - 1 if config.num_shards == -1 else config.num_shards
    if old and not config.overwrite:
        num_train = max(num_train, len(old.train))  # a second call for fewer shards removes none
    train_names = [f"shard_{number:05d}.parquet" for number in range(num_train)]
    validation_name = f"shard_{HUB_SHARDS - 1:05d}.parquet"
    names = [validation_name, *train_names]

    for name in names:
        raise_if_link_leads_out(folder / name)
    infos: dict[str, ShardInfo] = {}
    if old:
        damaged = missing_shards(old, folder)
        for name in damaged:
            (folder / name).unlink(missing_ok=True)
        infos = {name: info for name, info in old.files.items() if name not in damaged}
    missing = [name for name in names if name not in infos]
    if missing:
        _copy_from_mirror(missing, folder)
        root = f"{hub_address()}/datasets/{HUB_REPOSITORY}/resolve/main"
        print0(f"downloading {len(missing)} shards from {root} (without internet: --source storyworld)")
        files = [(f"{root}/{name}", folder / name) for name in missing]
        infos.update(zip(missing, download_all(files, config.workers, _checked_shard_info), strict=True))

    manifest = Manifest(source, tuple(train_names), validation_name, {name: infos[name] for name in names}, {})
    if manifest != old:
        manifest.save(folder)
    return manifest


def _checked_shard_info(path: Path) -> ShardInfo:
    try:
        return read_shard_info(path)
    except UserError as error:
        path.unlink()  # so that the next call downloads it again
        raise UserError(f"the server sent a file as {path.name} that is not a shard: {error}") from error


def _copy_from_mirror(names: Iterable[str], folder: Path) -> None:
    mirror = os.environ.get("NANOCHAT_HUB_DIR")
    if not mirror:
        return
    for name in names:
        mirrored = expand_path(mirror, "NANOCHAT_HUB_DIR") / HUB_REPOSITORY / name
        if mirrored.is_file() and not (folder / name).exists():
            temporary = folder / f".{name}.tmp"
            try:
                shutil.copyfile(mirrored, temporary)
                os.replace(temporary, folder / name)
            finally:
                temporary.unlink(missing_ok=True)


def _from_storyworld(config: Config, folder: Path, old: Manifest | None) -> Manifest:
    from nanochat.data.storyworld import generate_stories  # the other sources do not need it

    def first_stories(split: str, count: int) -> Iterator[str]:
        return itertools.islice(generate_stories(split, seed=config.seed), count)

    num_train = config.num_shards * config.docs_per_shard
    num_validation = min(config.docs_per_shard, MAX_STORYWORLD_VALIDATION)
    # Some stories, because the generator itself may change between two versions.
    probe = [*first_stories("train", 16), *first_stories("val", 16)]

    def with_shards(num_shards: int) -> dict[str, str]:
        return recipe_of(
            seed=config.seed,
            documents=[num_shards * config.docs_per_shard, num_validation],
            docs_per_shard=config.docs_per_shard,
            probe=probe,
        )

    recipe = with_shards(config.num_shards)
    if old and old.source != "storyworld":
        require_overwrite(config.overwrite, folder, old, "storyworld")
    elif old and old.recipe != with_shards(len(old.train)):
        require_overwrite(config.overwrite, folder, old, "storyworld with these settings, or of this version")
    if old and old.recipe == recipe and not missing_shards(old, folder):
        return old
    train = tqdm(first_stories("train", num_train), desc="writing stories", total=num_train, unit="", disable=None)
    return write_new_shards(
        train, first_stories("val", num_validation), folder, "storyworld", recipe, old, config.docs_per_shard
    )


def _from_files(config: Config, folder: Path, old: Manifest | None) -> Manifest:
    path = Path(config.source)
    if path.is_file() or path.is_dir():
        path = path.resolve()  # not for a pipe, which has no real path
    if path.is_dir() and path in (folder.resolve(), *folder.resolve().parents):
        raise UserError(
            f"--source {config.source}: contains the folder {folder} that is written to; name another folder"
        )
    files = TextFiles(path, config.text_column, config.max_chars, config.follow_links)
    source = f"files:{ascii(path.name)[1:-1] if not path.name.isprintable() else path.name[:200]}"
    recipe = recipe_of(
        text_column=config.text_column,
        max_chars=config.max_chars,
        docs_per_shard=config.docs_per_shard,
        shuffle=config.shuffle,
        seed=config.seed,
        files=files.fingerprint(),
    )
    if old and old.recipe == recipe and not missing_shards(old, folder):
        return old
    if old and old.recipe != recipe:
        is_same_source = old.source == source
        require_overwrite(
            config.overwrite, folder, old, f"{source} with these files and settings" if is_same_source else source
        )
    documents, validation = files.split()
    train = iter(tqdm(documents, desc="importing", unit=" documents", disable=None))
    if config.shuffle:
        num_buckets = 1 + files.text_bytes() // _SHUFFLE_BYTES
        train = shuffle_on_disk(train, config.seed, num_buckets, folder)
    manifest = write_new_shards(train, validation, folder, source, recipe, old, config.docs_per_shard)
    for notice in files.notices():
        print0(f"notice: {notice}")
    return manifest


def write_new_shards(
    train: Iterable[str],
    validation: Iterable[str],
    folder: Path,
    source: str,
    recipe: dict[str, str],
    old: Manifest | None,
    docs_per_shard: int = 8192,
) -> Manifest:
    """Write both splits. The shards' names contain the recipe's hash, so no shard of another data set is replaced.

    If it fails, as on a full disk, the new shards and the temporary files are removed.
    """
    prefix = f"shard_{recipe['fingerprint'][:8]}"
    try:
        return write_dataset(
            train,
            validation,
            folder,
            source=source,
            recipe=recipe,
            prefix=prefix,
            docs_per_shard=docs_per_shard,
        )
    except BaseException:
        for path in folder.glob(f"{prefix}_*.parquet"):
            if old is None or path.name not in old.files:
                path.unlink()
        raise
    finally:
        if isinstance(train, Generator):
            train.close()  # removes the temporary files of the shuffle, also while an error refers to them


def recipe_of(**settings: Any) -> dict[str, str]:
    """Return the fingerprint of the settings that determine a data set: equal recipes give equal data sets."""
    return {"fingerprint": hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()}


def require_overwrite(overwrite: bool, folder: Path, old: Manifest, source: str) -> None:
    """Raise UserError if a folder holds another data set that may not be replaced."""
    if not overwrite:
        raise UserError(
            f"{folder} holds {old.source}, not {source}: --overwrite replaces it, another $NANOCHAT_BASE_DIR keeps both"
        )


def shuffle_on_disk(documents: Iterable[str], seed: int, num_buckets: int, scratch_dir: Path) -> Iterator[str]:
    """Yield the documents in a random order that depends on the seed only.

    Each document is appended to a random one of `num_buckets` temporary files (at most 256) below `scratch_dir`; then
    the files are read and shuffled in memory, one after the other. About 1/num_buckets of the text is in memory at a
    time.
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


def _delete_replaced_shards(folder: Path, old: Manifest | None, new: Manifest, overwrite: bool) -> None:
    """Delete the shards of the old data set and those that an interrupted import of the new one has left.

    With `overwrite` also those of any other data set, whose manifest may be lost. Other files of the user are kept.
    """
    own_prefix = f"shard_{new.recipe.get('fingerprint', '')[:8]}_"
    for path in list(folder.iterdir()):
        written = _WRITTEN_SHARD.fullmatch(path.name)
        is_shard = (
            (written and path.name.startswith(own_prefix))
            or (overwrite and (written or _HUB_SHARD.fullmatch(path.name)))
            or (old and path.name in old.files)
        )
        if is_shard and path.name not in new.files and (path.is_symlink() or not path.is_dir()):
            path.unlink()


def _print_kept_shards(folder: Path, manifest: Manifest) -> None:
    others = [path for path in folder.iterdir() if _WRITTEN_SHARD.fullmatch(path.name)]
    if others := [path for path in others if path.name not in manifest.files]:
        print0(
            f"notice: {folder} also holds {len(others)} shards of other data sets, or of interrupted imports, which "
            f"stay ({some_names(others)}); --overwrite removes them"
        )


def _has_readable_manifest(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except UserError:
        return False
    return True


@contextmanager
def _write_lock(folder: Path) -> Iterator[None]:
    path = folder / ".lock"
    if path.is_symlink():  # in a folder from someone else; locking would empty the file that it leads to
        path.unlink()
    with file_lock(path, f"{folder} is written to by", notice=print0):
        yield


if __name__ == "__main__":
    cli(Config, main, __doc__)
