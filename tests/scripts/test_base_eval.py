"""base_eval from the bundle to the table, the CSV and the report: of one model, and of two."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.checkpoint_manager import model_meta, run_dir, save_checkpoint
from nanochat.common import UserError
from nanochat.configurator import parse
from nanochat.data import download
from nanochat.eval.core_bundle import PUBLIC_BUNDLE, find_bundle
from nanochat.gpt import GPT
from nanochat.report import render
from nanochat.reporting.schema import proportion
from nanochat.reporting.significance import paired_gain
from nanochat.runtime import Runtime
from scripts import base_eval, base_loss, export_hf
from tests.support.bundles import HAND_RESULTS, HAND_TASKS, LOGITS, deep_model, pair_model, write_hand_bundle
from tests.support.fileserver import FileServer, running, status
from tests.support.talks import TOKENIZER

CPU = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 0)


def save(model: GPT, tag: str = "d1", step: int = 5) -> None:
    """Save a base checkpoint and the tokenizer in the base folder."""
    TOKENIZER.save(run_dir("base", "").parent / "tokenizer")
    save_checkpoint(run_dir("base", tag), step, model.state_dict(), {}, model_meta(model, CPU, TOKENIZER))


def test_base_eval(run_here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table at the terminal, the CSV and the report's section."""
    save(pair_model(LOGITS))
    write_hand_bundle(run_here / "eval_bundle", missing=["coqa"])
    results = base_eval.main(base_eval.Config(device="cpu"))
    assert [result.correct for result in results] == list(HAND_RESULTS.values())
    out = capsys.readouterr().out
    assert "CORE over 3 of 4: 0.2500, standard error" in out
    assert "guessing alone gives 0.0093" in out
    assert "which the score leaves out: coqa" in out
    rows = (run_here / "base_eval" / "d1_000005.csv").read_text(encoding="utf-8").splitlines()
    assert rows[1].split(",")[0::7] == ["choice", "0.166667"]
    assert rows[4].split(",")[0::7] == ["CORE over 3 of 4", "0.25"]
    section = json.loads((run_here / "report" / "base_eval.json").read_text(encoding="utf-8"))
    assert section["metrics"]["schema"] == {**proportion(2, 3), "chance": 0.5}
    assert section["metrics"]["CORE over 3 of 4"]["value"] == pytest.approx(0.25)
    assert section["answers"]["choice"]["correct"] == "1010"
    assert (section["model"], section["checkpoint"]) == ("base", "d1:5")
    limited = base_eval.main(base_eval.Config(device="cpu", max_per_task=2))
    assert [result.num_examples for result in limited] == [2, 2, 2]


@pytest.mark.usefixtures("run_here")
def test_without_a_bundle(base_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find_bundle() is None
    with pytest.raises(UserError, match=r"no evaluation bundle at .*eval_bundle: put a folder"):
        base_eval.main(base_eval.Config(device="cpu", eval_bundle=""))
    with pytest.raises(UserError, match="no evaluation bundle at absent"):
        base_eval.main(base_eval.Config(device="cpu", eval_bundle="absent"))
    with pytest.raises(UserError, match=r"no evaluation bundle at x.*File name too long"):
        find_bundle("x" * 300)
    capsys.readouterr()
    assert base_eval.main(base_eval.Config(device="cpu", eval_bundle="absent", allow_missing=True)) == []
    assert capsys.readouterr().out.startswith("CORE is not measured: no evaluation bundle at absent")
    assert not (base_dir / "report").exists()
    (base_dir / "eval_bundle.zip").touch()
    assert find_bundle() == base_dir / "eval_bundle.zip"


# --- the public bundle ------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server of a bundle, in the place of the public one."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "FIRST_WAIT_SECONDS", 0.01)
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", write_hand_bundle(tmp_path / "in"))
    with running(FileServer({"eval_bundle.zip": Path(packed).read_bytes()})) as server:
        yield server


def test_the_public_bundle_is_the_default() -> None:
    assert parse(base_eval.Config, []).eval_bundle == PUBLIC_BUNDLE
    assert PUBLIC_BUNDLE.startswith("https://")


def test_a_downloaded_bundle(run_here: Path, server: FileServer) -> None:
    """It is downloaded, measured, and named in the report with its SHA-256; CORE stands in the table by stage."""
    save(pair_model(LOGITS))
    config = base_eval.Config(device="cpu", eval_bundle=server.address("eval_bundle.zip"))
    assert [result.correct for result in base_eval.main(config)] == list(HAND_RESULTS.values())
    notes = json.loads((run_here / "report" / "base_eval.json").read_text(encoding="utf-8"))["notes"]
    content = server.files["eval_bundle.zip"]
    place = f"{run_here / 'eval_bundle.zip'}, {len(content):,} bytes, SHA-256 {hashlib.sha256(content).hexdigest()}"
    assert f"Tasks: {place}." in notes
    text = render().read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if re.match(r"\|\s*CORE\s*\|", line)]
    assert "0.25" in rows[0]  # of the table at the top; base_eval's own follows


