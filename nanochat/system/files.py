"""The base folder (`$NANOCHAT_BASE_DIR`), paths and names as users write them, atomic writes, folders of caches."""

from __future__ import annotations

import errno
import getpass
import glob
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from nanochat.system.console import print0
from nanochat.system.errors import UserError, error_number, reason_and_remedy

MAX_NAME_BYTES = 200  # file systems allow 255, and a temporary file's name is longer than that of its file
INDUCTOR_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
OTHER_FOLDER = "set NANOCHAT_BASE_DIR to a folder that can be written to"  # a remedy, if the reason suggests none
# Answers of file systems that cannot flush this kind of file, as some network file systems give for folders. What is
# written there is as safe as the file system makes it; it is no reason to give up a file that is complete.
CANNOT_FLUSH = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}

# --- paths and names --------------------------------------------------------------------------------------------------


def base_dir() -> Path:
    """Return the folder that all files go to: `$NANOCHAT_BASE_DIR`, else `~/.cache/nanochat`. It may not exist yet.

    Raises `UserError` if it depends on a home folder that does not exist, as for an unknown user in a container.
    """
    if given := os.environ.get("NANOCHAT_BASE_DIR"):
        try:
            given.encode("utf-8")
        except UnicodeEncodeError:  # arrow and safetensors open no other file
            raise UserError(f"NANOCHAT_BASE_DIR is {given!r}: the folder's name must be valid UTF-8") from None
        return expand_path(given, "NANOCHAT_BASE_DIR")
    return expand_path("~/.cache/nanochat", "the base folder")


def expand_path(text: str | Path, name: str = "path") -> Path:
    """Return a path as a user wrote it, with `~` and `~user` expanded. `name`: of the setting, for error messages.

    Raises `UserError` for an empty path, for one that no file can have, and for a home folder that is not known.

    >>> expand_path("data/a.txt").as_posix()
    'data/a.txt'
    """
    if not str(text):
        raise UserError(f"{name} is empty: it must be a path (. is the current folder)")
    if "\0" in str(text):
        raise UserError(f"{name} is {str(text)!r}: a path cannot contain a NUL character")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        user = Path(text).parts[0]
        if user != "~":
            raise UserError(f"{name} is {str(text)!r}: there is no user {user[1:]!r} with a home folder") from None
    uid = os.getuid() if hasattr(os, "getuid") else "?"
    raise UserError(
        f"{name} is {str(text)!r}, but HOME is not set and user {uid} has no home folder: set HOME, or "
        "NANOCHAT_BASE_DIR to a folder"
    )


def check_name(text: str, name: str = "name") -> str:
    """Return a name that becomes that of a file or folder. Raises `UserError` unless it is plain.

    `name`: of the setting, for the message. Letters of every script are allowed; folders, hidden names and characters
    that cannot be seen are not.

    >>> check_name("d20-my_run.2")
    'd20-my_run.2'
    """
    rule = ""
    if not text:
        rule = "not be empty"
    elif text != text.strip():
        rule = "not begin or end with a space"
    elif text.startswith("."):
        rule = "not begin with a dot"
    elif "/" in text or "\\" in text:
        rule = "be a plain name, without / and \\"
    elif not text.isprintable():
        rule = "contain printable characters only"
    elif len(text.encode("utf-8")) > MAX_NAME_BYTES:
        rule = f"have at most {MAX_NAME_BYTES} bytes"
    if rule:
        shown = repr(text) if len(text) <= MAX_NAME_BYTES else f"{text[:40]!r}... ({len(text):,} characters)"
        raise UserError(f"{name} is {shown}: it must {rule}, because it names a file or folder, as d20-my_run does")
    return text


# --- reading ----------------------------------------------------------------------------------------------------------


def check_regular_file(path: Path, max_bytes: int | None = None) -> None:
    """Raise `UserError` unless `path` is a regular file, or a link to one, of at most `max_bytes`.

    Call it before a library opens a file: a pipe would wait for its other end, and a device may never end.
    """
    try:
        _check_kind(path, path.stat(), max_bytes)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise _read_error(path, error) from error


