"""The GPT model: rotary embeddings, QK-norm, ReLU squared, untied embedding and head, no biases, plain RMSNorm.

Letters in shape comments:
    B batch            C embedding width (n_embd)     V vocabulary
    T query positions  H query heads (n_head)         D head size, C = H * D
    S key positions    K key-value heads (n_kv_head)

S is T without a KV cache; with one it includes the positions in the cache. Weights are stored in float32, and matrix
products run in `GPT.compute_dtype`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nanochat.common import UserError
from nanochat.layers import cpu_kernels
from nanochat.layers.attention import varied_shapes
from nanochat.layers.cpu_attention import cpu_causal_attention
from nanochat.layers.fp8 import check_fp8_sizes, fp8_linear
from nanochat.layers.sampler import sample_next
from nanochat.layers.sampling_params import SamplingParams
from nanochat.layers.softcap_loss import SoftcapTerms, softcap, softcap_cross_entropy, softcap_terms
from nanochat.optim import Optimizer, OptimSettings, ParamGroup, build_optimizers
from nanochat.runtime import Runtime
from nanochat.system.json_text import short_repr

NORM_EPS = 1e-6
ROPE_BASE = 10_000.0
# Far above any model that can be trained, and far below what could not be represented: a shape that a damaged or a
# foreign file gives is refused before anything is allocated for it.
MAX_SIZES = {
    "sequence_len": 1 << 20,
    "vocab_size": 1 << 22,
    "n_layer": 1 << 12,
    "n_head": 1 << 14,
    "n_kv_head": 1 << 14,
    "n_embd": 1 << 18,
}
SOFTCAPS = (1.0, 64.0)  # the least and the largest: the loss sums exp(cap), times the vocabulary, in float32
VOCAB_MULTIPLE = 64  # embedding and head are padded to a multiple of this: unaligned matrix products are slow


@dataclass(frozen=True)
class GPTConfig:
    """Shape of the model, and the cap of its logits. Raises `UserError` for an impossible one."""

    sequence_len: int = 2048  # context length: the most positions that the model can read
    vocab_size: int = 65536
    n_layer: int = 20
    n_head: int = 10  # query heads
    n_kv_head: int = 10  # key-value heads
    n_embd: int = 1280  # embedding width
    softcap: float = 15.0  # logits are within +-softcap; 0 = not capped

    def __post_init__(self) -> None:
        for name in MAX_SIZES:
            value = getattr(self, name)
            if type(value) is not int:
                raise UserError(f"{name} is {str(value)[:40]!r}: it must be a whole number")
            if value < 1:
                raise UserError(f"{name} is {value}: it must be at least 1")
            if value > MAX_SIZES[name]:
                raise UserError(f"{name} is {value:,}: it must be at most {MAX_SIZES[name]:,}")
        check_softcap(self.softcap)
        object.__setattr__(self, "softcap", float(self.softcap))
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}")
        if self.head_dim % 2:
            raise UserError(f"the head size {self.head_dim} is odd: rotary embeddings need an even head size")
        if self.n_head % self.n_kv_head:
            divisors = [k for k in range(1, self.n_head + 1) if self.n_head % k == 0]
            raise UserError(
                f"n_kv_head {self.n_kv_head} does not divide n_head {self.n_head}: choose one of {divisors}"
            )

    @classmethod
    def from_depth(
        cls,
        depth: int,
        *,
        vocab_size: int,
        sequence_len: int,
        head_dim: int = 128,
        n_kv_head: int = -1,
        softcap: float = 15.0,
    ) -> GPTConfig:
        """Return the shape that follows from the depth: `depth` layers of width 64 * depth, rounded up to whole heads.

        `sequence_len`: context length. `n_kv_head`: key-value heads; -1 = as many as query heads. `softcap`: 0 = none.

        >>> GPTConfig.from_depth(20, vocab_size=65536, sequence_len=2048).n_embd
        1280
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
            softcap=softcap,
        )

    @property
    def head_dim(self) -> int:
        """D, the size of a head."""
        return self.n_embd // self.n_head

    @property
    def padded_vocab_size(self) -> int:
        """Number of rows of embedding and head: `vocab_size`, rounded up to a multiple of VOCAB_MULTIPLE."""
        return math.ceil(self.vocab_size / VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def check_softcap(value: object) -> None:
    """Raise `UserError` unless the value is a cap of logits: 0, or a number within SOFTCAPS."""
    lowest, highest = SOFTCAPS
    if type(value) not in (int, float) or not (value == 0 or lowest <= float(value) <= highest):  # type: ignore[arg-type]
        raise UserError(
            f"softcap is {short_repr(value)}: it must be 0 (logits are not capped) or from {lowest:g} to {highest:g}"
        )


class AttentionCache(Protocol):
    """Interface of the KV cache that attention uses in generation (nanochat/inference/kv_cache.py)."""

    def positions(self, count: int) -> slice | Tensor:
        """Return the positions of the next `count` tokens: a slice if all rows have the same, else (B, 1, T)."""
        ...

    def insert(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append the keys and values of one layer, (B, K, T, D) each.

        Returns all keys and values so far, (B, K, S, D) each, and the attention mask, (T, S) or (B, 1, T, S),
        True = visible; None means causal.
        """
        ...


def rms_norm(x: Tensor) -> Tensor:
    """RMSNorm over the last dimension, without parameters (arXiv 1910.07467)."""
    return F.rms_norm(x, (x.size(-1),), eps=NORM_EPS)


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply rotary position embeddings (arXiv 2104.09864) to queries or keys (B, H, T, D).

    Element i of the first half and element i of the second half are a pair of coordinates, which is rotated by minus
    the angle of its position. `cos` and `sin` of the angles: (T, D/2) or (B, 1, T, D/2). A pair (1, 0) at 90 degrees:

    >>> apply_rotary(torch.tensor([1.0, 0.0]), cos=torch.tensor([0.0]), sin=torch.tensor([1.0])).tolist()
    [0.0, -1.0]
    """
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos + x2 * sin, x2 * cos - x1 * sin), dim=-1)


