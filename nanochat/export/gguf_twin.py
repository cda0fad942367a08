"""The two architectures of a GGUF file in plain torch, as llama.cpp defines them: what a file computes.

It knows nothing of nanochat's model but the file, so equal logits show that the file holds the same function.

Letters in shape comments: T positions, C width, H query heads, K key-value heads, D head size, V vocabulary.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.common import UserError
from nanochat.export.gguf_file import GGUFFile
from nanochat.system.json_text import short_repr


class GGUFTwin:
    """A model read from a GGUF file of the architecture apertus or gemma3; all of it computes in float32."""

    def __init__(self, file: GGUFFile) -> None:
        """Read all weights. Raises UserError for another architecture, and if keys or tensors are missing."""
        self.architecture = str(file.keys.get("general.architecture"))
        if self.architecture not in ("apertus", "gemma3"):
            raise UserError(f"{file.path} has the architecture {self.architecture!r}: must be apertus or gemma3")
        try:
            self._read_keys(file)
        except KeyError as error:
            raise UserError(f"{file.path} has no key {error}") from error
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{file.path} has a key that is no number: {short_repr(error)}") from error
        self.weights = {name: file.tensor(name) for name in file.names()}

    def _read_keys(self, file: GGUFFile) -> None:
        def key(name: str) -> float:
            return float(file.keys[f"{self.architecture}.{name}"])

        self.num_layers = int(key("block_count"))
        self.num_heads = int(key("attention.head_count"))
        self.num_kv_heads = int(key("attention.head_count_kv"))
        self.head_dim = int(key("rope.dimension_count"))
        self.eps = key("attention.layer_norm_rms_epsilon")
        self.rope_base = key("rope.freq_base")
        self.context_len = int(key("context_length"))
        self.is_gemma = self.architecture == "gemma3"
        if self.is_gemma:
            self.softcap = key("final_logit_softcapping")
            self.window = int(key("attention.sliding_window"))
        else:
            self.xielu = {name: file.keys[f"xielu.{name}"] for name in ("alpha_p", "alpha_n", "beta", "eps")}

    @torch.inference_mode()
    def logits(self, ids: list[int]) -> Tensor:
        """Return the logits at each position of a text, in float32: T ids -> (T, V)."""
        x = self.weights["token_embd.weight"][ids]  # (T, C)
        if self.is_gemma:
            x = x * math.sqrt(x.size(-1))
        for layer in range(self.num_layers):
            block = f"blk.{layer}"
            y = self._attention(self._norm(x, f"{block}.attn_norm"), block)
            x = x + (self._norm(y, f"{block}.post_attention_norm") if self.is_gemma else y)
            y = self._mlp(self._norm(x, f"{block}.ffn_norm"), layer)
            x = x + (self._norm(y, f"{block}.post_ffw_norm") if self.is_gemma else y)
        raw = self._linear(self._norm(x, "output_norm"), "output")
        return self.softcap * torch.tanh(raw / self.softcap) if self.is_gemma else raw

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)
        return x * scale * self.weights[f"{name}.weight"]

    def _attention(self, x: Tensor, block: str) -> Tensor:
        def heads(letter: str, count: int) -> Tensor:
            return self._linear(x, f"{block}.attn_{letter}").view(len(x), count, self.head_dim)  # (T, H, D)

        q = self._rotate(self._norm(heads("q", self.num_heads), f"{block}.attn_q_norm"))
        k = self._rotate(self._norm(heads("k", self.num_kv_heads), f"{block}.attn_k_norm"))
        v = heads("v", self.num_kv_heads)
        group = self.num_heads // self.num_kv_heads
        k, v = (y.repeat_interleave(group, dim=1, output_size=self.num_heads) for y in (k, v))
        scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(self.head_dim)  # (H, T, T)
        distance = torch.arange(len(x))[:, None] - torch.arange(len(x))  # (T, T)
        is_visible = distance >= 0
        if self.is_gemma:
            is_visible &= distance < self.window
        weights = scores.masked_fill(~is_visible, -math.inf).softmax(-1)
        mixed = torch.einsum("hts,shd->thd", weights, v).flatten(1)  # (T, C)
        return self._linear(mixed, f"{block}.attn_output")

    def _rotate(self, x: Tensor) -> Tensor:
        """Rotate each pair of coordinates (i, i + D/2) by the angle of its position: (T, H, D) -> (T, H, D)."""
        half = self.head_dim // 2
        frequency = self.rope_base ** -(torch.arange(half) / half)
        angle = (torch.arange(len(x))[:, None] * frequency)[:, None]  # (T, 1, D/2)
        a, b = x[..., :half], x[..., half:]
        return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()), -1)

    def _mlp(self, x: Tensor, layer: int) -> Tensor:
        block = f"blk.{layer}"
        up = self._linear(x, f"{block}.ffn_up")
        if self.is_gemma:
            hidden = F.gelu(self._linear(x, f"{block}.ffn_gate"), approximate="tanh") * up
        else:
            alpha_p, alpha_n, beta, eps = (
                torch.tensor(self.xielu[name][layer]) for name in ("alpha_p", "alpha_n", "beta", "eps")
            )
            positive = F.softplus(alpha_p) * up.square() + beta * up
            negative = (beta + F.softplus(alpha_n)) * (torch.expm1(torch.minimum(up, eps)) - up) + beta * up
            hidden = torch.where(up > 0, positive, negative)
        return self._linear(hidden, f"{block}.ffn_down")
