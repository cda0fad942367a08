"""The GPT: rotary positions, QK-norm, ReLU squared, untied head, no biases, RMSNorm without parameters.

Letters in shape comments:
    B batch, T time (tokens), S keys seen (cache included), C width (n_embd), H query heads, K key-value heads,
    D head size, V vocabulary.

The weights are float32. Matrix products run in the compute dtype, which `forward` takes from `GPT.compute_dtype`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.common import UserError
from nanochat.layers.sampler import sample_next
from nanochat.layers.sampling_params import SamplingParams
from nanochat.optim import Optimizer, OptimSettings, ParamGroup, build_optimizers
from nanochat.runtime import Runtime

NORM_EPS = 1e-6
SOFTCAP = 15.0
ROPE_BASE = 10_000.0
VOCAB_MULTIPLE = 64  # the tables are padded to it: unaligned matrix products are slow


@dataclass(frozen=True)
class GPTConfig:
    """Everything that decides the shape of the model. Raises `UserError` for a shape that cannot be built."""

    sequence_len: int = 2048
    vocab_size: int = 65536
    n_layer: int = 20
    n_head: int = 10
    n_kv_head: int = 10
    n_embd: int = 1280

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UserError(f"{name} is {value}: it must be at least 1")
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd {self.n_embd} does not divide by n_head {self.n_head}")
        if self.head_dim % 2:
            raise UserError(f"the head size {self.head_dim} is odd: rotary positions need an even one")
        if self.n_head % self.n_kv_head:
            legal = [k for k in range(1, self.n_head + 1) if self.n_head % k == 0]
            raise UserError(f"n_kv_head {self.n_kv_head} does not divide n_head {self.n_head}: choose one of {legal}")

    @classmethod
    def from_depth(
        cls, depth: int, *, vocab_size: int, sequence_len: int, head_dim: int = 128, n_kv_head: int = -1
    ) -> GPTConfig:
        """The model that the one dial makes: `depth` layers, 64 x depth wide (rounded up to whole heads).

        `n_kv_head` = -1 gives every query head its own keys and values.
        """
        if depth < 1 or head_dim < 2:
            raise UserError(f"depth {depth} and head_dim {head_dim}: depth must be at least 1, head_dim at least 2")
        n_head = math.ceil(64 * depth / head_dim)
        return cls(
            sequence_len=sequence_len,
            vocab_size=vocab_size,
            n_layer=depth,
            n_head=n_head,
            n_kv_head=n_head if n_kv_head == -1 else n_kv_head,
            n_embd=n_head * head_dim,
        )

    @property
    def head_dim(self) -> int:
        """Size of one head."""
        return self.n_embd // self.n_head

    @property
    def padded_vocab_size(self) -> int:
        """Rows that the embedding and the head really have."""
        return math.ceil(self.vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE


class AttentionCache(Protocol):
    """What attention needs of a cache: the engine has one, training has none."""

    def positions(self, count: int) -> slice | Tensor:
        """Where the next `count` tokens stand: in every row alike, or (B, 1, T)."""
        ...

    def insert(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Add (B, K, T, D) of one layer; return all so far, (B, K, S, D), and which of S each of T sees: (.., T, S)."""
        ...


