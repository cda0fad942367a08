"""The model against a float64 reference written from the formulas; its counts, initial values and losses."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanochat.common import UserError
from nanochat.gpt import GPT, GPTConfig, rms_norm

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = {
    "plain": GPTConfig(sequence_len=16, vocab_size=128, n_layer=2, n_head=2, n_kv_head=2, n_embd=32),
    "grouped": GPTConfig(sequence_len=19, vocab_size=101, n_layer=3, n_head=6, n_kv_head=2, n_embd=60),
    "one key-value head": GPTConfig(sequence_len=7, vocab_size=65, n_layer=1, n_head=3, n_kv_head=1, n_embd=18),
    "no soft cap": GPTConfig(sequence_len=9, vocab_size=70, n_layer=1, n_head=2, n_kv_head=2, n_embd=16, softcap=0),
}


def random_model(config: GPTConfig, seed: int = 0) -> GPT:
    """A model whose weights are all random: at initialization some matrices are zero, and so are all logits."""
    model = GPT(config)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "head.weight")):
                param.copy_(torch.randn(param.shape, generator=generator) * (2 / param.size(1) ** 0.5))
    return model


def random_tokens(config: GPTConfig, *shape: int) -> Tensor:
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(3))


def reference_logits(config: GPTConfig, weights: dict[str, Tensor], idx: Tensor) -> Tensor:
    """Compute the model's formulas in float64, each head and position alone: (B, T) -> (B, T, V)."""
    weights = {name: weight.double() for name, weight in weights.items()}
    head_dim = config.n_embd // config.n_head
    half = head_dim // 2
    time = idx.size(1)

    def norm(x: Tensor) -> Tensor:
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6)

    def rotate(x: Tensor) -> Tensor:  # (B, T, D): the halves are real and imaginary part, rotated by -angle
        angle = torch.arange(time).double()[:, None] * 10_000.0 ** (-torch.arange(half).double() / half)
        rotated = torch.complex(x[..., :half], x[..., half:]) * torch.exp(-1j * angle)
        return torch.cat((rotated.real, rotated.imag), -1)

    def attention(x: Tensor, layer: int) -> Tensor:
        q, k, v = (
            torch.einsum("btc,oc->bto", x, weights[f"blocks.{layer}.attn.{name}_proj.weight"]).split(head_dim, dim=-1)
            for name in "qkv"
        )
        outputs = []
        for head in range(config.n_head):
            group = head // (config.n_head // config.n_kv_head)
            scores = torch.einsum("btd,bsd->bts", norm(rotate(q[head])), norm(rotate(k[group]))) / head_dim**0.5
            for t in range(time):
                scores[:, t, t + 1 :] = -math.inf
            probs = torch.exp(scores - scores.amax(-1, keepdim=True))
            outputs.append(torch.einsum("bts,bsd->btd", probs / probs.sum(-1, keepdim=True), v[group]))
        return torch.einsum("btc,oc->bto", torch.cat(outputs, -1), weights[f"blocks.{layer}.attn.o_proj.weight"])

    def mlp(x: Tensor, layer: int) -> Tensor:
        up = torch.einsum("btc,oc->bto", x, weights[f"blocks.{layer}.mlp.up_proj.weight"])
        up = torch.where(up > 0, up * up, torch.zeros_like(up))
        return torch.einsum("btc,oc->bto", up, weights[f"blocks.{layer}.mlp.down_proj.weight"])

    x = norm(weights["embed.weight"][idx])
    for layer in range(config.n_layer):
        x = x + attention(norm(x), layer)
        x = x + mlp(norm(x), layer)
    raw = torch.einsum("btc,vc->btv", norm(x), weights["head.weight"])[..., : config.vocab_size]
    return config.softcap * torch.tanh(raw / config.softcap) if config.softcap else raw


# Shapes and counts


def test_d20_has_560988160_parameters() -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig.from_depth(20, vocab_size=65536, sequence_len=2048))
    assert model.num_params() == 560_988_160 == 20 * 12 * 1280**2 + 2 * 65536 * 1280