@pytest.mark.parametrize("fault", [status(404), status(503)], ids=["404", "no answer"])
def test_a_bundle_that_cannot_be_downloaded(
    run_here: Path, server: FileServer, capsys: pytest.CaptureFixture[str], fault: Any
) -> None:
    """As in speedrun.sh: one line and no failure. Without --allow_missing it is an error."""
    server.faults["eval_bundle.zip"] = [fault]
    server.stuck = True
    flags = [f"--eval_bundle={server.address('eval_bundle.zip')}", "--device=cpu"]
    for more in (["--download_only"], []):
        assert base_eval.main(parse(base_eval.Config, [*flags, "--allow_missing", *more])) == []
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("Downloading ")
        assert lines[1].startswith("CORE is not measured: http")
        assert len(lines) == 2
        with pytest.raises(UserError, match="eval_bundle"):
            base_eval.main(parse(base_eval.Config, [*flags, *more]))
        capsys.readouterr()
    assert not list(run_here.glob("*.zip"))
    assert not (run_here / "report").exists()


def test_download_only(run_here: Path, server: FileServer) -> None:
    """No device is used and no model needed."""
    config = base_eval.Config(eval_bundle=server.address("eval_bundle.zip"), download_only=True)
    assert base_eval.main(config) == []
    assert find_bundle() == run_here / "eval_bundle.zip"


