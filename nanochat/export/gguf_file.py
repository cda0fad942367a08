"""GGUF, the file format of llama.cpp: all of a model in one file, weights, tokenizer and chat template.

    write_gguf(path, weights, config, tokenizer, options, about)
    file = GGUFFile.open(path)      # its keys, and its weights in float32

The container and the formats of quantized weights are those of the package `gguf` (`uv pip install -e '.[gguf]'`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanochat.common import UserError, written_atomically
from nanochat.export.gguf_forms import (
    FORMS,
    MAX_BLOCK_SCALE,
    XIELU_ALPHA_N,
    XIELU_ALPHA_P,
    XIELU_BETA,
    XIELU_EPS,
    choose_scales,
)
from nanochat.export.gguf_header import check_header
from nanochat.export.gguf_tokenizer import Splitting, choose_splitting, from_gguf_tokenizer, gguf_tokenizer
from nanochat.gpt import MAX_SIZES, GPTConfig
from nanochat.system.json_text import short_repr
from nanochat.tokenizer import Tokenizer

WEIGHT_TYPES = ("bf16", "f32", "q8_0", "q4_0")
MAX_BYTES = 1 << 38
_GGML_TYPES = {"bf16": "BF16", "f32": "F32", "q8_0": "Q8_0", "q4_0": "Q4_0"}
_FILE_TYPES = {"bf16": "MOSTLY_BF16", "f32": "ALL_F32", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
_LEVELS = {"q8_0": 127, "q4_0": 8}  # type -> the largest weight of a block of 32 over its scale, a float16
_BLOCK_LEN = 32
OTHER_FILE = "choose another file"  # the way out where a file cannot be written
TOOL_LIMIT = (
    "The engine does not compute tool calls: it stops after a call, and a client may compute the result and go on."
)
SPECIAL_TOKEN_LIMIT = (
    "The name of a special token in a user's text, such as <|assistant_end|>, becomes that token where the engine "
    "parses special tokens in prompts, as llama.cpp's chat endpoints do; in nanochat it stays text."
)
COMMON_LIMITS = (TOOL_LIMIT, SPECIAL_TOKEN_LIMIT)  # of all files
# Sampling that engines use unless told otherwise, as in scripts.chat_cli.
SAMPLING = {
    "general.sampling.temp": 0.6,
    "general.sampling.top_k": 50,
    "general.sampling.top_p": 1.0,
    "general.sampling.min_p": 0.0,
    "general.sampling.penalty_repeat": 1.0,
}


@dataclass(frozen=True)
class GGUFOptions:
    """The way in which a model is written."""

    weight_type: str = "bf16"  # one of WEIGHT_TYPES
    form: str = "apertus"  # one of FORMS
    allow_other_digits: bool = False  # accept a pre-tokenizer that cuts numbers in other groups


def import_gguf() -> ModuleType:
    """Return the package `gguf`. Raises UserError if it is not installed."""
    try:
        import gguf
    except ImportError as error:
        raise UserError(f"GGUF files need the package gguf ({error}): uv pip install -e '.[gguf]'") from error
    return gguf


def write_gguf(
    path: Path,
    weights: Mapping[str, Tensor],
    config: GPTConfig,
    tokenizer: Tokenizer,
    options: GGUFOptions,
    about: Mapping[str, Any],
) -> list[str]:
    """Write a model into one file, completely or not at all, and return sentences on what is not exact in it.

    `weights` by their names in nanochat, float32. `about`: more keys of the file, such as `general.name`. Raises
    UserError for what an engine would compute wrongly.
    """
    gguf = import_gguf()
    form = FORMS[options.form]
    splitting = choose_splitting(tokenizer, options.allow_other_digits)
    limits = find_limits(config, splitting, options)
    keys = {
        **about,
        "general.type": "model",
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "general.file_type": int(gguf.LlamaFileType[_FILE_TYPES[options.weight_type]]),
        **SAMPLING,
        "nanochat.softcap": float(config.softcap),
        "nanochat.limits": limits,
    }
    scales = choose_scales(weights, options.weight_type in _LEVELS)
    keys |= {f"{form.architecture}.{name}": value for name, value in form.keys(config, scales).items()}
    keys[f"{form.architecture}.vocab_size"] = config.vocab_size
    if options.form == "apertus":
        values = {"alpha_p": XIELU_ALPHA_P, "alpha_n": XIELU_ALPHA_N, "beta": XIELU_BETA, "eps": XIELU_EPS}
        keys |= {f"xielu.{name}": [value] * config.n_layer for name, value in values.items()}
    keys |= gguf_tokenizer(tokenizer, splitting)
    with written_atomically(path, OTHER_FILE) as temporary:
        writer = gguf.GGUFWriter(temporary, form.architecture)
        for key, value in keys.items():
            _add_key(gguf, writer, key, value)
        for name, tensor in form.tensors(weights, config, scales):
            weight_type = tensor_type(name, tensor, options)
            if (largest := float(tensor.abs().max())) / _LEVELS.get(weight_type, math.inf) > MAX_BLOCK_SCALE:
                raise UserError(f"{name} has weights of {largest:.2g}: too large for {weight_type}, use --type=bf16")
            ggml_type = gguf.GGMLQuantizationType[_GGML_TYPES[weight_type]]
            writer.add_tensor(name, gguf.quants.quantize(tensor.contiguous().numpy(), ggml_type), raw_dtype=ggml_type)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
    return limits


def tensor_type(name: str, tensor: Tensor, options: GGUFOptions) -> str:
    """Return the type of one tensor in a file.

    Norms are float32. With q4_0, embedding and head are q8_0, and in the form gemma3 q and k too, whose scaled weights
    need it. Rows that are no multiple of 32 long cannot be quantized and are bf16.
    """
    if tensor.dim() == 1:
        return "f32"
    if options.weight_type not in _LEVELS:
        return options.weight_type
    if tensor.size(-1) % _BLOCK_LEN:
        return "bf16"
    fine = ("token_embd.", "output.") + ((".attn_q.", ".attn_k.") if options.form == "gemma3" else ())
    return "q8_0" if any(part in name for part in fine) else options.weight_type


def find_limits(config: GPTConfig, splitting: Splitting, options: GGUFOptions) -> list[str]:
    """Return sentences on what an engine computes otherwise than nanochat with this file, beyond rounding."""
    limits = []
    if options.form == "apertus" and config.softcap:
        limits.append(
            f"The soft cap of the logits ({config.softcap:g}) is missing: greedy decoding is exact, sampling is "
            "sharper than in nanochat. The form gemma3 has it; a model trained with --softcap=0 does not need it."
        )
    if not splitting.is_exact:
        limits.append(
            "Numbers of three and more digits are cut into other tokens than in training, and are read and written "
            "less well. A tokenizer trained with --digits=1 or 3 is exact."
        )
    if options.weight_type == "q4_0":
        limits.append("Weights of 4 bits lose quality that can be noticed.")
    return [*limits, *COMMON_LIMITS]


def _add_key(gguf: ModuleType, writer: Any, key: str, value: Any) -> None:
    """Add a key with the type that follows from its value: bool, int (uint32), float (float32), str, or a list."""
    kinds = gguf.GGUFValueType
    types = {bool: kinds.BOOL, int: kinds.UINT32, float: kinds.FLOAT32, str: kinds.STRING}
    if not isinstance(value, list):
        writer.add_key_value(key, value, types[type(value)])
    elif value:
        item_type = kinds.INT32 if isinstance(value[0], int) else types[type(value[0])]
        writer.add_key_value(key, value, kinds.ARRAY, item_type)


@dataclass(frozen=True)
class GGUFFile:
    """A GGUF file: its keys, and its tensors, which are read when they are asked for."""

    path: Path
    keys: dict[str, Any]
    types: dict[str, str]  # name of a tensor -> type of its weights, such as "BF16"
    _tensors: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> GGUFFile:
        """Read the keys of a file. Raises UserError if it is missing, damaged, or no GGUF file."""
        gguf = import_gguf()
        check_header(path, MAX_BYTES)
        try:
            reader = gguf.GGUFReader(path)
            keys = {name: field.contents() for name, field in reader.fields.items()}
            tensors = {tensor.name: tensor for tensor in reader.tensors}
        except Exception as error:  # the package raises errors of many kinds for damaged files
            raise UserError(f"{path} cannot be read as GGUF: {short_repr(error)}") from error
        types = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
        return cls(path, keys, types, tensors)

    def tensor(self, name: str) -> Tensor:
        """Return a tensor in float32. Raises UserError if there is none of this name."""
        if name not in self._tensors:
            raise UserError(f"{self.path} has no tensor {name}: it is not a model that scripts.export_gguf wrote")
        stored = self._tensors[name]
        data = import_gguf().quants.dequantize(stored.data, stored.tensor_type)
        return torch.from_numpy(np.array(data, dtype=np.float32))

    @property
    def limits(self) -> list[str]:
        """Sentences on what an engine computes otherwise than nanochat; the tool is computed by nanochat's chat."""
        limits = self.keys.get("nanochat.limits", [])
        return [str(limit) for limit in limits if limit not in COMMON_LIMITS] if isinstance(limits, list) else []

    @property
    def context_len(self) -> int:
        """Context length of the model. Raises UserError if the file does not say it."""
        value = self.keys.get(f"{self.keys.get('general.architecture')}.context_length")
        limit = MAX_SIZES["sequence_len"]
        if not isinstance(value, int) or not 1 <= value <= limit:
            raise UserError(f"{self.path} has the context length {short_repr(value)}: must be from 1 to {limit:,}")
        return value

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer, which cuts texts as engines do with this file. Raises UserError for a foreign one."""
        try:
            return from_gguf_tokenizer(self.keys)
        except UserError as error:
            raise UserError(f"{self.path} is not a file of scripts.export_gguf: {error}") from error

    def names(self) -> Iterator[str]:
        """Yield the names of the tensors."""
        yield from self._tensors