@pytest.mark.parametrize(
    ("depth", "options", "heads", "kv_heads", "width"),
    [
        (20, {}, 10, 10, 1280),
        (32, {}, 16, 16, 2048),
        (1, {}, 1, 1, 128),  # half a head is rounded up
        (3, {}, 2, 2, 256),
        (5, {"head_dim": 64}, 5, 5, 320),
        (7, {"head_dim": 96}, 5, 5, 480),
        (4, {"head_dim": 64, "n_kv_head": 2}, 4, 2, 256),
    ],
)
def test_depth_decides_the_shape(depth: int, options: dict[str, int], heads: int, kv_heads: int, width: int) -> None:
    config = GPTConfig.from_depth(depth, vocab_size=1000, sequence_len=64, **options)
    assert config == GPTConfig(64, 1000, depth, heads, kv_heads, width)
    assert config.head_dim == options.get("head_dim", 128)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"depth": 0}, "depth 0"),
        ({"depth": -1}, "depth -1"),
        ({"depth": 4, "head_dim": 0}, "head_dim 0"),
        ({"depth": 4, "head_dim": 33}, "odd"),
        ({"depth": 6, "n_kv_head": 2}, r"choose one of \[1, 3\]"),
        ({"depth": 6, "n_kv_head": 0}, "n_kv_head is 0"),
        ({"depth": 4, "vocab_size": 0}, "vocab_size is 0"),
        ({"depth": 4, "sequence_len": 0}, "sequence_len is 0"),
        ({"depth": 4, "softcap": 0.5}, r"softcap is 0\.5: it must be 0 \(logits are not capped\) or from 1 to 64"),
        ({"depth": 4, "softcap": 64.1}, r"softcap is 64\.1"),
        ({"depth": 4, "softcap": math.nan}, "softcap is nan"),
        ({"depth": 4, "softcap": None}, "softcap is None"),
        ({"depth": 4, "softcap": True}, "softcap is True"),
    ],
)
def test_an_impossible_shape_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        GPTConfig.from_depth(**{"vocab_size": 100, "sequence_len": 8, **options})


def test_a_width_that_does_not_divide_by_the_heads_is_refused() -> None:
    with pytest.raises(UserError, match="100 is not divisible by n_head 3"):
        GPTConfig(n_embd=100, n_head=3, n_kv_head=3)


@pytest.mark.parametrize(
    "config",
    [
        GPTConfig.from_depth(20, vocab_size=65536, sequence_len=2048),
        GPTConfig.from_depth(4, vocab_size=8192, sequence_len=512, head_dim=64),
        GPTConfig.from_depth(6, vocab_size=8192, sequence_len=4096, head_dim=64),  # mostly attention
    ],
)
@pytest.mark.slow
def test_flops_agree_with_torchs_counter(config: GPTConfig) -> None:
    with torch.device("meta"):
        model = GPT(config)
        idx = torch.zeros(2, config.sequence_len, dtype=torch.int64)
        # The MATH kernel, because the others skip the masked half or recompute, which the estimate does not count.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(idx, idx).backward()
    assert model.estimate_flops() == pytest.approx(counter.get_total_flops() / idx.numel(), rel=0.02)


def test_every_parameter_is_in_one_group() -> None:
    model = GPT(CONFIGS["grouped"])
    groups = {group.kind: [name for name, _ in group.params] for group in model.param_groups()}
    assert groups["embedding"] == ["embed.weight"]
    assert groups["head"] == ["head.weight"]
    grouped = [name for names in groups.values() for name in names]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())
    assert all(param.ndim == 2 for group in model.param_groups() for _, param in group.params)


# Initialization


BUILD = """
import sys, torch
from nanochat.checkpoint_manager import build_model
from nanochat.gpt import GPTConfig
from nanochat.runtime import Runtime

config = GPTConfig(sequence_len=16, vocab_size=64, n_layer=1, n_head=1, n_kv_head=1, n_embd=16)
model = build_model(config, Runtime.without_setup(torch.device("cpu"), compute_dtype=torch.float32))
assert not any(tensor.is_meta for tensor in model.state_dict().values())
print("sympy" in sys.modules)
"""