def open_regular_file(path: Path, max_bytes: int | None = None) -> BinaryIO:
    """Open a regular file for reading bytes, without waiting. Raises `UserError` as `check_regular_file` does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            _check_kind(path, os.fstat(descriptor), max_bytes)
            return open(descriptor, "rb")
        except BaseException:
            os.close(descriptor)
            raise
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise _read_error(path, error) from error


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """Return the content of a regular file. Raises `UserError` as `check_regular_file` does."""
    with open_regular_file(path, max_bytes) as file:
        try:
            return file.read(max_bytes)
        except OSError as error:
            raise _read_error(path, error) from error


def _check_kind(path: Path, facts: os.stat_result, max_bytes: int | None) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise UserError(f"{path} cannot be read: it is not a file")
    if max_bytes is not None and facts.st_size > max_bytes:
        raise UserError(f"{path} has {facts.st_size:,} bytes: must have at most {max_bytes:,}")


def _read_error(path: Path, error: Exception) -> UserError:
    # ValueError: a null character in the path
    return UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})")


# --- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def as_write_error(path: Path, remedy: str = OTHER_FOLDER) -> Iterator[None]:
    """Context of a write to `path`, that turns a failed one into a `UserError` with the path, the reason and a remedy.

    The body removes what it has begun to write, before the error leaves it. `remedy` is given where the reason does not
    suggest another one, as a full disk does.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and error_number(error) is None:
            raise
        reason = reason_and_remedy(error, remedy)
        with suppress(OSError):
            if in_the_way := next((above for above in path.parents if above.exists() and not above.is_dir()), None):
                reason = f"{in_the_way} is a file, where a folder is needed: remove it, or {remedy}"
        raise UserError(f"cannot write {path}: {reason}") from error


def check_writable(folder: Path, remedy: str = OTHER_FOLDER) -> None:
    """Try a file in a folder that results will go to. Raises `UserError` if that, or the folder, is impossible.

    Call it before the work: a place that cannot be written to should not be found when the result is there. Leaves
    nothing: a folder that is not there yet is not there afterwards either.
    """
    _try_file(folder, temporary_name(folder / "writable"), remedy)


def check_file_writable(path: Path, remedy: str = OTHER_FOLDER) -> None:
    """Try the place of a result, as `check_writable` does for a folder: also that a file may have this name."""
    with as_write_error(path, remedy):
        _refuse_other_kinds(path)
    _try_file(path, temporary_name(path), remedy)


def _refuse_other_kinds(path: Path) -> None:
    """Raise `UserError` if `path` is there and is no regular file: renaming onto /dev/null would replace the device."""
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder: remove it, or choose another name")
    if path.exists() and not path.is_file():
        raise UserError(f"cannot write {path}: it is no regular file, and would be replaced: choose another name")


def _try_file(place: Path, trial: Path, remedy: str) -> None:
    with as_write_error(place, remedy):
        target = trial.parent
        missing = [folder for folder in trial.parents if not os.path.lexists(folder)]
        made = None
        if missing:  # they are tried below a folder of another name, so that another process never sees them go
            above = missing[-1].parent
            made = temporary_name(above / "writable")
            trial = made / trial.relative_to(above)
        try:
            trial.parent.mkdir(parents=True, exist_ok=True)
            with open(trial, "wb") as file:
                file.write(b"\0" * 4096)  # a full disk may still have room for a name
                file.flush()
        finally:
            with suppress(OSError):
                trial.unlink()
            if made is not None:
                shutil.rmtree(made, ignore_errors=True)
            for folder in (target, *list(target.parents)[:1]):  # the second, if `target` was missing at that time
                remove_abandoned(folder / "writable")