def test_only_the_main_process_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others take its path, or its error."""
    results: list[Any] = [(Path("there.zip"), None), (None, "it is gone")]
    monkeypatch.setattr(base_eval, "find_bundle", lambda _: pytest.fail("only the main process looks for it"))
    monkeypatch.setattr(Runtime, "broadcast", lambda _self, _value: results.pop(0))
    other = replace(CPU, rank=1)
    assert base_eval.fetch_bundle(base_eval.Config(), other) == Path("there.zip")
    with pytest.raises(UserError, match="it is gone"):
        base_eval.fetch_bundle(base_eval.Config(), other)


def test_refused_settings() -> None:
    for name in ("max_per_task", "batch_tokens"):
        with pytest.raises(UserError, match=f"{name} is 0"):
            base_eval.Config(**{name: 0})


# --- --compare --------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_steps(run_here: Path) -> Path:
    """A base folder with a bundle and a model at two steps; at the first, all its logits are 0."""
    save(pair_model({}), step=5)
    save(pair_model(LOGITS), step=10)
    write_hand_bundle(run_here / "eval_bundle", missing=["coqa"])
    return run_here


def test_two_steps_of_a_run(two_steps: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: with equal logits every example is a tie, of which the first option counts."""
    config = parse(base_eval.Config, ["--compare", "d1:5", "d1", "--device=cpu"])
    results = base_eval.main(config)
    ties = [[not row.get("gold", 1) for row in rows] for _, rows in HAND_TASKS.values()]
    correct = list(HAND_RESULTS.values())
    assert [result.correct for result in results] == [*ties, *correct]
    out = capsys.readouterr().out
    assert "A is d1:5, B is d1:10\n" in out
    core_a, core_b = ((sum(ties[0]) / 4 - 0.4) / 0.6 + (sum(ties[1]) / 3 - 0.5) / 0.5) / 3, (1 / 6 + 1 / 3 + 1 / 4) / 3
    assert f"CORE over 3 of 4: A {core_a:.4f}, B {core_b:.4f}, B - A {core_b - core_a:+.4f}, 95% interval" in out
    assert "which the score leaves out: coqa" in out
    with open(two_steps / "base_eval" / "compare_d1_000005_d1_000010.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["task"] for row in rows] == [*HAND_TASKS, "CORE over 3 of 4"]
    assert float(rows[0]["difference"]) == sum(correct[0]) / 4 - sum(ties[0]) / 4
    assert float(rows[3]["difference"]) == pytest.approx(core_b - core_a, abs=1e-5)
    section = json.loads((two_steps / "report" / "core_compare.json").read_text(encoding="utf-8"))
    assert section["metrics"]["words"] == paired_gain(ties[2], correct[2])
    assert section["metrics"]["CORE over 3 of 4"]["value"] == pytest.approx(core_b - core_a)
    assert section["notes"][0] == "A: Checkpoint d1 of step 5, computing in float32."
    assert not (two_steps / "report" / "base_eval.json").exists()


def test_a_checkpoint_and_a_folder(two_steps: Path, tmp_path: Path) -> None:
    """A checkpoint and its own export do not differ."""
    folder = export_hf.main(export_hf.Config(out=tmp_path / "out"))
    results = base_eval.main(base_eval.Config(device="cpu", compare="d1", other=str(folder), max_per_task=3))
    assert [result.correct for result in results[:3]] == [result.correct for result in results[3:]]
    metrics = json.loads((two_steps / "report" / "core_compare.json").read_text(encoding="utf-8"))["metrics"]
    assert metrics["choice"]["value"] == 0
    assert metrics["choice"]["p"] == 1
    assert (two_steps / "base_eval" / "compare_d1_000010_out.csv").exists()


@pytest.mark.usefixtures("two_steps")
def test_an_empty_name_is_refused() -> None:
    """For example of a shell variable that is not set: it must not select the default checkpoint."""
    with pytest.raises(UserError, match="hf_path is empty"):
        base_eval.main(base_eval.Config(device="cpu", hf_path=""))
    with pytest.raises(UserError, match="'' is neither a folder"):
        base_eval.main(base_eval.Config(device="cpu", compare="", other="d1"))
    with pytest.raises(UserError, match="hf_path is empty"):
        base_loss.main(base_loss.Config(device="cpu", hf_path=""))


@pytest.mark.parametrize(
    "flags", [["--compare", "d1"], ["d1"], ["--compare", "a", "b", "--hf-path=c"], ["-g", "a", "--hf-path=c"]]
)
def test_refused_flags(flags: list[str]) -> None:
    with pytest.raises(UserError, match=r"--compare A B|choose one of"):
        parse(base_eval.Config, flags)


def test_two_tags(two_steps: Path) -> None:
    """Compared models have the results that they have alone."""
    save(deep_model(64), tag="d2", step=1)
    both = base_eval.main(base_eval.Config(device="cpu", compare="d2", other="d1"))
    alone = [base_eval.main(base_eval.Config(device="cpu", model_tag=tag)) for tag in ("d2", "d1")]
    assert [result.correct for result in both] == [result.correct for results in alone for result in results]
    assert torch.get_num_threads() == 1
    assert (two_steps / "report" / "base_eval.json").exists()
