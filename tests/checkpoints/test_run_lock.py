"""One training run in a folder at a time; the lock is released however the run ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nanochat.checkpoints.run_lock import LOCK_FILE, lock_run, run_locks
from nanochat.common import UserError
from nanochat.system.locks import file_lock
from scripts import base_train, chat_rl, chat_sft, mid_train
from tests.support.talks import save_model


@pytest.mark.parametrize("error", [None, UserError("no such task"), KeyboardInterrupt()], ids=repr)
def test_the_lock_of_a_run(base_dir: Path, error: BaseException | None) -> None:
    """A folder in which nothing was saved is removed; others stay."""
    folder = base_dir / "base_checkpoints" / "d4"

    @run_locks()
    def main() -> None:
        lock_run(folder)
        with pytest.raises(UserError, match=rf"^{folder} is in use by process .*: .*--model_tag"):
            lock_run(folder)
        assert (folder / LOCK_FILE).exists()
        if error:
            raise error

    for _ in range(2):
        if error:
            with pytest.raises(type(error)):
                main()
        else:
            main()
        assert not list(base_dir.iterdir())
    folder.mkdir(parents=True)
    (folder / "notes.txt").touch()
    if not error:
        main()
        assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_other_ranks_take_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with run_locks():
        lock_run(tmp_path / "d4")
        lock_run(tmp_path / "d4")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("script", "folder"),
    [
        (base_train, "base_checkpoints"),
        (mid_train, "mid_checkpoints"),
        (chat_sft, "chatsft_checkpoints"),
        (chat_rl, "chatrl_checkpoints"),
    ],
)
def test_every_stage_is_refused_at_the_start(script: Any, folder: str, run_here: Path) -> None:
    """Before data is read or a model is built; reading programs and other folders are not concerned."""
    for source in ("base", "mid", "sft"):
        save_model(run_here, source)
    config = script.Config(device="cpu", model_tag="d1")
    with file_lock(run_here / folder / "d1" / LOCK_FILE, "held by"), pytest.raises(UserError, match="is in use by"):
        script.main(config)
