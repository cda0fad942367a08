"""The places of all results are tried before the work: an unwritable one costs a line, and no result."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from dev import gen_synthetic_data, list_words
from nanochat import dataset, report
from nanochat.common import UserError
from nanochat.report import log_section
from nanochat.reporting import plots
from scripts import (
    base_eval,
    base_loss,
    base_train,
    chat_cli,
    chat_eval,
    chat_rl,
    chat_sft,
    chat_web,
    document_eval,
    export_hf,
    import_hf,
    memorisation,
    mid_train,
    read_documents,
    tok_eval,
    tok_train,
)
from tests.support.bundles import write_hand_bundle
from tests.support.datasets import numbered_texts, write_files
from tests.support.sources import sources
from tests.support.talks import save_model

SMALL = ("--device=cpu", "--compile=off", "--eval_tokens=64")
RUN = (*SMALL, "--depth=1", "--head_dim=32", "--max_seq_len=32", "--device_batch_size=2", "--total_batch_size=64")
REPORT = "report/{}.json"

# A script, its flags, and the file whose place is tried; chat_eval's own file beside the section.
RESULTS: list[tuple[ModuleType, tuple[str, ...], str]] = [
    (dataset, ("--source=storyworld", "-n", "1"), REPORT.format("dataset")),
    (tok_train, (), REPORT.format("tok_train")),
    (tok_train, (), "tokenizer/tokenizer.json"),
    (tok_eval, ("--peers=false",), REPORT.format("tok_eval")),
    (base_train, (*RUN, "--num_iterations=1"), REPORT.format("base_train")),
    (base_loss, ("--device=cpu",), REPORT.format("base_loss")),
    (base_loss, ("--device=cpu", "--hf_path=x"), REPORT.format("hf_loss")),
    (base_eval, ("--device=cpu",), REPORT.format("base_eval")),
    (base_eval, ("--device=cpu", "--hf_path=x"), REPORT.format("hf_eval")),
    (base_eval, ("--device=cpu", "--compare", "d1", "d1"), REPORT.format("core_compare")),
    (mid_train, (*SMALL, "--mixture=MIXTURE"), REPORT.format("mid_train")),
    (chat_sft, (*SMALL, "--source=base", "--mixture=MIXTURE"), REPORT.format("chat_sft")),
    (chat_rl, ("--device=cpu", "--tasks=SpellingBee:1"), REPORT.format("chat_rl")),
    (chat_eval, ("--device=cpu", "-i", "sft", "--task_name=SpellingBee"), REPORT.format("chat_eval_sft")),
    (chat_eval, ("--device=cpu", "-i", "sft", "--task_name=SpellingBee"), "chat_eval/sft_d1.json"),
    (read_documents, ("--source=x",), REPORT.format("read_documents")),
    (read_documents, ("--source=x",), "documents/documents.jsonl"),
    (document_eval, ("--device=cpu",), REPORT.format("document_eval_sft")),
    (document_eval, ("--device=cpu",), "document_eval/sft_d1.json"),
    (memorisation, ("--device=cpu", "--source=sft"), REPORT.format("memorisation_sft")),
    (report, (), "report/report.md"),
    (gen_synthetic_data, ("--kind=world", "--num=3"), "identity_conversations.jsonl"),
    (list_words, ("--min_count=1",), "words.txt"),
]


def block(folder: Path, result: str, way: str) -> None:
    """Make the place of a result unwritable, for root as well."""
    path = folder / result
    if way == "a file in the place of the folder":
        if path.parent == folder:
            pytest.skip("the file is in the base folder itself")
        shutil.rmtree(path.parent, ignore_errors=True)
        path.parent.write_text("mine", encoding="utf-8")
    else:
        if path.is_file():
            path.unlink()
        path.mkdir(parents=True)


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a script begins the work whose result has no place."""

    def work(*_: object, **__: object) -> None:
        pytest.fail("the work was begun before its place was tried")

    monkeypatch.setattr(dataset, "prepare", work)
    monkeypatch.setattr(tok_train, "trainable_tokenizer_class", work)
    monkeypatch.setattr(tok_eval, "bytes_per_token", work)
    monkeypatch.setattr(plots, "plot_curves", work)
    monkeypatch.setattr(gen_synthetic_data, "generate_conversations", work)
    monkeypatch.setattr(list_words, "iter_documents", work)


