"""A forward pass from the tensors of a file alone gives the model's logits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from nanochat.common import UserError
from nanochat.export import gguf_forms
from nanochat.export.gguf_file import GGUFFile
from nanochat.export.gguf_twin import GGUFTwin
from nanochat.gpt import GPT
from tests.support.exports import loud_model, random_prompt
from tests.support.gguf import SHAPES, write

pytestmark = pytest.mark.usefixtures("one_thread")
LENGTH = 64


@torch.inference_mode()
def model_logits(model: GPT, is_capped: bool) -> torch.Tensor:
    """Return logits (T, V) of a random prompt, before or after the soft cap."""
    hidden = model.hidden_states(random_prompt(LENGTH))[0]
    return model.logits(hidden) if is_capped else model.head(hidden)[:, : model.config.vocab_size]


def difference(file: GGUFFile, model: GPT) -> float:
    """Return the largest difference of a logit between a file and a model."""
    twin = GGUFTwin(file)
    assert twin.context_len == model.config.sequence_len
    ours = model_logits(model, is_capped=twin.is_gemma)
    return float((twin.logits(random_prompt(LENGTH)[0].tolist()) - ours).abs().max())


@pytest.mark.parametrize("form", gguf_forms.FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits(form: str, shape: str, tmp_path: Path) -> None:
    """Plain and grouped heads, a width that 256 does not divide, a vocabulary with padding."""
    model = loud_model(SHAPES[shape])
    assert model.config.vocab_size < model.config.padded_vocab_size
    assert difference(write(tmp_path / "m.gguf", model, form=form), model) < 1e-4


def test_logits_without_soft_cap(tmp_path: Path) -> None:
    model = loud_model(dataclasses.replace(SHAPES["grouped"], softcap=0.0))
    file = write(tmp_path / "m.gguf", model)
    assert not any("soft cap" in limit for limit in file.limits)
    ours = model_logits(model, is_capped=True)
    assert float((GGUFTwin(file).logits(random_prompt(LENGTH)[0].tolist()) - ours).abs().max()) < 1e-4


@pytest.mark.parametrize("form", gguf_forms.FORMS)
def test_another_soft_cap(form: str, tmp_path: Path) -> None:
    model = loud_model(dataclasses.replace(SHAPES["plain"], softcap=4.0))
    assert difference(write(tmp_path / "m.gguf", model, form=form), model) < 1e-4


def test_a_wrong_rotation_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_forms, "swap_halves", lambda weight, _head_dim: weight)
    model = loud_model(SHAPES["plain"])
    assert difference(write(tmp_path / "m.gguf", model), model) > 1


def test_gemma3_is_exact_beyond_rounding_only_with_large_scales(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With small scales the norms of the layers' outputs are not linear: the difference is seen."""
    model = loud_model(SHAPES["plain"])
    monkeypatch.setattr(gguf_forms, "EXACT_SCALES", gguf_forms.Scales(residual=2.0**10, gate=4.0))
    assert difference(write(tmp_path / "m.gguf", model, form="gemma3"), model) > 0.1


@pytest.mark.parametrize("form", gguf_forms.FORMS)
def test_types_of_weights(form: str, tmp_path: Path) -> None:
    """Each type of weights costs about what its number of bits lets expect."""
    model = loud_model(SHAPES["plain"])
    errors = {
        kind: difference(write(tmp_path / f"{kind}.gguf", model, weight_type=kind, form=form), model)
        for kind in ("f32", "bf16", "q8_0", "q4_0")
    }
    assert errors["f32"] < 1e-4
    assert 0.01 < errors["bf16"] < 0.2  # 8 bits of mantissa
    assert 0.05 < errors["q8_0"] < 0.6  # 8 bits for the range of a block
    assert errors["q4_0"] < 8  # 4 bits
    sizes = [(tmp_path / f"{kind}.gguf").stat().st_size for kind in errors]
    assert sizes == sorted(sizes, reverse=True)


def test_other_files_are_refused(tmp_path: Path) -> None:
    model = loud_model(SHAPES["one key-value head"])
    file = write(tmp_path / "m.gguf", model)
    with pytest.raises(UserError, match="architecture 'llama': must be apertus or gemma3"):
        GGUFTwin(dataclasses.replace(file, keys={**file.keys, "general.architecture": "llama"}))
    with pytest.raises(UserError, match=r"m\.gguf has a key that is no number"):
        GGUFTwin(dataclasses.replace(file, keys={**file.keys, "apertus.block_count": "many"}))
    keys = {name: value for name, value in file.keys.items() if name != "xielu.beta"}
    with pytest.raises(UserError, match=r"m\.gguf has no key 'xielu\.beta'"):
        GGUFTwin(dataclasses.replace(file, keys=keys))
