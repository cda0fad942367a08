"""dev.check_gguf: what it measures, and when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dev import check_gguf
from nanochat.common import UserError
from nanochat.export import gguf_forms
from nanochat.export.gguf_twin import GGUFTwin
from nanochat.gpt import GPT
from scripts import export_gguf
from tests.support.exports import TOKENIZER, loud_model, save
from tests.support.gguf import SHAPES, digits_tokenizer, write
from tests.support.models import random_model
from tests.support.talks import TOKENIZER as BYTES

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GPT:
    """A model that is saved in a base folder in tmp_path."""
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    model = loud_model(SHAPES["plain"])
    save(model, tokenizer=digits_tokenizer(1))
    return model


def run(path: Path, **settings: object) -> check_gguf.LogitComparison:
    """Check a file."""
    return check_gguf.main(check_gguf.Config(gguf=path, num_prompts=3, max_new_tokens=8, **settings))  # type: ignore[arg-type]


@pytest.mark.usefixtures("model")
def test_an_exact_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("xllamacpp", reason="llama.cpp (the package xllamacpp) is not installed")
    path = export_gguf.main(export_gguf.Config(out=tmp_path / "m.gguf", type="f32", form="gemma3"))
    comparison = run(path)
    assert comparison.max_difference < 1e-4
    assert comparison.num_argmax_equal == comparison.num_positions
    assert comparison.kl < 1e-6
    assert comparison.bits_per_byte[0] == pytest.approx(comparison.bits_per_byte[1], abs=1e-5)
    out = capsys.readouterr().out
    assert "lines with other ids                0 of 7" in out
    assert "greedy completions equal            3 of 3" in out


@pytest.mark.usefixtures("model")
def test_a_wrong_file_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(check_gguf.sys.modules, "xllamacpp", None)
    monkeypatch.setattr(check_gguf.importlib.util, "find_spec", lambda _name: None)
    with monkeypatch.context() as patch:
        patch.setattr(gguf_forms, "swap_halves", lambda weight, _head_dim: weight)
        path = export_gguf.main(export_gguf.Config(out=tmp_path / "m.gguf", type="f32"))
    with pytest.raises(SystemExit):
        run(path)
    assert "xllamacpp is not installed" in capsys.readouterr().out


def test_bits_per_byte_are_those_of_the_definition(tmp_path: Path) -> None:
    """Nats of the targets that have bytes, over ln 2 and their bytes."""
    model = loud_model(SHAPES["plain"])
    twin = GGUFTwin(write(tmp_path / "m.gguf", model, form="gemma3"))
    ids = [TOKENIZER.get_bos_token_id(), *TOKENIZER.encode("A few words."), TOKENIZER.get_bos_token_id()]
    with torch.inference_mode():
        comparison = check_gguf.compare_logits(model, twin, [ids], TOKENIZER.token_bytes())
        losses = model(torch.tensor([ids[:-1]]), torch.tensor([ids[1:]]), loss_reduction="none")[0, :-1]
    assert comparison.bits_per_byte[0] == pytest.approx(float(losses.sum()) / 0.6931472 / len("A few words."))


def test_windows_cover_the_text() -> None:
    windows = check_gguf.cut_windows(list(range(10)), bos=99, length=4)
    assert windows == [[99, 0, 1, 2], [99, 3, 4, 5], [99, 6, 7, 8], [99, 9]]


@pytest.mark.usefixtures("model")
def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--gguf is missing"):
        check_gguf.Config()
    write(tmp_path / "small.gguf", random_model(32), BYTES)
    with pytest.raises(UserError, match="another vocabulary"):
        run(tmp_path / "small.gguf")
