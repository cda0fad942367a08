"""Foreign text with control characters, in every place that a command takes text from: it is printed as escapes.

Foreign are settings, names of files, columns, tasks and splits, files that a command reads, servers, and models.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.common import print0
from nanochat.configurator import cli
from nanochat.report import log_section
from nanochat.system.console import CONTROL
from tests.scripts.test_chat_cli import save_model as save_chat_model
from tests.support.bundles import TASKS, write_bundle
from tests.support.datasets import import_files, numbered_texts, write_files
from tests.support.processes import Forker
from tests.support.sources import ROOT
from tests.support.talks import save_model

# Writes to the clipboard, clears the screen, colours (C1), overwrites the line, and reverses the text.
HOSTILE = "x\x1b]52;c;aGk=\x07\x1b[2J\x9b31m\r\b\u202e"
COMMANDS = [f"scripts.{path.stem}" for path in sorted((ROOT / "scripts").glob("[a-z]*.py"))]
COMMANDS += ["nanochat.dataset", "nanochat.report"]


def check(text: str, is_shown: bool = True) -> None:
    """Check the output of a command: no control characters, no traceback, and the hostile text as escapes."""
    assert not CONTROL.search(text), repr(text)
    assert "Traceback" not in text, text
    assert (r"\x1b" in text) == is_shown, text


# Settings: flags and settings files


def outputs_of_settings(name: str, folder: Path, run: Callable[..., None]) -> None:
    """Run a command with the text in each of its settings, as a flag and in a file, and as a setting and a file."""
    script = importlib.import_module(name)
    for field in dataclasses.fields(script.Config):
        run(script, field.name, HOSTILE if field.metadata["positional"] else f"--{field.name}={HOSTILE}")
        file = folder / "settings.toml"
        file.write_text(f"{field.name} = {json.dumps(HOSTILE)}", encoding="utf-8")
        run(script, field.name, str(file))
    file.write_text(f"{json.dumps(HOSTILE)} = 1", encoding="utf-8")
    run(script, None, str(file))
    file.write_text(f"= {HOSTILE}", encoding="utf-8")
    run(script, None, str(file))
    run(script, None, f"{HOSTILE}.toml")
    run(script, None, f"--{HOSTILE}=1")


@pytest.mark.parametrize("name", COMMANDS)
def test_settings(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(script: object, field: str | None, *flags: str) -> None:
        monkeypatch.setattr(sys, "argv", ["script", *flags])
        code: object = 0
        try:
            cli(script.Config, lambda config: print0("value:", getattr(config, field or "")), script.__doc__)  # type: ignore[attr-defined]
        except SystemExit as exit_request:
            code = exit_request.code
        out, err = capsys.readouterr()
        check(out + err, is_shown="\\x1b" in out + err)
        assert (code == 2 and err.count("\n") == 1) or (code == 0 and r"\x1b" in out), (code, out, err)

    outputs_of_settings(name, tmp_path, run)


# Files, servers and models


Run = Callable[..., str]


@pytest.fixture
def run(forker: Forker, base_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run(*command)` runs `python -m *command` in `tmp_path` and returns what it prints; it must not be a bug."""
    assert base_dir.is_dir()
    monkeypatch.setenv("NANOCHAT_DTYPE", "float32")  # without measuring it

    def run(*command: str) -> str:
        done = subprocess.run(
            [str(forker.python), "-m", *command], cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=200
        )
        assert done.returncode in (0, 2), done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.slow
def test_names_of_files_and_their_content(run: Run, base_dir: Path, tmp_path: Path) -> None:
    source = write_files(tmp_path / f"folder{HOSTILE}", **{f"{HOSTILE}.txt": b"caf\xe9 " * 50, f"{HOSTILE}.pdf": "pdf"})
    check(run("nanochat.dataset", "--source", str(source)))
    for content in ("{", '{"text": 1}', json.dumps({HOSTILE: 1})):
        lines = write_files(tmp_path / "lines", **{f"{HOSTILE}.jsonl": content + "\n"})
        check(run("nanochat.dataset", "--source", str(lines)))
    save_model(base_dir)
    check(run("scripts.mid_train", f"--mixture={tmp_path / HOSTILE}.toml"))


def test_names_of_columns(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({HOSTILE: ["a"]}), path)
    check(run("nanochat.dataset", "--source", str(path)))
    check(run("nanochat.dataset", "--source", str(path), f"--text_column={HOSTILE} "))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["source", "train", "validation", "files", "format", "recipe", "key"])
