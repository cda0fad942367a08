"""The maps name the files that exist, every module's test is found by its name, and no file names a foreign place."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.support.sources import texts, tracked

# Folders and registries that no file may name: those of somebody's machine, and addresses of downloads.
ROOT = Path(__file__).resolve().parents[2]
FOREIGN = re.compile(
    r"(?<![\w.])/(?:root|work|Users|home/\w+)/"
    r"|(?:pypi|pythonhosted|pytorch|npmjs)\.(?:org|com)/(?:simple|packages|whl)|static\.crates\.io|index\.crates\.io"
)


def test_no_foreign_places() -> None:
    matches = [f"{name}: {match[0]}" for name, text in texts().items() for match in FOREIGN.finditer(text)]
    assert not matches


def test_foreign_places_are_found() -> None:
    for bad in ("/" + "root/x", "cd /" + "work/main", "/" + "home/me/x", "https://download.pytorch.org/" + "whl/cpu"):
        assert FOREIGN.search(bad), bad
    for good in ("~/.cache/nanochat", "a/root/b", "../shared/data", "https://pytorch.org/docs"):
        assert not FOREIGN.search(good), good


def test_one_list_of_versions() -> None:
    assert "uv.lock" not in tracked()
    assert "constraints.txt" in tracked()


# --- checkouts --------------------------------------------------------------------------------------------------------


def git(folder: Path, *words: str) -> str:
    """Run git with an identity of its own, and without the settings of this machine; return its output."""
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_a_checkout_has_the_same_bytes_everywhere(tmp_path: Path) -> None:
    """With core.autocrlf, which Git for Windows sets: a script with CR in its lines does not run."""
    contents = {
        **dict.fromkeys(("a.sh", "a.py", "a.toml", "a.html", "a.jsonl", "LICENSE"), b"one\ntwo\n"),
        **dict.fromkeys(("a.png", "a.parquet", "a.safetensors"), b"one\r\ntwo\n"),
    }
    origin = tmp_path / "origin"
    origin.mkdir()
    git(origin, "init", "--quiet")
    for name, content in {**contents, ".gitattributes": (ROOT / ".gitattributes").read_bytes()}.items():
        (origin / name).write_bytes(content)
    for flag in ("false", "true"):
        git(origin, "-c", f"core.autocrlf={flag}", "add", "--all", "--force")
        git(origin, "commit", "--quiet", "--allow-empty", "--message=x")
        git(tmp_path, "clone", "--quiet", "-c", f"core.autocrlf={flag}", str(origin), flag)
        for name, content in contents.items():
            assert (tmp_path / flag / name).read_bytes() == content, name


def test_scripts_can_be_executed() -> None:
    """Those that begin with #!, and not those that other scripts source."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    for line in git(ROOT, "ls-files", "--stage", "*.sh").splitlines():
        mode, _, _, name = line.split(maxsplit=3)
        has_interpreter = (ROOT / name).read_bytes().startswith(b"#!")
        assert mode == ("100755" if has_interpreter else "100644"), name


def test_scripts_leave_cdpath_and_strange_folders_alone() -> None:
    """`cd "$(dirname "$0")"` goes elsewhere if CDPATH is set, and fails in a folder whose name begins with a dash."""
    for name in tracked():
        text = (ROOT / name).read_text(encoding="utf-8") if name.endswith(".sh") else ""
        assert not re.search(r'dirname "\$0|cd "\$\(', text), name
        if re.search(r"^ *cd ", text, re.MULTILINE) and name != "dev/paths.sh":
            assert re.search(r"^source .*paths\.sh", text, re.MULTILINE), name


# --- maps -------------------------------------------------------------------------------------------------------------

CODE = (".py", ".sh", ".html", ".toml", ".rs")


def named_paths(text: str, folder: str = "") -> set[str]:
    """Paths in backticks, from the repository's root; `folder` is where the text's relative paths begin.

    Glob patterns and commands are no paths. `rl/loop.py` in a text of `nanochat/` gives `nanochat/rl/loop.py`.
    """
    words = re.findall(r"`([\w.-]+(?:/[\w.-]+)*/?)`", text)
    paths = (word for word in words if "/" in word or word.endswith((*CODE, ".md")))
    return {f"{folder}/{path}" if folder else path for path in paths}


def map_complaints(text: str, folder: str, expected: Iterable[str], files: Iterable[str]) -> Iterator[str]:
    """Paths that a map names and that do not exist, and expected paths that it does not name.

    A map in a folder may name its own files relative to it, and others from the repository's root.
    """
    files = set(files)
    folders = {name[: i + 1] for name in files for i, letter in enumerate(name) if letter == "/"}
    existing = files | folders
    named = set()
    for path in named_paths(text):
        candidates = [path, f"{path}/"] + ([f"{folder}/{path}", f"{folder}/{path}/"] if folder else [])
        matches = [candidate for candidate in candidates if candidate in existing]
        if not matches:
            yield f"{folder or '.'}/README.md names {path}, which does not exist"
        named.update(matches)
    for path in sorted(set(expected) - named):
        yield f"{folder or '.'}/README.md does not name {path}"


