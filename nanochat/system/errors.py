"""Exceptions that end a command with one line and an exit code instead of a traceback."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

# From the messages of gloo and NCCL. Their other failures, such as a lack of memory, keep their traceback.
LOST_CONNECTION = re.compile(
    r"/gloo/transport/|Connection (closed|reset) by peer|Application timeout caused pair closure|"
    r"Timed out waiting \d+ms|ncclRemoteError"
)
STORE_ERRORS = ("DistNetworkError", "DistStoreError")  # torch's, while processes look for each other

# Causes that the user can remove: space, quotas, permissions, limits, damaged disks, and files in the place of folders.
# ENOENT is not among them: a file that a user names is looked for where it is read, so elsewhere its absence is a bug.
# Neither are EBADF and EINVAL, which only wrong code causes on most file systems.
_FAULTS_OF_FILES = frozenset(
    getattr(errno, name)
    for name in (
        *("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE", "ENODEV", "ENXIO", "ENOMEM"),
        *("EISDIR", "ENOTDIR", "EEXIST", "ENOTEMPTY", "EXDEV", "ELOOP", "ENAMETOOLONG", "EMFILE", "ENFILE"),
        *("ETXTBSY", "EBUSY", "EMLINK", "EOPNOTSUPP", "ENOLCK", "EILSEQ"),
    )
    if hasattr(errno, name)
)
_REMEDIES = {
    errno.ENOSPC: "free some space, or choose a folder on another disk",
    errno.EDQUOT: "free some space, or choose a folder on another disk",
    errno.EFBIG: "raise the limit (ulimit -f), or choose a folder on another disk",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EILSEQ: "choose a name of ASCII characters",
}
# safetensors reports a failed write as an exception of its own, with one of these texts.
_RUST_IO_ERROR = re.compile(r"(?:\bOs \{ code: |\(os error )(\d+)")


# User and password of an address, and values in its query that open doors. Each pattern takes time in proportion to the
# text, whatever the text is: these are applied to everything that is printed.
_USER_OF_URL = re.compile(r"(?<=[A-Za-z0-9+.-]://)[^\s/?#'\"@]*@(?:[^\s/?#'\"@]*@)*")
_VALUE_IN_QUERY = re.compile(r"([?&]([\w.-]*)=)[^\s&#'\"]+")
_SECRET_NAME = re.compile(r"(?i)token|api_?key|secret|password|passwd|signature|credential|auth|sig")
_SECRET_VARIABLE = re.compile(r"(?i)(?:.*[_-])?(?:token|(?:api|access)[_-]?key|secret|password|passwd)")
_MAX_MESSAGE_CHARS = 2000
_MIN_SECRET_LEN = 8  # of a variable's value; a shorter one could be an ordinary word


def hide_credentials(text: str) -> str:
    """Return a text without the secrets that it repeats, which are replaced by `***`.

    Secrets are the user and password of an address, values in an address's query that are called token, key or the
    like, and the values of environment variables whose names end with such a word, wherever they occur.

    >>> hide_credentials("https://me:pw@host/a.zip?v=1&access_token=abc is not a zip file")
    'https://***@host/a.zip?v=1&access_token=*** is not a zip file'
    """
    if "://" in text:
        text = _VALUE_IN_QUERY.sub(_hide_value, _USER_OF_URL.sub("***@", text))
    for name, value in os.environ.items():
        secret = value.strip()
        if len(secret) >= _MIN_SECRET_LEN and secret in text and _SECRET_VARIABLE.fullmatch(name):
            text = text.replace(secret, "***")
    return text


def _hide_value(match: re.Match[str]) -> str:
    return f"{match[1]}***" if _SECRET_NAME.search(match[2]) else match[0]


class UserError(ValueError):
    """An error that the user can fix: shown as one line, without a traceback, with exit code 2.

    Its message hides credentials, as addresses and the texts of libraries may have some. If it repeats a long value,
    the middle is left out, so that the reason at its end is seen.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(_shorten(hide_credentials(a)) if isinstance(a, str) else a for a in arguments))