class Linear(nn.Module):
    """Linear layer without bias: (..., n_in) -> (..., n_out). The float32 weight is cast to the input's dtype."""

    is_fp8 = False  # set by `GPT.use_fp8`: the products of a training step run in fp8

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_out, n_in))

    def forward(self, x: Tensor) -> Tensor:
        if self.is_fp8 and torch.is_grad_enabled():  # evaluation and generation run in the compute dtype
            return fp8_linear(x, self.weight)
        return F.linear(x, self.weight.to(x.dtype))


class Attention(nn.Module):
    """Causal self-attention with rotary embeddings and QK-norm: (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.is_grouped = config.n_kv_head < config.n_head  # grouped-query attention (arXiv 2305.13245)
        self.q_proj = Linear(config.n_embd, config.n_head * config.head_dim)
        self.k_proj = Linear(config.n_embd, config.n_kv_head * config.head_dim)
        self.v_proj = Linear(config.n_embd, config.n_kv_head * config.head_dim)
        self.o_proj = Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, kv_cache: AttentionCache | None) -> Tensor:
        def split_heads(y: Tensor) -> Tensor:
            return y.view(*y.shape[:2], -1, self.head_dim).transpose(1, 2)  # (B, T, H * D) -> (B, H, T, D)

        q, k, v = map(split_heads, self.project(x))  # (B, T, C) -> (B, H, T, D), (B, K, T, D), (B, K, T, D)
        q = rms_norm(apply_rotary(q, cos, sin))
        k = rms_norm(apply_rotary(k, cos, sin))
        attn_mask = None
        if kv_cache is not None:
            k, v, attn_mask = kv_cache.insert(self.layer, k, v)  # (B, K, T, D) -> (B, K, S, D)
        y = causal_attention(q, k, v, attn_mask, self.is_grouped)  # (B, H, T, D)
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))  # (B, H, T, D) -> (B, T, C)
        return out

    def project(self, x: Tensor) -> Sequence[Tensor]:
        """Return queries, keys and values: (B, T, C) -> (B, T, H * D), (B, T, K * D), (B, T, K * D).

        In training they are one matrix product, forward and backward: one large product is faster than three.
        """
        layers = (self.q_proj, self.k_proj, self.v_proj)
        if not torch.is_grad_enabled() or self.q_proj.is_fp8:
            return [layer(x) for layer in layers]
        weight = torch.cat([layer.weight for layer in layers]).to(x.dtype)  # ((H + 2 K) * D, C)
        q, k, v = torch.split(F.linear(x, weight), [len(layer.weight) for layer in layers], dim=-1)
        return q, k, v.contiguous()  # a view would keep the whole product in memory for the backward pass


def causal_attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None, is_grouped: bool) -> Tensor:
    """Compute attention of the last T of S positions to all S: q (B, H, T, D), k, v (B, K, S, D) -> (B, H, T, D).

    `attn_mask`: (T, S) or (B, 1, T, S), True = visible; None means causal, which is supported for T = S and T = 1.
    `is_grouped`: K < H, several query heads share a key-value head.
    """
    # With T = 1 < S the query is the last position, and everything is visible to it.
    is_causal = attn_mask is None and q.size(2) == k.size(2)
    is_bf16_on_cpu = q.device.type == "cpu" and q.dtype == torch.bfloat16
    if is_causal and is_bf16_on_cpu and torch.is_grad_enabled() and not is_grouped:
        return cpu_causal_attention(q, k, v)
    # Only where the model is compiled: the bits of an uncompiled float32 run do not depend on the Rust extension.
    if is_causal and torch.compiler.is_compiling() and torch.is_grad_enabled() and cpu_kernels.can_attend(q, k):
        return cpu_kernels.causal_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal, enable_gqa=is_grouped)


class MLP(nn.Module):
    """Feed-forward network with ReLU squared (arXiv 2109.08668): (B, T, C) -> (B, T, 4C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.up_proj = Linear(config.n_embd, 4 * config.n_embd)
        self.down_proj = Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.relu(self.up_proj(x)).square())
        return out