@pytest.mark.usefixtures("no_device")
@pytest.mark.parametrize("way", ["a file in the place of the folder", "a folder in the place of the file"])
@pytest.mark.parametrize(("script", "flags", "result"), RESULTS)
def test_the_place_is_tried_before_the_work(
    script: ModuleType,
    flags: tuple[str, ...],
    result: str,
    way: str,
    run_here: Path,
    mixture: str,
    refusal: Callable[..., str],
    request: pytest.FixtureRequest,
) -> None:
    for stage in ("mid", "sft"):
        save_model(run_here, stage)
    texts = write_files(run_here.parent / "texts", a__txt="\n\n".join(numbered_texts(40)))
    dataset.prepare(dataset.Config(source=str(texts)))
    write_hand_bundle(run_here / "eval_bundle")
    curve = {"x": [1, 2], "y": [1.0, 2.0], "xlabel": "step", "ylabel": "loss"}
    log_section("base_train", {"title": "A run", "curves": {"loss": curve}})
    request.getfixturevalue("no_work")

    if result.startswith("report/report") and way.startswith("a file"):
        pytest.skip("without its folder there is nothing to report")
    block(run_here, result, way)
    before = sorted(path for path in run_here.rglob("*") if path.is_file())
    line = refusal(script, *(flag.replace("--mixture=MIXTURE", mixture) for flag in flags))
    assert line.startswith(f"error: cannot write {run_here / result}"), line
    assert re.search(r"a folder is needed: remove it, or set NANOCHAT|it is a folder: remove it", line), line
    assert sorted(path for path in run_here.rglob("*") if path.is_file()) == before, "no temporary file is left"


COMMANDS: list[tuple[ModuleType, tuple[str, ...]]] = [
    *dict.fromkeys((script, flags) for script, flags, _ in RESULTS if "--hf_path=x" not in flags),
    (chat_cli, ("--prompt=hi",)),
    (chat_web, ()),
    (export_hf, ("--out=~/x",)),
    (import_hf, ("~/x",)),
]


@pytest.mark.usefixtures("run_here")
@pytest.mark.parametrize(("script", "flags"), COMMANDS)
def test_no_home_is_a_line(
    script: ModuleType, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, refusal: Callable[..., str]
) -> None:
    """As for the number of a user that a container does not know, without HOME."""

    def no_home(path: Path) -> Path:
        if str(path).startswith("~"):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.delenv("NANOCHAT_BASE_DIR")
    monkeypatch.setattr(Path, "expanduser", no_home)
    given = [flag for flag in flags if not flag.startswith("--mixture")]
    assert re.search("HOME is not set .* set HOME, or NANOCHAT_BASE_DIR", refusal(script, *given))


def test_every_command_with_a_section_is_in_the_list() -> None:
    """Those that write a section themselves; training runs write theirs through `training/` and `rl/`."""
    writers = {
        source.module
        for source in sources()
        if re.search(r"\blog_section\(|report_(pretraining|rl)\(|fine_tune\(", source.text)
        and '__name__ == "__main__"' in source.text
        and not source.path.startswith("tests/")
    }
    assert writers <= {script.__name__ for script, _, _ in RESULTS}


def test_a_picture_that_cannot_be_written_leaves_nothing(base_dir: Path) -> None:
    curve = {"x": [1, 2], "y": [1.0, 2.0], "xlabel": "step", "ylabel": "loss"}
    log_section("base_train", {"title": "A run", "curves": {"loss": curve}})
    (base_dir / "report" / "base_train.png").mkdir()
    with pytest.raises(UserError, match=r"base_train\.png: it is a folder"):
        report.render()
    assert sorted(path.name for path in (base_dir / "report").iterdir()) == ["base_train.json", "base_train.png"]