def _shorten(message: str) -> str:
    num_left_out = len(message) - _MAX_MESSAGE_CHARS
    if num_left_out <= 0:
        return message
    half = _MAX_MESSAGE_CHARS // 2
    return f"{message[:half]} [... {num_left_out:,} characters ...] {message[-half:]}"


class StoppedBySignal(Exception):
    """Raised when a signal has ended a run early. The message explains how to resume it.

    `exit_code` is 128 + the signal's number, as shells report it.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def find_lost_process(error: BaseException) -> str | None:
    """Return one line that says that another process of the run is gone, if this is the cause of an error, else None.

    Recognized by its text: gloo, NCCL and torch's store raise a RuntimeError for every failure.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or not isinstance(error, RuntimeError):
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines or not (type(error).__name__ in STORE_ERRORS or LOST_CONNECTION.search(str(error))):
        return None
    place, _, reason = lines[0].partition("] ")  # gloo begins with a place in its source, in brackets
    cause = (reason if place.startswith("[") and "/gloo/" in place else lines[0]).partition(". This is")[0]
    return f"process {os.environ.get('RANK', '0')}: another process of this run has ended or cannot be reached: {cause}"


def error_number(error: BaseException) -> int | None:
    """Return the errno of a failed call on a file, also of one made by safetensors; None for other errors."""
    if isinstance(error, OSError):
        return error.errno
    if type(error).__name__ == "SafetensorError":
        match = _RUST_IO_ERROR.search(str(error))
        return int(match[1]) if match else None
    return None


def reason_and_remedy(error: BaseException, remedy: str = "") -> str:
    """Return `reason: remedy` of a failed call on a file; `remedy` where the reason does not suggest another one.

    >>> reason_and_remedy(OSError(errno.EROFS, "Read-only file system", "a.txt"), "choose another folder")
    'Read-only file system: choose another folder'
    """
    number = error_number(error)
    reason = os.strerror(number) if number else str(error).partition("\n")[0]
    return ": ".join(filter(None, [reason, remedy_of(error, remedy)]))


def remedy_of(error: BaseException, remedy: str = "") -> str:
    """Return what the reason of a failed call on a file suggests, as a full disk does, else `remedy`."""
    return _REMEDIES.get(error_number(error) or 0, remedy)


def find_fault_of_file(error: BaseException) -> str | None:
    """Return one line about a file or folder that the user has to mend; None for an error that may be a bug.

    The errno decides: a full disk and a missing permission are the user's, a missing file that no user named is not.
    """
    if isinstance(error, FileNotFoundError) and "No usable temporary directory" in str(error):
        return "no temporary folder can be written to: set TMPDIR to a folder that can"
    if error_number(error) not in _FAULTS_OF_FILES:
        return None
    named = getattr(error, "filename", None)
    place = os.fsdecode(named) + ": " if isinstance(named, (str, bytes, os.PathLike)) else ""
    return place + reason_and_remedy(error)


def find_fault_of_name(error: BaseException) -> str | None:
    """Return one line about the name of a file that this system or a library cannot encode; None for other errors.

    >>> find_fault_of_name(UnicodeEncodeError("ascii", "data/é", 5, 6, "ordinal not in range(128)"))
    "'data/é' cannot be a name in this environment, whose encoding is ascii: set PYTHONUTF8=1"
    """
    if not isinstance(error, UnicodeEncodeError):
        return None
    name = repr(error.object[max(error.start - 100, 0) : error.start + 100])
    if error.encoding != "utf-8":
        return f"{name} cannot be a name in this environment, whose encoding is {error.encoding}: set PYTHONUTF8=1"
    if "\udc80" <= error.object[error.start] <= "\udcff":  # a byte of a name, as Python keeps it
        return f"{name} contains bytes that are not UTF-8: rename the file or folder"
    return None


@contextmanager
def as_user_error(prefix: str) -> Iterator[None]:
    """Context that turns any exception into a one-line UserError `prefix: message`, as for a damaged file."""
    try:
        yield
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{prefix}: {lines[0] if lines else type(error).__name__}") from error