def test_a_model_is_built_without_symbolic_algebra() -> None:
    # torch imports it for some operations on the meta device, and every script would take a second or two longer.
    done = subprocess.run([sys.executable, "-c", BUILD], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.stdout == "False\n", done.stderr


def test_everything_is_initialized() -> None:
    with torch.device("meta"):
        model = GPT(CONFIGS["grouped"])
    model.materialize(torch.device("cpu"))
    tensors = dict([*model.named_parameters(), *model.named_buffers()])
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.fill_(math.nan)
    model.init_weights()
    assert [name for name, tensor in tensors.items() if not tensor.isfinite().all()] == []
    for module in model.modules():  # there are no tensors besides parameters and buffers
        assert not [name for name, value in vars(module).items() if isinstance(value, Tensor)]


def test_standard_deviations_of_initial_weights() -> None:
    config = GPTConfig(sequence_len=8, vocab_size=512, n_layer=2, n_head=3, n_kv_head=1, n_embd=192)
    model = GPT(config)
    model.init_weights()
    flat = 192**-0.5
    expected = {"q_proj": flat, "k_proj": flat / 3**0.5, "v_proj": flat / 3**0.5, "up_proj": flat, "embed": 1.0}
    for name, param in model.named_parameters():
        std = expected.get(name.split(".")[-2], 0.0)
        assert param.std().item() == pytest.approx(std, rel=0.03), name
        assert abs(param.mean().item()) <= 0.03 * std, name


def test_initial_weights_depend_on_the_seed_only() -> None:
    first, again, other = (GPT(CONFIGS["plain"]) for _ in range(3))
    first.init_weights(1)
    torch.rand(1)  # the global generator has no influence
    again.init_weights(1)
    other.init_weights(2)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embed.weight, other.embed.weight)


def test_tokens_are_equally_likely_at_initialization() -> None:
    model = GPT(CONFIGS["grouped"])
    model.init_weights()
    idx = random_tokens(model.config, 2, 9)
    assert model(idx, idx).item() == pytest.approx(math.log(101), rel=1e-6)


# Forward


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_the_reference(name: str) -> None:
    model = random_model(CONFIGS[name])
    idx = random_tokens(model.config, 3, model.config.sequence_len)
    expected = reference_logits(model.config, model.state_dict(), idx)
    assert expected.abs().max() > 3  # large enough for the soft cap to matter
    logits = model(idx)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=2e-5)


def test_epsilon_of_the_norm() -> None:
    x = torch.full((4,), 1e-3, dtype=torch.float64)
    assert rms_norm(x)[0].item() == pytest.approx(1e-3 / math.sqrt(1e-6 + 1e-6), rel=1e-12)


@pytest.mark.parametrize("name", CONFIGS)
def test_attention_is_causal(name: str) -> None:
    model = random_model(CONFIGS[name])
    idx = random_tokens(model.config, 1, model.config.sequence_len)
    before = model(idx)
    for t in range(idx.size(1)):
        changed = idx.clone()
        changed[0, t] = (idx[0, t] + 1) % model.config.vocab_size
        after = model(changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=1e-6)
        assert not torch.allclose(after[:, t], before[:, t], atol=1e-3)


def test_a_sequence_of_one_token() -> None:
    model = random_model(CONFIGS["grouped"])
    idx = random_tokens(model.config, 2, 5)
    torch.testing.assert_close(model(idx[:, :1]), model(idx)[:, :1], rtol=0, atol=1e-5)
    assert model(idx[:, :1], idx[:, 1:2]).isfinite()


def test_more_positions_than_the_context_holds_are_a_bug() -> None:
    model = random_model(CONFIGS["plain"])
    with pytest.raises(AssertionError, match="17 positions"):
        model(random_tokens(model.config, 1, 17))


# Loss


def test_losses_are_negative_log_probabilities() -> None:
    model = random_model(CONFIGS["grouped"])
    idx = random_tokens(model.config, 2, 9)
    targets = idx.roll(-1, 1)
    targets[0, 3] = targets[1, 8] = -1
    probs = reference_logits(model.config, model.state_dict(), idx).softmax(-1)
    expected = torch.zeros(2, 9, dtype=torch.float64)
    for b in range(2):
        for t in range(9):
            if targets[b, t] != -1:
                expected[b, t] = -math.log(probs[b, t, targets[b, t]])
    for reduction, value in {"none": expected, "sum": expected.sum(), "mean": expected.sum() / 16}.items():
        losses = model(idx, targets, loss_reduction=reduction)
        torch.testing.assert_close(losses.double(), value, rtol=1e-5, atol=1e-5)


