"""scripts.export_gguf: files of checkpoints, refusals in one line, and the chat with a file."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest

from nanochat.common import UserError, base_dir
from nanochat.export.gguf_file import TOOL_LIMIT, GGUFFile
from scripts import chat_cli, export_gguf
from tests.support.exports import TOKENIZER, VOCAB_SIZE, loud_model, save
from tests.support.gguf import SHAPES, digits_tokenizer
from tests.support.models import constant_model

pytestmark = pytest.mark.usefixtures("one_thread", "base")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base folder in tmp_path."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))


def export(out: Path, **settings: object) -> GGUFFile:
    """Export and open the file."""
    return GGUFFile.open(export_gguf.main(export_gguf.Config(out=out, **settings)))  # type: ignore[arg-type]


def test_a_checkpoint_becomes_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(loud_model(SHAPES["plain"]), tokenizer=digits_tokenizer(1))
    file = export(tmp_path / "m.gguf")
    assert (file.keys["general.name"], file.keys["nanochat.step"]) == ("nanochat d9 base", 7)
    assert file.context_len == 96
    assert file.tokenizer().hash() == digits_tokenizer(1).hash()
    assert set(file.types.values()) == {"BF16", "F32"}
    out = capsys.readouterr().out
    assert "m.gguf" in out
    assert "- The soft cap of the logits (15) is missing: greedy decoding is exact" in out
    assert f"- {TOOL_LIMIT}" in out
    assert file.keys["nanochat.limits"][0] in out


def test_other_types_and_forms(tmp_path: Path) -> None:
    save(loud_model(SHAPES["plain"]), source="sft", tokenizer=digits_tokenizer(3))
    file = export(tmp_path / "m.gguf", source="sft", type="q8_0", form="gemma3")
    assert file.keys["general.architecture"] == "gemma3"
    assert file.keys["tokenizer.ggml.pre"] == "llama-bpe"
    assert set(file.types.values()) == {"Q8_0", "F32"}
    assert file.limits == []


def test_digits_that_no_engine_cuts_so(tmp_path: Path) -> None:
    save(loud_model(SHAPES["plain"]), tokenizer=digits_tokenizer(2))
    with pytest.raises(UserError, match="tokens of two digits"):
        export(tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()
    assert "Numbers of three" in export(tmp_path / "m.gguf", allow_other_digits=True).limits[1]


def test_a_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    save(loud_model(SHAPES["plain"]), tokenizer=digits_tokenizer(1))
    (tmp_path / "m.gguf").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match=r"m\.gguf exists: choose another --out, or --overwrite it"):
        export(tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_text(encoding="utf-8") == "mine"
    assert export(tmp_path / "m.gguf", overwrite=True).context_len == 96


def test_a_full_disk_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is left out, and the message says which one."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    save(loud_model(SHAPES["plain"]), tokenizer=digits_tokenizer(1))
    monkeypatch.setattr("gguf.GGUFWriter.write_tensors_to_file", full)
    with pytest.raises(UserError, match=r"cannot write .*m\.gguf: No space left on device: free some space"):
        export(tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match=r"cannot write .*choose another file"):
        export(tmp_path / "file" / "m.gguf")


def test_names_of_files() -> None:
    with pytest.raises(UserError, match="--out is missing"):
        export_gguf.Config()
    with pytest.raises(UserError, match=r"must end in \.gguf"):
        export_gguf.Config(out=Path("model"))
    with pytest.raises(UserError, match="type is 'f16'"):
        export_gguf.Config(out=Path("m.gguf"), type="f16")


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    save(loud_model(SHAPES["plain"]), tokenizer=digits_tokenizer(1))
    TOKENIZER.save(base_dir() / "tokenizer")
    with pytest.raises(UserError, match="tokenizer"):
        export(tmp_path / "m.gguf")


def test_chat_with_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A question is answered by llama.cpp, in the same terminal as with a checkpoint."""
    pytest.importorskip("xllamacpp", reason="llama.cpp (the package xllamacpp) is not installed")
    letter = TOKENIZER.encode("e")[0]
    shape = {"n_layer": 1, "n_head": 1, "n_kv_head": 1, "n_embd": 32}
    save(constant_model(96, letter, VOCAB_SIZE, **shape), tokenizer=digits_tokenizer(1))
    export(tmp_path / "m.gguf")
    capsys.readouterr()
    chat_cli.main(chat_cli.Config(gguf=tmp_path / "m.gguf", prompt="Hi?", max_tokens=5, temperature=0.0))
    output = capsys.readouterr()
    assert output.out == "eeeee\n"
    assert "NOTICE: The soft cap" in output.err


def test_chat_with_a_file_takes_no_checkpoint() -> None:
    with pytest.raises(UserError, match="--gguf names the model: omit source, model_tag and step"):
        chat_cli.Config(gguf=Path("m.gguf"), source="sft")


def test_chat_with_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(UserError, match=r"none\.gguf"):
        chat_cli.main(chat_cli.Config(gguf=tmp_path / "none.gguf"))
