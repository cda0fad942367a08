"""Weights of a model in the architectures of llama.cpp: rotations, scales, names."""

from __future__ import annotations

import gguf
import pytest
import torch

from nanochat.common import UserError
from nanochat.export.gguf_forms import FORMS, MAX_BLOCK_SCALE, choose_scales, swap_halves
from nanochat.gpt import GPTConfig, apply_rotary
from tests.support.exports import loud_model
from tests.support.gguf import SHAPES


def test_swapped_halves_turn_the_rotation_round() -> None:
    """A product of swapped rows, rotated by plus the angle, is the swapped product rotated by minus the angle."""
    weight = torch.randn(2 * 8, 5)  # two heads of size 8
    x = torch.randn(5)
    angle = torch.rand(4) * 6
    heads = (weight @ x).view(2, 8)
    swapped = (swap_halves(weight, 8) @ x).view(2, 8)
    first, second = swapped[:, :4], swapped[:, 4:]
    plus = torch.cat((first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()), -1)
    ours = apply_rotary(heads, angle.cos(), angle.sin())
    torch.testing.assert_close(plus, torch.cat((ours[:, 4:], ours[:, :4]), -1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_names_are_those_of_the_architecture(form: str, shape: str) -> None:
    """All tensors that gguf's own table lists for the architecture are there, and no others."""
    config = SHAPES[shape]
    scales = choose_scales(loud_model(config).state_dict(), is_quantized=False)
    tensors = dict(FORMS[form].tensors(loud_model(config).state_dict(), config, scales))
    architecture = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}[FORMS[form].architecture]
    listed = {gguf.TENSOR_NAMES[tensor] for tensor in gguf.MODEL_TENSORS[architecture]}
    # Frequencies of scaled rotary embeddings, and the gate of apertus, which has none, are not needed.
    listed -= {"rope_freqs", "blk.{bid}.attn_rot_embd", *(["blk.{bid}.ffn_gate"] if form == "apertus" else [])}
    names = {name.format(bid=layer) + ".weight" for name in listed for layer in range(config.n_layer)}
    assert tensors.keys() == names
    assert tensors["token_embd.weight"].shape == tensors["output.weight"].shape == (config.vocab_size, config.n_embd)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in tensors.values())


def test_scales_fit_into_the_scale_of_a_block() -> None:
    weights = {"blocks.0.attn.q_proj.weight": torch.full((2, 2), 0.5), "head.weight": torch.full((2, 2), 1e9)}
    assert choose_scales(weights, is_quantized=False).residual == 2.0**24
    assert choose_scales(weights, is_quantized=True).residual == 2.0**22
    weights["blocks.0.attn.k_proj.weight"] = torch.full((2, 2), -9.0)
    residual = choose_scales(weights, is_quantized=True).residual
    assert residual * 9 / 127 <= MAX_BLOCK_SCALE < 2 * residual * 9 / 127


def test_a_model_without_soft_cap_needs_no_gemma3() -> None:
    config = GPTConfig(8, 300, 1, 1, 1, 4, softcap=0.0)
    with pytest.raises(UserError, match=r"no soft cap.*--form=apertus"):
        FORMS["gemma3"].keys(config, choose_scales({}, is_quantized=False))
    assert "final_logit_softcapping" not in FORMS["apertus"].keys(config, choose_scales({}, is_quantized=False))