class Block(nn.Module):
    """A layer: attention, then the MLP. Each reads the normalized residual stream (B, T, C) and adds to it."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.attn = Attention(config, layer)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, kv_cache: AttentionCache | None) -> Tensor:
        x = x + self.attn(rms_norm(x), cos, sin, kv_cache)
        out: Tensor = x + self.mlp(rms_norm(x))
        return out


@dataclass(frozen=True)
class Regions:
    """The parts of the model that are compiled, each for itself (nanochat/training/setup.py).

    All blocks share one compiled function, so compiling takes as long as for one block. In the backward pass the
    gradients of a block are complete before that of the block below begins.
    """

    norm: Callable[[Tensor], Tensor]  # rms_norm
    blocks: Sequence[Callable[..., Tensor]]
    loss_terms: SoftcapTerms


class GPT(nn.Module):
    """The model: embedding, blocks, head.

    The constructor leaves the weights uninitialized: call `init_weights`, or load a checkpoint. To build it directly on
    a device: construct it under `torch.device("meta")`, then `materialize(device)`, then `init_weights`.
    """

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: GPTConfig, compute_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        # With a given table nn.Embedding skips its initialization, which on the meta device imports much of torch.
        table = torch.empty(config.padded_vocab_size, config.n_embd)
        self.embed = nn.Embedding(config.padded_vocab_size, config.n_embd, _weight=table)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        # True: keep only the inputs of the blocks for the backward pass, which computes the rest again: less memory.
        self.checkpoint_activations = False
        self.head = Linear(config.n_embd, config.padded_vocab_size)
        for name in ("rope_cos", "rope_sin"):  # init_rope fills them: values set on the meta device would be lost
            self.register_buffer(name, torch.empty(config.sequence_len, config.head_dim // 2), persistent=False)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.embed.weight.device

    def materialize(self, device: torch.device) -> None:
        """Replace the tensors of a model that was constructed on the meta device by uninitialized ones on a device.

        `nn.Module.to_empty` does the same, but imports sympy, which takes longer than to import the rest of torch.
        """
        for module in self.modules():
            for name, param in list(module.named_parameters(recurse=False)):
                empty = torch.empty(param.shape, dtype=param.dtype, device=device)
                setattr(module, name, nn.Parameter(empty, param.requires_grad))
            for name, buffer in list(module.named_buffers(recurse=False)):
                setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device=device))

    @torch.no_grad()
    def init_weights(self, seed: int = 42) -> None:
        """Initialize all parameters and buffers. The values depend on the seed only, not on device or process.

        The projections back into the residual stream and the head are zero, so that the blocks add nothing at first and
        all tokens are equally likely. The other matrices are normal, scaled as in arXiv 2310.17813.
        """
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
        """Fill the tables of the rotary embedding, (sequence_len, D/2) each. They are not stored in checkpoints."""
        half = self.config.head_dim // 2
        frequency = ROPE_BASE ** -(torch.arange(half, dtype=torch.float32) / half)
        angle = torch.outer(torch.arange(self.config.sequence_len, dtype=torch.float32), frequency)
        self.rope_cos.copy_(angle.cos())
        self.rope_sin.copy_(angle.sin())

    def use_fp8(self) -> None:
        """From now on, compute the linear layers of the blocks in fp8 where gradients are recorded (layers/fp8.py).

        Weights, checkpoints, evaluation and generation do not change. Raises `UserError` for an unsuitable head size.
        """
        check_fp8_sizes({"head_dim": self.config.head_dim})  # all other widths are multiples of it
        for module in self.blocks.modules():
            if isinstance(module, Linear):
                module.is_fp8 = True

    def param_groups(self) -> list[ParamGroup]:
        """Return all parameters in three groups: "matrix" (all matrices of the blocks), "embedding" and "head"."""
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
        """Return two optimizers: AdamW for embedding and head, Muon for the weight matrices of the blocks.

        For notebooks and training loops of your own: call `step()` and then `zero_grad()` of both. Gradients are not
        clipped. `unembedding_lr` is the learning rate of the head. The scripts use one optimizer for all parameters
        instead (`nanochat.optim.build_optimizer`), which clips the whole gradient.
        """
        settings = OptimSettings(
            matrix_lr=matrix_lr,
            embedding_lr=embedding_lr,
            unembedding_lr=unembedding_lr,
            weight_decay=weight_decay,
            grad_clip=0.0,
        )
        runtime = Runtime.without_setup(self.device, compute_dtype=self.compute_dtype)
        return build_optimizers(self, runtime, settings, [("embedding", "head"), ("matrix",)])

    @property
    def regions(self) -> Regions:
        """The parts of the model as they are, uncompiled."""
        return Regions(rms_norm, list(self.blocks), softcap_terms)

    def hidden_states(
        self, idx: Tensor, kv_cache: AttentionCache | None = None, regions: Regions | None = None
    ) -> Tensor:
        """Return the normalized output of the last block, in the compute dtype: token ids (B, T) -> (B, T, C)."""
        num_tokens = idx.size(1)
        context_len = self.config.sequence_len
        assert num_tokens <= context_len, f"{num_tokens} positions, but the context length is {context_len}"
        positions = slice(num_tokens) if kv_cache is None else kv_cache.positions(num_tokens)
        cos = self.rope_cos[positions].to(self.compute_dtype)  # (T, D/2) or (B, 1, T, D/2)
        sin = self.rope_sin[positions].to(self.compute_dtype)
        regions = regions or self.regions
        x = regions.norm(self.embed(idx).to(self.compute_dtype))  # (B, T) -> (B, T, C)
        for block in regions.blocks:
            if self.checkpoint_activations and torch.is_grad_enabled():
                x = checkpoint(block, x, cos, sin, kv_cache, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, cos, sin, kv_cache)
        return regions.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return float32 logits, soft-capped as in Gemma 2 (arXiv 2408.00118): (..., C) -> (..., V)."""
        return softcap(self.head(hidden)[..., : self.config.vocab_size], self.config.softcap)

    def forward(
        self,
        idx: Tensor,
        targets: Tensor | None = None,
        kv_cache: AttentionCache | None = None,
        loss_reduction: str = "mean",
        regions: Regions | None = None,
    ) -> Tensor:
        """Return the logits of token ids, (B, T) -> (B, T, V), or with `targets` the cross-entropy in nats.

        `targets`: (B, T), -1 = ignored. `loss_reduction`: "mean" over the targets that are not ignored (0 if all are),
        "sum", or "none" for a loss of each target, (B, T), 0 where it is ignored. `regions`: compiled parts to use.
        """
        regions = regions or self.regions
        hidden = self.hidden_states(idx, kv_cache, regions)
        if targets is None:
            return self.logits(hidden)
        losses = softcap_cross_entropy(
            hidden.flatten(0, 1),  # (B, T, C) -> (N, C)
            self.head.weight,
            targets.flatten(),
            self.config.vocab_size,
            self.config.softcap,
            "none" if loss_reduction == "none" else "sum",
            regions.loss_terms,
        )
        if loss_reduction == "none":
            return losses.view(targets.shape)
        return losses if loss_reduction == "sum" else losses / (targets != -1).sum().clamp(min=1)

    def estimate_flops(self) -> int:
        """Return the FLOPs of one training token, forward and backward (arXiv 2204.02311, appendix B).

        Each weight of a matrix product takes 6, and the attention of each layer 12 T C, where T is the context length.
        """
        num_matrix_weights = self.num_params() - self.embed.weight.numel()
        return 6 * num_matrix_weights + 12 * self.config.n_layer * self.config.n_embd * self.config.sequence_len

    def num_params(self) -> int:
        """Return the number of parameters."""
        return sum(param.numel() for param in self.parameters())

    @torch.inference_mode()
    def generate(
        self, tokens: list[int], max_tokens: int, temperature: float = 1.0, top_k: int | None = None, seed: int = 42
    ) -> Iterator[int]:
        """Yield up to `max_tokens` sampled ids: the readable twin of the engine, without KV cache or tools.

        Each token takes a forward pass over the whole sequence. Generation ends early only if the context is full;
        special tokens do not end it.
        """
        params = SamplingParams(temperature, top_k)
        generator = torch.Generator(self.device).manual_seed(seed)
        ids = list(tokens)
        for _ in range(min(max_tokens, self.config.sequence_len - len(tokens))):
            with varied_shapes(self.device):
                hidden = self.hidden_states(torch.tensor([ids], device=self.device))[:, -1]  # (1, T) -> (1, C)
            ids.append(int(sample_next(self.logits(hidden), params, generator)))
            yield ids[-1]