def test_with_every_target_ignored_loss_and_gradients_are_zero() -> None:
    model = random_model(CONFIGS["plain"])
    idx = random_tokens(model.config, 2, 9)
    loss = model(idx, torch.full_like(idx, -1))
    loss.backward()
    assert loss.item() == 0
    assert all(param.grad is not None and not param.grad.any() for param in model.parameters())


def test_the_padding_of_the_vocabulary_has_no_influence() -> None:
    model = random_model(CONFIGS["one key-value head"])  # 65 ids in tables of 128 rows
    assert model.head.weight.size(0) == model.embed.weight.size(0) == 128
    idx = random_tokens(model.config, 2, 7)
    loss = model(idx, idx)
    loss.backward()
    with torch.no_grad():
        model.head.weight[65:] = 1e9
        assert model(idx).shape == (2, 7, 65)
        assert torch.equal(model(idx, idx), loss)
    for table in (model.head.weight, model.embed.weight):
        assert table.grad is not None
        assert table.grad[:65].any()
        assert not table.grad[65:].any()


# Generation without a cache


def test_greedy_generation_up_to_the_end_of_the_context() -> None:
    model = random_model(CONFIGS["plain"])
    prompt = random_tokens(model.config, 5).tolist()
    ids = list(prompt)
    while len(ids) < model.config.sequence_len:
        ids.append(int(reference_logits(model.config, model.state_dict(), torch.tensor([ids]))[0, -1].argmax()))
    assert prompt + list(model.generate(prompt, 1000, temperature=0)) == ids
    assert list(model.generate(prompt, 3, temperature=0)) == ids[5:8]
    assert list(model.generate(ids, 3, temperature=0)) == []


# Other precisions and compilation

BFLOAT16 = """
import json, sys, torch
from nanochat.gpt import GPT, GPTConfig
torch.manual_seed(0)
config = GPTConfig(sequence_len=64, vocab_size=512, n_layer=3, n_head=4, n_kv_head=2, n_embd=256)
models = {dtype: GPT(config, dtype) for dtype in (torch.float32, torch.bfloat16)}
for model in models.values():
    model.init_weights()
    for name, param in model.named_parameters():
        if not param.any():
            torch.nn.init.normal_(param, std=param.size(1) ** -0.5, generator=torch.Generator().manual_seed(len(name)))
idx = torch.randint(512, (2, 64), generator=torch.Generator().manual_seed(1))
logits = {}
for dtype, model in models.items():
    assert model.hidden_states(idx).dtype == dtype and model(idx).dtype == torch.float32
    logits[dtype] = model(idx)
    model(idx, idx).backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())
ones, twos = (torch.cat([p.grad.flatten() for p in model.parameters()]) for model in models.values())
print(json.dumps({
    "std": logits[torch.float32].std().item(),
    "error": (logits[torch.bfloat16] - logits[torch.float32]).std().item(),
    "gradients": torch.cosine_similarity(ones, twos, dim=0).item(),
}))
"""


@pytest.mark.slow
def test_bfloat16_is_close_to_float32() -> None:
    """In a separate process: AMX, which is broken on some machines, must be disabled before the first product."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", BFLOAT16], env=environment, capture_output=True, text=True, timeout=200, check=True
    )
    measured = json.loads(done.stdout)
    assert measured["error"] < 0.02 * measured["std"]
    assert measured["gradients"] > 0.999


@pytest.mark.slow
def test_the_compiled_model_equals_the_eager_one() -> None:
    model = random_model(CONFIGS["grouped"])
    idx = random_tokens(model.config, 2, 9)
    targets = idx.roll(-1, 1)
    results = []
    for forward in (model, torch.compile(model)):
        model.zero_grad()
        loss = forward(idx, targets)
        loss.backward()
        results.append([loss.detach(), *(param.grad for param in model.parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)
