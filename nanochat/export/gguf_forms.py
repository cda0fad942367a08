"""The model's weights in two architectures of llama.cpp that compute the same function.

Both have RMSNorm before each layer, QK-norm, and rotary embeddings that rotate the two halves of a head by plus the
angle of the position ("NeoX" order). nanochat rotates by minus the angle, so the halves of each head's rows of q and k
are swapped. QK-norm without parameters commutes with the rotation, the norm after the embedding is folded into its
rows, and rows that pad the vocabulary are dropped.

**apertus** has an ungated MLP with xIELU (arXiv 2411.13010) between up and down projection,

    xIELU(x) = softplus(alpha_p) x^2 + beta x                            for x > 0
               (beta + softplus(alpha_n)) (exp(x) - 1 - x) + beta x      for x <= 0

which is ReLU squared for beta = 0, softplus(alpha_p) = 1 and softplus(alpha_n) = 0. It has no soft cap of the logits.
The cap does not change their order, so greedy decoding is exact, but sampling is not, unless the model has no cap.

**gemma3** caps its logits, but normalizes the output of each layer and has a gated MLP with GELU. Two limits make them
ours. With the residual stream in units of 1 / R and eps R^2 for eps, a norm of the residual stream is unchanged, and
one of a layer's output y, which is small against sqrt(eps) R, is linear:

    norm(y) = y / sqrt(mean(y^2) + eps R^2) = y / (sqrt(eps) R)    so its weight is sqrt(eps) R^2 for an output R y

q and k are scaled by R before their norm. The gate is g times the up projection, whose rows are divided by g: gelu(g u)
u / g is relu(u)^2 for large g. The weights are a third more, and all of the model is exact up to rounding, the cap
included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nanochat.common import UserError
from nanochat.gpt import NORM_EPS, ROPE_BASE, GPTConfig, rms_norm

MAX_BLOCK_SCALE = 60_000.0  # of a block of quantized weights, a float16
XIELU_ALPHA_P = math.log(math.e - 1)  # softplus of it is 1
XIELU_ALPHA_N = -200.0  # softplus of it is 0; of -100 it may be 4e-44, and products with such numbers are slow
XIELU_BETA = 0.0
XIELU_EPS = -1e-6  # upper limit of x in exp(x) - 1, whose factor is 0 here

Tensors = Iterator[tuple[str, Tensor]]


@dataclass(frozen=True)
class Scales:
    """Factors of the gemma3 form."""

    residual: float  # R, of the residual stream and of q and k
    gate: float  # g


EXACT_SCALES = Scales(residual=2.0**24, gate=2.0**10)  # powers of two, with which float32 and bf16 lose nothing


@dataclass(frozen=True)
class Form:
    """An architecture of llama.cpp in which a model can be written."""

    architecture: str
    keys: Callable[[GPTConfig, Scales], dict[str, Any]]  # metadata without the architecture's prefix -> value
    tensors: Callable[[Mapping[str, Tensor], GPTConfig, Scales], Tensors]  # names in the file and float32 tensors


def swap_halves(weight: Tensor, head_dim: int) -> Tensor:
    """Return the rows of a q or k projection with the two halves of each head swapped: (H D, C) -> (H D, C)."""
    heads = weight.view(-1, 2, head_dim // 2, weight.size(-1))  # (H, 2, D/2, C)
    return heads.flip(1).reshape(weight.shape)


def _common_keys(config: GPTConfig) -> dict[str, Any]:
    return {
        "context_length": config.sequence_len,
        "embedding_length": config.n_embd,
        "block_count": config.n_layer,
        "feed_forward_length": 4 * config.n_embd,
        "attention.head_count": config.n_head,
        "attention.head_count_kv": config.n_kv_head,
        "rope.freq_base": ROPE_BASE,
        "rope.dimension_count": config.head_dim,
    }


def _apertus_keys(config: GPTConfig, _scales: Scales) -> dict[str, Any]:
    return {**_common_keys(config), "attention.layer_norm_rms_epsilon": NORM_EPS}


def _gemma3_keys(config: GPTConfig, scales: Scales) -> dict[str, Any]:
    if not config.softcap:
        raise UserError("the model has no soft cap, so the form apertus is exact: use --form=apertus")
    return {
        **_common_keys(config),
        "attention.layer_norm_rms_epsilon": NORM_EPS * scales.residual**2,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.sliding_window": config.sequence_len,  # every layer sees all of the context
        "final_logit_softcapping": config.softcap,
    }


def _vocab_tensors(weights: Mapping[str, Tensor], config: GPTConfig, embedding_scale: float) -> Tensors:
    embedding = weights["embed.weight"][: config.vocab_size].float()
    yield "token_embd.weight", rms_norm(embedding) * embedding_scale  # (V, C)
    yield "output_norm.weight", torch.ones(config.n_embd)
    yield "output.weight", weights["head.weight"][: config.vocab_size].float()  # (V, C)


def _attention_tensors(weights: Mapping[str, Tensor], config: GPTConfig, layer: int, qk_scale: float) -> Tensors:
    name, block = f"blocks.{layer}.attn", f"blk.{layer}"
    for letter in "qk":
        rows = swap_halves(weights[f"{name}.{letter}_proj.weight"].float(), config.head_dim)
        yield f"{block}.attn_{letter}.weight", rows * qk_scale
        yield f"{block}.attn_{letter}_norm.weight", torch.ones(config.head_dim)
    yield f"{block}.attn_v.weight", weights[f"{name}.v_proj.weight"].float()
    yield f"{block}.attn_output.weight", weights[f"{name}.o_proj.weight"].float()
    yield f"{block}.attn_norm.weight", torch.ones(config.n_embd)
    yield f"{block}.ffn_norm.weight", torch.ones(config.n_embd)


def _apertus_tensors(weights: Mapping[str, Tensor], config: GPTConfig, _scales: Scales) -> Tensors:
    yield from _vocab_tensors(weights, config, 1.0)
    for layer in range(config.n_layer):
        yield from _attention_tensors(weights, config, layer, 1.0)
        yield f"blk.{layer}.ffn_up.weight", weights[f"blocks.{layer}.mlp.up_proj.weight"].float()
        yield f"blk.{layer}.ffn_down.weight", weights[f"blocks.{layer}.mlp.down_proj.weight"].float()


def _gemma3_tensors(weights: Mapping[str, Tensor], config: GPTConfig, scales: Scales) -> Tensors:
    # The engine multiplies embeddings by the square root of their width.
    yield from _vocab_tensors(weights, config, scales.residual / math.sqrt(config.n_embd))
    output_norm = torch.full((config.n_embd,), math.sqrt(NORM_EPS) * scales.residual**2)
    for layer in range(config.n_layer):
        yield from _attention_tensors(weights, config, layer, scales.residual)
        up = weights[f"blocks.{layer}.mlp.up_proj.weight"].float()
        yield f"blk.{layer}.ffn_gate.weight", up * scales.gate
        yield f"blk.{layer}.ffn_up.weight", up / scales.gate
        yield f"blk.{layer}.ffn_down.weight", weights[f"blocks.{layer}.mlp.down_proj.weight"].float()
        yield f"blk.{layer}.post_attention_norm.weight", output_norm
        yield f"blk.{layer}.post_ffw_norm.weight", output_norm


def choose_scales(weights: Mapping[str, Tensor], is_quantized: bool) -> Scales:
    """Return the factors of the gemma3 form for a model.

    The scale of a block of 32 quantized weights is a float16: a gate too large or a residual scale too large for the
    weights of q and k would not fit into it.
    """
    if not is_quantized:
        return EXACT_SCALES
    largest = max(
        float(weight.abs().max()) for name, weight in weights.items() if ".q_proj" in name or ".k_proj" in name
    )
    residual = 2.0**22
    while residual * largest / 127 > MAX_BLOCK_SCALE and residual > 2.0**16:
        residual /= 2
    return Scales(residual, gate=2.0**5)


FORMS = {
    "apertus": Form("apertus", _apertus_keys, _apertus_tensors),
    "gemma3": Form("gemma3", _gemma3_keys, _gemma3_tensors),
}
