"""The base folder and atomic writes."""

from __future__ import annotations

import errno
import getpass
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nanochat.checkpoints.tensors import load_tensors, tensor_shapes
from nanochat.common import UserError
from nanochat.configurator import load_toml
from nanochat.data.arrow_text import open_parquet
from nanochat.data.manifest import read_manifest
from nanochat.data.shards import file_sha256
from nanochat.eval.bundle_files import open_files
from nanochat.reporting.schema import read_sections
from nanochat.system import files
from nanochat.system.cpu import read_cached_probes
from nanochat.system.files import (
    INDUCTOR_VARIABLE,
    MAX_NAME_BYTES,
    base_dir,
    check_file_writable,
    check_name,
    check_regular_file,
    check_writable,
    expand_path,
    open_regular_file,
    read_regular_file,
    use_caches_without_home,
    use_writable_compile_cache,
    write_json_atomic,
    write_json_cache,
    write_text_atomic,
)
from nanochat.system.json_files import read_json
from tasks.customjson import read_conversations
from tasks.words import load_words


def test_base_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "runs"))
    assert base_dir() == tmp_path / "runs"
    for unset in ("", None):
        monkeypatch.delenv("NANOCHAT_BASE_DIR")
        if unset is not None:
            monkeypatch.setenv("NANOCHAT_BASE_DIR", unset)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert base_dir() == tmp_path / ".cache" / "nanochat"
        monkeypatch.setenv("NANOCHAT_BASE_DIR", "")
    assert not list(tmp_path.iterdir()), "nothing is created"


def test_a_base_folder_that_is_not_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "/tmp/caf\udce9")
    with pytest.raises(UserError, match=r"NANOCHAT_BASE_DIR is '/tmp/caf\\udce9': .* must be valid UTF-8"):
        base_dir()