@contextmanager
def written_atomically(path: Path, remedy: str = OTHER_FOLDER) -> Iterator[Path]:
    """Context that gives the name of a temporary file, which the body writes, and then renames it to `path`.

    Raises `UserError` if it cannot be written; nothing is left of it then, and `path` keeps its old content.
    """
    with as_write_error(path, remedy):
        _refuse_other_kinds(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_name(path)
        with _removed_on_failure(temporary):
            yield temporary
            os.replace(temporary, path)
        remove_abandoned(path)


def check_room(folder: Path, num_bytes: int, purpose: str) -> None:
    """Try a folder as `check_writable` does, and the room on its disk. `purpose` of the bytes, as in "a checkpoint"."""
    check_writable(folder)
    with as_write_error(folder):
        num_free = shutil.disk_usage(next(path for path in (folder, *folder.absolute().parents) if path.exists())).free
    if num_free < num_bytes:
        raise UserError(
            f"{folder} has {num_free / 1e9:,.2f} GB free, but {purpose} takes about {num_bytes / 1e9:,.2f} GB: make "
            "room, or set NANOCHAT_BASE_DIR to a folder on another disk"
        )


def flush_to_disk(descriptor: int) -> None:
    """Flush an open file or folder to disk, where its file system can. Raises OSError if data may have been lost."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH:
            raise


def flush_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk, on systems and file systems that support it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        if error.errno in CANNOT_FLUSH | {errno.EACCES}:  # a folder may be writable and not readable
            return
        raise
    try:
        flush_to_disk(descriptor)
    finally:
        os.close(descriptor)


def write_text_atomic(path: Path, text: str) -> None:
    """Write a text file so that after a crash or power cut `path` holds either its old or its new content.

    Raises `UserError` if it cannot be written; nothing is left of it then.
    """
    # A path or a model's text can hold what UTF-8 cannot. In JSON the backslash makes a valid escape of it.
    with (
        written_atomically(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write(text)
        file.flush()
        flush_to_disk(file.fileno())


def write_json_atomic(path: Path, value: object) -> None:
    """Write indented JSON with `write_text_atomic`."""
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_json_cache(path: Path, value: object) -> None:
    """Write JSON that is only kept to save time: a cache that cannot be written is not kept, which a line says."""
    try:
        write_json_atomic(path, value)
    except UserError as error:
        print0(f"NOTICE: not kept for the next time: {error}")


def temporary_name(path: Path) -> Path:
    """Return the name under which this process writes a file or folder until it is complete."""
    return path.with_name(f".{path.name}.{_host_tag()}-{os.getpid()}.tmp")


def remove_abandoned(path: Path) -> None:
    """Remove the incomplete versions of a file or folder that killed processes of this machine have left."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{_host_tag()}-*.tmp"):
        number = left.name.removesuffix(".tmp").rpartition("-")[2]
        if not number.isdigit() or _is_process(int(number)):
            continue
        with suppress(OSError):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()


def _host_tag() -> str:
    """Return six digits for this machine: process ids of another one, on a shared disk, say nothing here."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:6]


def _is_process(number: int) -> bool:
    import psutil

    return bool(psutil.pid_exists(number))


@contextmanager
def _removed_on_failure(temporary: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


# --- folders of the libraries' caches, where the usual ones cannot be used -------------------------------------------


def use_caches_without_home() -> None:
    """Keep the downloads of Hugging Face's libraries in the base folder if there is no home folder.

    As for the number of a user that a container does not know. The libraries would make a folder of the name `~` in the
    current one. Call this before they are imported. Without a base folder either, nothing is changed.
    """
    if os.path.expanduser("~") != "~" or "HF_HOME" in os.environ or "XDG_CACHE_HOME" in os.environ:
        return
    try:
        os.environ["HF_HOME"] = str(base_dir().absolute() / "huggingface")
    except UserError:
        return


def use_writable_compile_cache() -> None:
    """Keep compiled kernels in the base folder if torch's own folder for them, in the temporary one, is not writable.

    Not every version of torch can name its folder for a user without an entry, so it is named here. A cache that cannot
    be kept anywhere is left to torch, and the model then trains uncompiled.
    """
    if os.environ.get(INDUCTOR_VARIABLE):
        return
    for folder in (_default_compile_cache, lambda: base_dir().absolute() / "compiled"):
        try:
            path = folder()
            check_writable(path)
        except (UserError, OSError):
            continue
        os.environ[INDUCTOR_VARIABLE] = str(path)
        return


def _default_compile_cache() -> Path:
    """Return torch's folder of compiled kernels."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError, ImportError):
        user = f"uid_{os.getuid()}"
    return Path(tempfile.gettempdir()) / ("torchinductor_" + re.sub(r'[\\/:*?"<>|]', "_", user))