def test_strings_of_a_manifest(run: Run, base_dir: Path, tmp_path: Path, place: str) -> None:
    import_files(write_files(tmp_path / "texts", **{"a.txt": "\n\n".join(numbered_texts(40))}), base_dir / "base_data")
    path = base_dir / "base_data" / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if place == "key":
        manifest[HOSTILE] = 1
    else:
        kind = {"train": [HOSTILE], "files": {HOSTILE: {}}, "recipe": {HOSTILE: HOSTILE}}
        manifest[place] = kind.get(place, HOSTILE)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    text = run("scripts.tok_train", "--vocab_size=270")
    check(text, is_shown=r"\x1b" in text)
    if place in ("train", "validation", "files"):
        check(text)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["step", "tokenizer_hash", "model_config", "compute_dtype", "arch", "format"])
def test_strings_of_meta_json(run: Run, base_dir: Path, place: str) -> None:
    save_chat_model(base_dir, "sft")
    path = next(base_dir.rglob("meta.json"))
    meta = json.loads(path.read_text(encoding="utf-8"))
    meta[place] = {HOSTILE: HOSTILE} if place == "model_config" else HOSTILE
    path.write_text(json.dumps(meta), encoding="utf-8")
    text = run("scripts.chat_cli", "-p", "?", "-m", "1", "--device=cpu")
    check(text, is_shown=r"\x1b" in text)


@pytest.mark.slow
def test_strings_of_the_tokenizer(run: Run, base_dir: Path) -> None:
    save_chat_model(base_dir, "sft")
    path = base_dir / "tokenizer" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for key in [*content, HOSTILE]:
        path.write_text(json.dumps({**content, key: HOSTILE}), encoding="utf-8")
        text = run("scripts.chat_cli", "-p", "?", "-m", "1", "--device=cpu")
        check(text, is_shown=r"\x1b" in text)


@pytest.mark.slow
def test_labels_of_a_bundle_of_tasks(run: Run, base_dir: Path, tmp_path: Path) -> None:
    save_model(base_dir)
    bundle = write_bundle(tmp_path / "bundle", TASKS)
    path = bundle / "core.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("choice\n", f"{json.dumps(HOSTILE)}\n"), encoding="utf-8")
    text = run("scripts.base_eval", f"--eval_bundle={bundle}", "--device=cpu")
    check(text, is_shown=r"\x1b" in text)
    path.write_text(f"icl_tasks: {json.dumps(HOSTILE)}", encoding="utf-8")
    text = run("scripts.base_eval", f"--eval_bundle={bundle}", "--device=cpu")
    check(text, is_shown=r"\x1b" in text)


@pytest.fixture
def rude_server() -> Iterator[str]:
    """The address of a server whose reason for status 404 has control sequences."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            with client:
                client.recv(65536)
                client.sendall(
                    b"HTTP/1.1 404 \x1b]0;x\x07\x9b2J gone\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                )

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


@pytest.mark.slow
def test_reasons_of_a_server(run: Run, rude_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = run("scripts.base_eval", f"--eval_bundle={rude_server}/{HOSTILE}.zip", "--download_only")
    check(text)
    monkeypatch.setenv("HF_ENDPOINT", rude_server)
    text = run("nanochat.dataset", "-n", "1")
    assert "404" in text
    check(text, is_shown=r"\x1b" in text)


@pytest.mark.slow
def test_the_text_of_a_model(run: Run, base_dir: Path) -> None:
    for character in "\x1b\r\b\x07":
        save_chat_model(base_dir, "sft", character)
        text = run("scripts.chat_cli", "-p", "?", "-t", "0", "-m", "9", "--device=cpu")
        assert not CONTROL.search(text)
        assert repr(character)[1:-1] * 5 in text


@pytest.mark.slow
def test_sections_of_the_report(run: Run, base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = "](https://example.com)![x"  # Markdown in a name
    for name in ("base_train", f"{HOSTILE}<b>{image.replace('/', '')}"):
        log_section("base_loss", {"title": HOSTILE, "notes": [HOSTILE], "metrics": {HOSTILE: 1.0}})
        (base_dir / "report" / "base_loss.json").rename(base_dir / "report" / f"{name}.json")
    log_section(
        "chat_eval_sft",
        {
            "settings": {HOSTILE: HOSTILE},
            "environment": {HOSTILE: HOSTILE},
            "curves": {HOSTILE: {"x": [0, 1], "y": [1.0, 2.0], "xlabel": HOSTILE, "ylabel": HOSTILE}},
            "samples": [{"prompt": HOSTILE, "text": HOSTILE, "verdicts": [{"sentence": HOSTILE, "sound": False}]}],
        },
    )
    (base_dir / "report" / f"{HOSTILE}.json").write_text("{", encoding="utf-8")
    monkeypatch.setenv("MPLCONFIGDIR", str(base_dir))
    check(run("nanochat.report"))
    markdown = (base_dir / "report" / "report.md").read_text(encoding="utf-8")
    assert not CONTROL.search(markdown)
    assert "](https" not in markdown
    assert "<b>" not in markdown.replace("\\<b\\>", "")