def rms_norm(x: Tensor) -> Tensor:
    """RMSNorm over the last dimension, without parameters (arXiv 1910.07467)."""
    return F.rms_norm(x, (x.size(-1),), eps=NORM_EPS)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864), halves: (B, H, T, D) with (T, D/2) or (B, 1, T, D/2) tables."""
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1)


class Linear(nn.Module):
    """A float32 matrix (n_out, n_in) without bias whose product runs in the dtype of its input."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class Attention(nn.Module):
    """Causal self-attention with rotary positions and QK-norm."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.grouped = config.n_kv_head < config.n_head
        self.q_proj = Linear(config.n_embd, config.n_head * config.head_dim)
        self.k_proj = Linear(config.n_embd, config.n_kv_head * config.head_dim)
        self.v_proj = Linear(config.n_embd, config.n_kv_head * config.head_dim)
        self.o_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, kv_cache: AttentionCache | None) -> Tensor:
        def heads(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], -1, self.head_dim).transpose(1, 2)  # (B, T, H*D) -> (B, H, T, D)

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        q, k = rms_norm(apply_rotary(q, cos, sin)), rms_norm(apply_rotary(k, cos, sin))
        seen = None
        if kv_cache is not None:
            k, v, seen = kv_cache.insert(self.layer, k, v)  # (B, K, T, D) -> (B, K, S, D)
        y = causal_attention(q, k, v, seen, self.grouped)
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))  # (B, H, T, D) -> (B, T, C)
        return out


def causal_attention(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, grouped: bool) -> Tensor:
    """Attention of the T last positions, (B, H, T, D), on all S, (B, K, S, D): each sees itself and those before.

    `seen` says otherwise, as `AttentionCache.insert` gives it; it must where 1 < T < S.
    """
    is_causal = seen is None and q.size(2) == k.size(2)  # else it is one token, which sees everything
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=is_causal, enable_gqa=grouped)


class MLP(nn.Module):
    """Width x 4, ReLU squared (arXiv 2109.08668), and back."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up_proj = Linear(config.n_embd, 4 * config.n_embd)
        self.down_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.relu(self.up_proj(x)).square())
        return out