def test_writes(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    for text in ("ä\n", "shorter", ""):
        write_text_atomic(path, text)
        assert path.read_text(encoding="utf-8") == text
    write_json_atomic(path, {"name": "ä", "values": [1, None]})
    text = path.read_text(encoding="utf-8")
    assert json.loads(text) == {"name": "ä", "values": [1, None]}
    assert "ä" in text
    assert text.endswith("}\n")
    assert os.listdir(path.parent) == ["a.txt"]


def test_a_failed_write_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every call that can fail, in the order of the calls; the file appears under its name only when complete."""
    path = tmp_path / "a.txt"
    write_text_atomic(path, "old")

    def fail(*_: object) -> None:
        assert path.read_text(encoding="utf-8") == "old"
        raise OSError("no space left on device")

    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(UserError, match="no space left"):
                write_text_atomic(path, "new")
        assert path.read_text(encoding="utf-8") == "old"
        assert os.listdir(tmp_path) == ["a.txt"], "no temporary file is left"


# --- the base folder, paths and names ---------------------------------------------------------------------------------


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NANOCHAT_BASE_DIR", "~/runs")
    assert base_dir() == tmp_path / "runs"
    assert expand_path("~/a b/ä.txt") == tmp_path / "a b" / "ä.txt"
    assert expand_path(Path("~")) == tmp_path
    assert expand_path("a/~/b") == Path("a/~/b")


@pytest.mark.parametrize(
    ("text", "words"),
    [("", ["empty"]), ("a\0b", ["NUL", "'a\\x00b'"]), ("~nobody-of-this-name/x", ["no user 'nobody-of-this-name'"])],
)
def test_a_path_that_cannot_be(text: str, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        expand_path(text, "out")
    for word in ["out", *words]:
        assert word in str(caught.value)


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for the number of a user that a container does not know."""

    def no_home(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", no_home)
    monkeypatch.delenv("NANOCHAT_BASE_DIR", raising=False)
    for ask in (base_dir, lambda: expand_path("~/x")):
        with pytest.raises(UserError, match=r"set HOME, or NANOCHAT_BASE_DIR"):
            ask()


@pytest.mark.parametrize("name", ["d20", "my run", "модель-2", "a.b", "run=1,x@2", "é" * (MAX_NAME_BYTES // 2)])
def test_plain_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        *[("", "not be empty"), (" a", "space"), ("a ", "space"), (".", "dot"), ("..", "dot"), (".hidden", "dot")],
        *[("exp/one", "plain name"), ("/a", "plain name"), ("a\\b", "plain name"), ("../..", "dot")],
        *[("a\nb", "printable"), ("a\0", "printable"), ("a\x1b[2J", "printable"), ("a\u202eb", "printable")],
        *[("a\udcff", "printable"), ("x" * (MAX_NAME_BYTES + 1), "200 bytes"), ("é" * MAX_NAME_BYTES, "200 bytes")],
    ],
)
def test_names_that_are_refused(name: str, rule: str) -> None:
    with pytest.raises(UserError) as caught:
        check_name(name, "model_tag")
    message = str(caught.value)
    assert message.startswith("model_tag is ")
    assert rule in message
    assert message.isprintable()
    assert len(message) < 400


# --- places that cannot be written to ---------------------------------------------------------------------------------


def a_file_in_the_way(tmp_path: Path, _: pytest.MonkeyPatch) -> Path:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    return tmp_path / "file" / "below"


def a_name_too_long(tmp_path: Path, _: pytest.MonkeyPatch) -> Path:
    return tmp_path / ("x" * 300)


def a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The name can be made, the content cannot be written."""
    real_open = open

    def full(file: Path, mode: str = "r", **options: str) -> object:
        opened = real_open(file, mode, **options)  # type: ignore[call-overload]
        if "w" not in mode:
            return opened

        class Full:
            def write(self, _: object) -> None:
                opened.write("" if "b" not in mode else b"x")
                raise OSError(errno.ENOSPC, "No space left on device")

            def __enter__(self) -> Full:
                return self

            def __exit__(self, *_: object) -> None:
                opened.close()

        return Full()

    monkeypatch.setattr("builtins.open", full)
    return tmp_path / "new"


def a_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    def refuse(path: Path, **_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    return tmp_path / "new"


Place = Callable[[Path, pytest.MonkeyPatch], Path]
PLACES = [
    (a_file_in_the_way, "is a file, where a folder is needed: remove it, or set"),
    (a_name_too_long, "File name too long: choose a shorter name"),
    (a_full_disk, "No space left on device: free some space"),
    (a_read_only_disk, "Read-only file system: set NANOCHAT_BASE_DIR"),
]
WRITES: list[Callable[[Path], object]] = [
    check_writable,
    lambda folder: check_file_writable(folder / "a.txt"),
    lambda folder: write_text_atomic(folder / "a.txt", "text"),
    lambda folder: write_json_atomic(folder / "a.json", {"a": 1}),
]


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(("place", "reason"), PLACES)
def test_a_place_that_cannot_be_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Place, reason: str, write: Callable[[Path], object]
) -> None:
    """One line with the path, the reason and a way out, and no file is left."""
    with monkeypatch.context() as patch:
        folder = place(tmp_path, patch)
        with pytest.raises(UserError) as caught:
            write(folder)
    message = str(caught.value)
    assert str(folder) in message
    assert reason in message
    assert "\n" not in message
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "file"] == []


def test_a_place_that_can_be_written_to(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    check_file_writable(tmp_path / "c" / "d.txt")
    assert list(tmp_path.iterdir()) == [], "nothing is left, so a command that fails later has made nothing"
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "d.txt").write_text("old", encoding="utf-8")
    check_file_writable(tmp_path / "c" / "d.txt")
    assert (tmp_path / "c" / "d.txt").read_text(encoding="utf-8") == "old"
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(UserError, match="link"):
        check_writable(tmp_path / "link")
    assert sorted(os.listdir(tmp_path)) == ["c", "link"]


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    for write in (check_file_writable, lambda path: write_text_atomic(path, "text")):
        with pytest.raises(UserError, match=r"a\.txt: it is a folder"):
            write(tmp_path / "a.txt")
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_device_in_the_place_of_a_file(tmp_path: Path) -> None:
    """A named pipe here: a rename onto it, or onto /dev/null, would replace it by a file."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        for write in (check_file_writable, lambda path: write_text_atomic(path, "text")):
            with pytest.raises(UserError, match=r"it is no regular file"):
                write(tmp_path / name)
    assert (tmp_path / "pipe").is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


@pytest.mark.parametrize(("place", "reason"), PLACES)
def test_a_cache_that_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: Place, reason: str
) -> None:
    with monkeypatch.context() as patch:
        write_json_cache(place(tmp_path, patch) / "cpu.json", {})
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("NOTICE: not kept")
    assert reason in line


def test_text_that_is_not_unicode(tmp_path: Path) -> None:
    """A path of bytes that are not UTF-8 has surrogates; a report with it is still written, and JSON keeps it."""
    write_json_atomic(tmp_path / "a.json", {"path": "a\udcff"})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"path": "a\udcff"}


def test_an_error_that_is_no_fault_of_a_file_stays(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json_atomic(tmp_path / "a.json", object())
    with pytest.raises(TypeError):
        write_text_atomic(tmp_path / "a.txt", 1)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == []


# --- folders of caches ------------------------------------------------------------------------------------------------


@pytest.fixture
def _no_caches_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the variables is set, and they are restored after the test."""
    for name in ("HF_HOME", "XDG_CACHE_HOME", INDUCTOR_VARIABLE):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("_no_caches_set")
def test_downloads_with_a_home(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(base_dir))
    use_caches_without_home()
    assert "HF_HOME" not in os.environ


@pytest.mark.usefixtures("_no_caches_set")
def test_downloads_without_a_home(base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    use_caches_without_home()
    assert os.environ["HF_HOME"] == str(base_dir / "huggingface")
    monkeypatch.setenv("HF_HOME", "mine")
    use_caches_without_home()
    assert os.environ["HF_HOME"] == "mine"
    assert list(base_dir.iterdir()) == []


@pytest.mark.usefixtures("_no_caches_set")
def test_no_place_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home(_: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("NANOCHAT_BASE_DIR")
    monkeypatch.setattr(Path, "expanduser", no_home)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    use_caches_without_home()
    assert "HF_HOME" not in os.environ


@pytest.mark.usefixtures("_no_caches_set")
def test_compiled_kernels(base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In torch's folder, whose name is the same here; else in the base folder; a user's choice stays."""
    cache_dir_utils = pytest.importorskip("torch._inductor.runtime.cache_dir_utils")
    monkeypatch.delenv(INDUCTOR_VARIABLE, raising=False)  # the import may set it
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    use_writable_compile_cache()
    assert os.environ[INDUCTOR_VARIABLE] == cache_dir_utils.default_cache_dir()

    monkeypatch.delenv(INDUCTOR_VARIABLE)
    (tmp_path / "temporary").write_text("", encoding="utf-8")
    use_writable_compile_cache()
    assert os.environ[INDUCTOR_VARIABLE] == str(base_dir / "compiled")

    monkeypatch.setenv(INDUCTOR_VARIABLE, "mine")
    use_writable_compile_cache()
    assert os.environ[INDUCTOR_VARIABLE] == "mine"


@pytest.mark.usefixtures("_no_caches_set")
def test_compiled_kernels_of_an_unknown_user(base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_entry() -> str:
        raise KeyError("getpwuid(): uid not found: 12345")

    assert base_dir.is_dir()
    monkeypatch.setattr(getpass, "getuser", no_entry)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    use_writable_compile_cache()
    assert os.environ[INDUCTOR_VARIABLE] == f"{tmp_path}/torchinductor_uid_{os.getuid()}"


@pytest.mark.usefixtures("_no_caches_set")
def test_compiled_kernels_without_a_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "file"))
    use_writable_compile_cache()
    assert INDUCTOR_VARIABLE not in os.environ


# --- reading: no pipe is waited for, and no device is read to its end -------------------------------------------------


def _enter(context: Any) -> None:
    with context:
        pass


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {  # name of the file, and what reads it
    "check_regular_file": ("a", check_regular_file),
    "open_regular_file": ("a", open_regular_file),
    "read_regular_file": ("a", lambda path: read_regular_file(path, 100)),
    "json": ("a.json", read_json),
    "toml": ("a.toml", lambda path: load_toml(path, "settings file")),
    "tensors": ("model.safetensors", load_tensors),
    "shapes": ("model.safetensors", tensor_shapes),
    "parquet": ("a.parquet", open_parquet),
    "manifest": ("manifest.json", lambda path: read_manifest(path.parent)),
    "shard": ("a.parquet", file_sha256),
    "bundle": ("b.zip", lambda path: _enter(open_files(path))),
    "conversations": ("a.jsonl", read_conversations),
    "words": ("words.txt", lambda path: load_words("train", path)),
}


@pytest.fixture(params=["pipe", "device"])
def unusual(request: pytest.FixtureRequest) -> Callable[[Path], Path]:
    def make(path: Path) -> Path:
        if request.param == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
        return path

    return make


@pytest.mark.parametrize("name", READERS)
def test_only_regular_files_are_read(name: str, tmp_path: Path, unusual: Callable[[Path], Path]) -> None:
    file_name, read = READERS[name]
    with pytest.raises(
        UserError, match=r"not a file|no regular file|not a regular file|a pipe or a device|out of the data"
    ) as failure:
        read(unusual(tmp_path / file_name))
    assert "\n" not in str(failure.value)


def test_caches_and_reports_leave_other_kinds_out(tmp_path: Path, unusual: Callable[[Path], Path]) -> None:
    assert read_cached_probes(unusual(tmp_path / "cpu.json")) == {}
    unusual(tmp_path / "base_train.json")
    sections, problems = read_sections(tmp_path)
    assert sections == {}
    assert len(problems) == 2
    assert all("it is not a file" in problem for problem in problems)


def test_the_limit_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_regular_file(path, 5) == b"12345"
    for read in (check_regular_file, read_regular_file, open_regular_file):
        with pytest.raises(UserError, match="has 5 bytes: must have at most 4"):
            read(path, 4)
        with pytest.raises(UserError, match="No such file"):
            read(tmp_path / "absent", 4)
        with pytest.raises(UserError, match="not a file"):
            read(tmp_path, 4)


# --- what killed processes leave --------------------------------------------------------------------------------------


def test_a_write_removes_what_killed_writers_of_the_same_file_left(tmp_path: Path) -> None:
    """Not what other files, living processes or other machines are writing."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path = tmp_path / "a[1].json"
    own = files.temporary_name(path)
    left = own.with_name(own.name.replace(f"-{os.getpid()}.", f"-{ended.pid}."))
    left.write_text("{", encoding="utf-8")
    stays = [
        own.with_name(own.name.replace(f"-{os.getpid()}.", f"-{os.getppid()}.")),
        own.with_name(f".a[1].json.012345-{ended.pid}.tmp"),
        left.with_name(left.name.replace("a[1]", "a1")),
        left.with_name(left.name.replace(f"-{ended.pid}.", "-x.")),
    ]
    for other in stays:
        other.write_text("{", encoding="utf-8")
    write_json_atomic(path, {})
    assert sorted(tmp_path.iterdir()) == sorted([path, *stays])


def test_a_trial_removes_what_killed_trials_left(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for folder in (tmp_path, tmp_path / "report"):
        folder.mkdir(exist_ok=True)
        name = files.temporary_name(folder / "writable").name.replace(f"-{os.getpid()}.", f"-{ended.pid}.")
        (folder / name / "report").mkdir(parents=True)
    check_writable(tmp_path / "report")
    assert [*tmp_path.rglob("*")] == [tmp_path / "report"]