def map_section(text: str) -> str:
    """The section of README.md that is the map."""
    return text.partition("## Where the code is")[2].partition("\n## ")[0]


def test_the_map_of_the_library() -> None:
    """`nanochat/README.md` names every module by its path; the embedded world is one entry."""
    modules = {
        name
        for name in tracked()
        if re.fullmatch(r"nanochat/(?:\w+/)?\w+\.(?:py|html)", name) and not name.endswith("__init__.py")
    }
    rooms = {name.rpartition("/")[0] + "/" for name in modules if name.count("/") == 2} | {"nanochat/data/storyworld/"}
    complaints = list(map_complaints(texts()["nanochat/README.md"], "nanochat", modules | rooms, tracked()))
    assert not complaints, "\n" + "\n".join(complaints)


def test_the_short_map() -> None:
    """The section of README.md names the folders, every script, and every developer's tool."""
    tools = {name for name in tracked() if re.fullmatch(r"(?:scripts|dev)/\w+\.(?:py|sh)|\w+\.sh", name)}
    expected = {name for name in tools if not name.endswith("__init__.py")}
    expected |= {"nanochat/README.md", "tasks/", "rustbpe/", "rustgpt/", "tests/", "dev/LOG.md", "CONTRIBUTING.md"}
    section = map_section(texts()["README.md"])
    assert section, "README.md has no map"
    complaints = list(map_complaints(section, "", expected, tracked()))
    assert not complaints, "\n" + "\n".join(complaints)


def test_contributing_names_what_exists() -> None:
    """Files whose names begin with `my_` are the contributor's own."""
    text = re.sub(r"`[^`]*my_[^`]*`", "", texts()["CONTRIBUTING.md"])
    complaints = list(map_complaints(text, "", [], tracked()))
    assert not complaints, "\n" + "\n".join(complaints).replace("README.md", "CONTRIBUTING.md")


def test_a_wrong_map_is_found() -> None:
    files = ["nanochat/rl/loop.py", "nanochat/train.py", "scripts/base_train.py"]
    text = (
        "`train.py`, `rl/` with `rl/loop.py`; called by `scripts/base_train.py`. `python -m x` and `*.py` are no paths."
    )
    assert not list(map_complaints(text, "nanochat", files[:2], files))
    assert list(map_complaints(text, "nanochat", files[:2], files[1:]))
    assert list(map_complaints(text.replace("`rl/loop.py`", "it"), "nanochat", files[:2], files))
    assert list(map_complaints(text.replace("rl/loop.py", "eval/loop.py"), "nanochat", files[:2], files))


# --- tests by name ----------------------------------------------------------------------------------------------------

# Modules without a test file of their name, and where they are tested instead.
TESTED_ELSEWHERE: dict[str, str] = {}


def expected_test(name: str) -> str:
    """The path of a module's test: `nanochat/rl/loop.py` -> `tests/rl/test_loop.py`."""
    folder, _, file = name.removeprefix("nanochat/").rpartition("/")
    return f"tests/{folder + '/' if folder else ''}test_{file}"


def missing_tests(files: Iterable[str]) -> Iterator[str]:
    """Modules of the packages whose test is not found by its name."""
    files = set(files)
    for name in sorted(files):
        is_module = name.endswith(".py") and name.split("/")[0] in ("nanochat", "scripts", "tasks")
        if not is_module or name.endswith("__init__.py") or name.startswith("nanochat/data/storyworld/"):
            continue
        if expected_test(name) not in files and name not in TESTED_ELSEWHERE:
            yield f"{name}: there is no {expected_test(name)}"


def test_each_module_has_a_test_of_its_name() -> None:
    complaints = list(missing_tests(tracked()))
    assert not complaints, "\n" + "\n".join(complaints)
    for name, test in TESTED_ELSEWHERE.items():
        assert {name, test} <= set(tracked()), f"TESTED_ELSEWHERE: {name} or {test} does not exist"
        assert expected_test(name) not in tracked(), f"TESTED_ELSEWHERE: {name} has a test of its name"


def test_a_missing_test_is_found() -> None:
    files = ["nanochat/rl/loop.py", "nanochat/gpt.py", "nanochat/rl/__init__.py", "tests/test_gpt.py", "scripts/a.py"]
    assert len(list(missing_tests(files))) == 2
    assert not list(missing_tests([*files, "tests/rl/test_loop.py", "tests/scripts/test_a.py"]))