class Block(nn.Module):
    """One layer: attention, then the MLP, each on the normalised residual stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, kv_cache: AttentionCache | None) -> Tensor:
        x = x + self.attn(rms_norm(x), cos, sin, kv_cache)
        out: Tensor = x + self.mlp(rms_norm(x))
        return out


class GPT(nn.Module):
    """The model. Build it on the meta device, `to_empty` it, then `init_weights` (or load a checkpoint)."""

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: GPTConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.compute_dtype = config, compute_dtype
        table = torch.empty(config.padded_vocab_size, config.n_embd)  # else it draws one: on meta, slow imports
        self.embed = nn.Embedding(config.padded_vocab_size, config.n_embd, _weight=table)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.head = Linear(config.n_embd, config.padded_vocab_size)
        for name in ("rope_cos", "rope_sin"):  # filled by init_rope: a value set under the meta device would be lost
            self.register_buffer(name, torch.empty(config.sequence_len, config.head_dim // 2), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embed.weight.device

    @torch.no_grad()
    def init_weights(self, seed: int = 42) -> None:
        """Give every parameter and buffer its first value: the same on every device and in every process."""
        generator = torch.Generator().manual_seed(seed)
        for name, param in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "head.weight")):
                param.zero_()
                continue
            n_out, n_in = param.shape
            std = 1.0 if name == "embed.weight" else min(1.0, math.sqrt(n_out / n_in)) / math.sqrt(n_in)
            param.copy_(torch.randn(param.shape, generator=generator) * std)
        self.init_rope()

    @torch.no_grad()
    def init_rope(self) -> None:
        """Fill the rotary tables, (sequence_len, D/2) each; they are not part of a checkpoint."""
        half = self.config.head_dim // 2
        frequency = ROPE_BASE ** -(torch.arange(half, dtype=torch.float32) / half)
        angle = torch.outer(torch.arange(self.config.sequence_len, dtype=torch.float32), frequency)
        self.rope_cos.copy_(angle.cos())
        self.rope_sin.copy_(angle.sin())

    def param_groups(self) -> list[ParamGroup]:
        """Which parameters are matrices (Muon), embeddings and head (AdamW)."""
        kinds = {"embed.weight": "embedding", "head.weight": "head"}
        groups: dict[str, list[tuple[str, nn.Parameter]]] = {"matrix": [], "embedding": [], "head": []}
        for name, param in self.named_parameters():
            groups[kinds.get(name, "matrix")].append((name, param))
        return [ParamGroup(kind, params) for kind, params in groups.items()]

    def setup_optimizers(
        self,
        unembedding_lr: float = 0.004,
        embedding_lr: float = 0.2,
        matrix_lr: float = 0.02,
        weight_decay: float = 0.0,
    ) -> list[Optimizer]:
        """Return the optimizers of all parameters: AdamW for embedding and head, Muon for the matrices.

        For your own training loop: call `step()`, then `zero_grad()`, of each. Gradients are not clipped. The scripts
        use one optimizer for all parameters instead (`nanochat.optim.build_optimizer`), which clips the whole gradient.
        """
        settings = OptimSettings(
            matrix_lr=matrix_lr,
            embedding_lr=embedding_lr,
            unembedding_lr=unembedding_lr,
            weight_decay=weight_decay,
            grad_clip=0.0,
        )
        runtime = Runtime.current(self.device, compute_dtype=self.compute_dtype)
        return build_optimizers(self, runtime, settings, [("embedding", "head"), ("matrix",)])

    def hidden_states(self, idx: Tensor, kv_cache: AttentionCache | None = None) -> Tensor:
        """Token ids (B, T) -> the normalised last hidden state (B, T, C), in the compute dtype."""
        t, dtype = idx.size(1), self.compute_dtype
        assert t <= self.config.sequence_len, f"{t} positions, but the context holds {self.config.sequence_len}"
        where = slice(t) if kv_cache is None else kv_cache.positions(t)
        cos, sin = self.rope_cos[where].to(dtype), self.rope_sin[where].to(dtype)
        x = rms_norm(self.embed(idx).to(dtype))  # (B, T) -> (B, T, C)
        for block in self.blocks:
            x = block(x, cos, sin, kv_cache)
        return rms_norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> float32 logits (..., V), soft-capped as in Gemma 2 (arXiv 2408.00118)."""
        raw = self.head(hidden)[..., : self.config.vocab_size].float()
        return SOFTCAP * torch.tanh(raw / SOFTCAP)

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        kv_cache: AttentionCache | None = None,
        loss_reduction: str = "mean",
    ) -> Tensor:
        """Logits (B, T, V) of token ids (B, T); with `targets` (B, T; -1 = ignored) the cross-entropy in nats instead.

        `loss_reduction`: "mean" over the targets that count (0 if there are none), "sum", or "none" -> (B, T) with 0
        where the target is ignored.
        """
        hidden = self.hidden_states(idx, kv_cache)
        if targets is None:
            return self.logits(hidden)
        losses = self.token_losses(hidden.flatten(0, 1), targets.flatten())
        if loss_reduction == "none":
            return losses.view(targets.shape)
        total = losses.sum()
        return total if loss_reduction == "sum" else total / (targets != -1).sum().clamp(min=1)

    def token_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of N = B x T tokens: hidden (N, C), targets (N,) -> (N,). Where the logits live and die."""
        return F.cross_entropy(self.logits(hidden), targets, ignore_index=-1, reduction="none")

    def estimate_flops(self) -> int:
        """FLOPs of a token, forward and backward: 6 per matrix weight, 12 T C per layer (arXiv 2204.02311, app. B)."""
        weights = self.num_params() - self.embed.weight.numel()
        return 6 * weights + 12 * self.config.n_layer * self.config.n_embd * self.config.sequence_len

    def num_params(self) -> int:
        """Number of parameters."""
        return sum(param.numel() for param in self.parameters())

    @torch.inference_mode()
    def generate(
        self, tokens: list[int], max_tokens: int, temperature: float = 1.0, top_k: int | None = None, seed: int = 42
    ) -> Iterator[int]:
        """Yield up to `max_tokens` sampled ids, running the whole sequence each time: the engine's slow, plain twin.

        Stops when the context is full, and at no special token.
        """
        params = SamplingParams(temperature, top_k)
        generator = torch.Generator(self.device).manual_seed(seed)
        ids = list(tokens)
        for _ in range(min(max_tokens, self.config.sequence_len - len(tokens))):
            hidden = self.hidden_states(torch.tensor([ids], device=self.device))[:, -1]  # (1, T) -> (1, C)
            ids.append(int(sample_next(self.logits(hidden), params, generator)))
            yield ids[-1]
