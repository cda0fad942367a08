"""Models for the check: random ones, to compare and to time, and one whose text is known."""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer

SPECIAL = {name: 256 + index for index, name in enumerate(SPECIAL_TOKENS)}
TOKENIZER = Tokenizer(SPLIT_PATTERN, {bytes([byte]): byte for byte in range(256)}, SPECIAL)  # each byte is a token


def random_model(config: GPTConfig, device: torch.device, dtype: torch.dtype, seed: int = 1) -> GPT:
    """Return a model on the device with the same random weights everywhere: drawn on the CPU, none of them 0."""
    model = GPT(config)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "head.weight")):  # 0 in a new model
                param.copy_(torch.randn(param.shape, generator=generator) / math.sqrt(param.size(1)))
    model.compute_dtype = dtype
    return model.to(device)


def model_to_time(config: GPTConfig, device: torch.device) -> GPT:
    """Return a bf16 model whose weights are drawn on the device, which takes milliseconds: for measurements of time."""
    with torch.device("meta"):
        model = GPT(config, torch.bfloat16)
    model.materialize(device)
    with torch.no_grad():
        for param in model.parameters():
            param.normal_(std=0.02)
    model.init_rope()
    return model


def calculator_model(device: torch.device, dtype: torch.dtype) -> tuple[GPT, list[int], list[int]]:
    """Return a model that always writes a call of the calculator, its tokens, and their mask.

    It looks at the last token only: its embedding is one-hot, and a row of the head is the token that follows.
    """
    call = [SPECIAL["<|python_start|>"], *b"6*7", SPECIAL["<|python_end|>"]]
    output = [SPECIAL["<|output_start|>"], *b"42", SPECIAL["<|output_end|>"]]
    end = SPECIAL["<|assistant_end|>"]
    sampled = [(ord("?"), call[0]), *pairwise(call), (output[-1], end)]  # (token, the next one)
    size = TOKENIZER.get_vocab_size() + TOKENIZER.get_vocab_size() % 2
    config = GPTConfig(
        sequence_len=32, vocab_size=TOKENIZER.get_vocab_size(), n_layer=1, n_head=1, n_kv_head=1, n_embd=size
    )
    model = GPT(config, dtype)
    model.init_weights()  # the block adds nothing
    with torch.no_grad():
        model.embed.weight.zero_()
        model.embed.weight[: config.vocab_size, : config.vocab_size] = torch.eye(config.vocab_size)
        for token, following in sampled:
            model.head.weight[following, token] = 1.0
    mask = [1] * len(call) + [0] * len(output) + [1]
    return model.to(device), [*call, *output, end], mask
