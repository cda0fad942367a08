"""Conversion of a model to and from transformers' architecture `nanochat`: configuration, weights, model card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from nanochat.common import UserError
from nanochat.export.hf_tokenizer import ASSISTANT_END, BOS
from nanochat.gpt import NORM_EPS, ROPE_BASE, SOFTCAPS, GPTConfig
from nanochat.reporting.markdown import escape, format_number
from nanochat.reporting.schema import Section
from nanochat.system.json_text import short_repr
from nanochat.tokenizer import Tokenizer

# Field of GPTConfig -> field of config.json.
CONFIG_FIELDS = {
    "sequence_len": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
}
# Matrix of a block -> its module in a layer of transformers' model.
_BLOCK_MODULES = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.o_proj",
    "up_proj": "mlp.fc1",
    "down_proj": "mlp.fc2",
}
_VOCAB_WEIGHTS = ("embed.weight", "head.weight")  # one row for each token; only nanochat pads them


def fixed_fields(config: GPTConfig) -> dict[str, Any]:
    """Return the fields of config.json whose values follow from nanochat's architecture."""
    return {
        "hidden_act": "relu2",
        "intermediate_size": 4 * config.n_embd,
        "rms_norm_eps": NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE},
        "attention_bias": False,
        "tie_word_embeddings": False,
    }


def special_token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the ids that begin and end a text. As in `nanochat.engine`, `<|assistant_end|>` and bos both end it."""
    bos = tokenizer.get_bos_token_id()
    end = tokenizer.encode_special(ASSISTANT_END)
    return {"bos_token_id": bos, "eos_token_id": [end, bos], "pad_token_id": bos}


def to_hf_config(config: GPTConfig, tokenizer: Tokenizer, origin: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `config.json`. `origin`: facts about the checkpoint, which transformers ignores."""
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        **{hf_field: getattr(config, field) for field, hf_field in CONFIG_FIELDS.items()},
        **fixed_fields(config),
        "final_logit_softcapping": config.softcap or None,  # 0.0 would make all logits 0 there
        **special_token_ids(tokenizer),
        "attention_dropout": 0.0,
        "use_cache": True,
        "dtype": "float32",
        "origin": dict(origin),
    }


def from_hf_config(content: Any) -> GPTConfig:
    """Return the GPTConfig of a `config.json`. Raises UserError for a model that nanochat cannot represent."""
    model_type = content.get("model_type") if isinstance(content, dict) else None
    if model_type != "nanochat":
        raise UserError(f"its model_type is {short_repr(model_type)}: must be 'nanochat' to be imported")
    if missing := [field for field in CONFIG_FIELDS.values() if type(content.get(field)) is not int]:
        raise UserError(f"{missing[0]} is {short_repr(content.get(missing[0]))}: must be a whole number")
    sizes = {field: content[hf_field] for field, hf_field in CONFIG_FIELDS.items()}
    config = GPTConfig(**sizes, softcap=_softcap_of(content))
    for field, value in fixed_fields(config).items():
        if content.get(field) != value:
            found = short_repr(content.get(field))
            raise UserError(f"{field} is {found}: must be {value!r}, as in every model of nanochat")
    return config


def _softcap_of(content: Mapping[str, Any]) -> float:
    """Return the soft cap of a `config.json`, 0 for null: transformers does not cap the logits then."""
    name = "final_logit_softcapping"
    cap = content.get(name)
    if cap is None and name in content:
        return 0.0
    if not isinstance(cap, (int, float)) or isinstance(cap, bool) or not SOFTCAPS[0] <= cap <= SOFTCAPS[1]:
        found = short_repr(cap) if name in content else "missing"
        rule = f"must be null (logits are not capped) or from {SOFTCAPS[0]:g} to {SOFTCAPS[1]:g}"
        raise UserError(f"{name} is {found}: {rule}")
    return float(cap)


def hf_weight_names(config: GPTConfig) -> dict[str, str]:
    """Return a dict from each weight's name in nanochat to its name in transformers.

    >>> hf_weight_names(GPTConfig(n_layer=1))["blocks.0.attn.q_proj.weight"]
    'model.layers.0.self_attn.q_proj.weight'
    """
    names = {"embed.weight": "model.embed_tokens.weight", "head.weight": "lm_head.weight"}
    for layer in range(config.n_layer):
        for matrix, hf_module in _BLOCK_MODULES.items():
            part = "attn" if hf_module.startswith("self_attn") else "mlp"
            names[f"blocks.{layer}.{part}.{matrix}.weight"] = f"model.layers.{layer}.{hf_module}.weight"
    return names


def to_hf_weights(weights: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Return the weights by their names in transformers, without the rows that pad the vocabulary.

    Raises UserError if a weight has no name in transformers, or if one is missing.
    """
    names = hf_weight_names(config)
    if odd := sorted(weights.keys() ^ names.keys()):
        side = "this model" if odd[0] in weights else "transformers' architecture nanochat"
        raise UserError(f"the weight {odd[0]} is only in {side}: the model cannot be exported")
    hf_weights = {}
    for name, hf_name in names.items():
        weight = weights[name]
        hf_weights[hf_name] = (weight[: config.vocab_size] if name in _VOCAB_WEIGHTS else weight).contiguous()
    return hf_weights


def from_hf_weights(hf_weights: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Return the weights by their names in nanochat, in float32, with zero rows that pad the vocabulary.

    Raises UserError for weights of another model.
    """
    check_hf_shapes({name: tuple(weight.shape) for name, weight in hf_weights.items()}, config)
    num_padding_rows = config.padded_vocab_size - config.vocab_size
    weights = {}
    for name, hf_name in hf_weight_names(config).items():
        weight = hf_weights[hf_name]
        if not weight.is_floating_point():
            raise UserError(f"{hf_name} has the type {weight.dtype}: must be of floating-point numbers")
        weight = weight.float()
        weights[name] = pad(weight, (0, 0, 0, num_padding_rows)) if name in _VOCAB_WEIGHTS else weight
    return weights


def check_hf_shapes(shapes: Mapping[str, tuple[int, ...]], config: GPTConfig) -> None:
    """Raise UserError unless the shapes, by their weights' names in transformers, are those of the model."""
    names = hf_weight_names(config)
    if odd := sorted(shapes.keys() ^ set(names.values())):
        side = "the weight files" if odd[0] in shapes else "the model that config.json describes"
        raise UserError(f"the weight {short_repr(odd[0])[1:-1]} is only in {side}: both must belong to one model")
    num_padding_rows = config.padded_vocab_size - config.vocab_size
    for name, hf_name in names.items():
        num_rows, num_columns = weight_shape(name, config)
        shape = (num_rows - num_padding_rows * (name in _VOCAB_WEIGHTS), num_columns)
        if shapes[hf_name] != shape:
            raise UserError(f"{hf_name} has the shape {shapes[hf_name]}, but {name} needs {shape}")


def weight_shape(name: str, config: GPTConfig) -> tuple[int, int]:
    """Return the rows and columns of a weight, given by its name in nanochat."""
    width = config.n_embd
    matrix = name.split(".")[-2]
    num_rows = {
        "embed": config.padded_vocab_size,
        "head": config.padded_vocab_size,
        "k_proj": config.n_kv_head * config.head_dim,
        "v_proj": config.n_kv_head * config.head_dim,
        "up_proj": 4 * width,
    }
    return num_rows.get(matrix, width), 4 * width if matrix == "down_proj" else width


CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [nanochat]
---

# nanochat {tag}, stage {source}

A GPT of {parameters:,} parameters, trained with nanochat: {n_layer} layers, {n_embd} wide, {n_head} query heads,
{n_kv_head} key-value heads, a vocabulary of {vocab_size:,} and a context of {sequence_len:,} tokens. Its logits
are {cap}. This is the checkpoint of step {step:,}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER_OR_NAME)
model = AutoModelForCausalLM.from_pretrained(FOLDER_OR_NAME)
{usage}
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0]))
```

The weights are float32; training computed in {compute_dtype}.

## Metrics

{metrics}

## Tokens

- A text is given `{bos}` in front, as every document had in training (`add_special_tokens=False`: not).
- The name of a special token in a text, such as `{end}`, becomes that token. In nanochat it stays text; here
  `split_special_tokens=True` keeps it so, but not in the chat template. Take such names out of what users write.
- The chat template writes `{bos}` itself, and a rendered conversation must not be given a second one.
  `apply_chat_template` with `tokenize=True`, its default, gives one. Where the text is rendered first and tokenized
  later, as some servers do, tokenize it with `add_special_tokens=False`.
- The chat template needs plain Jinja only. To train on conversations, the template `training` has in addition the marks
  of what the model learns to say: `apply_chat_template(messages, chat_template="training", return_dict=True,
  return_assistant_tokens_mask=True)`. Both render what nanochat's `render_conversation` does, but a last question
  without an answer stays here, and is left out there. The result of a tool belongs after its call: after text, the mask
  may lack some of the last character's tokens.
"""
_BASE_USAGE = 'inputs = tokenizer("Once upon a time", return_tensors="pt")'
_CHAT_USAGE = """\
messages = [{"role": "user", "content": "Why is the sky blue?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""


def model_card(
    source: str, tag: str, meta: Mapping[str, Any], config: GPTConfig, num_params: int, sections: Mapping[str, Section]
) -> str:
    """Return the model card, README.md: the model, how to load it, metrics of its training and from the report.

    The report holds the last evaluation of each kind, which may be of another model: only sections on this checkpoint
    are used.
    """
    history = meta.get("loop", {}).get("history", [])
    last_values = {name: value for row in history for name, value in row.items()}
    names = {"val_bpb": "validation bits per byte", "loss": "training loss (nats per token)"}
    lines = [f"- {text}: {format_number(last_values[name])}" for name, text in names.items() if name in last_values]
    section_name = re.compile("base_(loss|eval)" if source == "base" else f"chat_eval_{source}")
    for name, section in sections.items():
        if not section_name.fullmatch(name) or section.get("checkpoint") != f"{tag}:{meta['step']}":
            continue
        notes = " ".join(map(escape, section.get("notes", [])))
        lines += ["", f"From the report's section {name} ({section.get('time')}). {notes}".strip(), ""]
        lines += [
            f"- {escape(metric)}: {_format_metric(value)}" for metric, value in section.get("metrics", {}).items()
        ]
    return CARD.format(
        source=source,
        tag=tag,
        step=meta["step"],
        compute_dtype=meta["compute_dtype"],
        **asdict(config),
        cap=f"soft-capped at {config.softcap:g}" if config.softcap else "not capped",
        parameters=num_params,
        usage=_BASE_USAGE if source == "base" else _CHAT_USAGE,
        metrics="\n".join(lines).strip() or "None were recorded.",
        bos=BOS,
        end=ASSISTANT_END,
    )


def _format_metric(metric: Any) -> str:
    """Return a metric of the report, with its interval and its number of examples if it has them."""
    if not isinstance(metric, dict):
        return format_number(metric)
    low, high = metric.get("interval") or (None, None)
    parts = [] if low is None else [f"95% interval {format_number(low)} to {format_number(high)}"]
    parts += [f"n = {metric['n']}"] if metric.get("n") is not None else []
    return format_number(metric["value"]) + (f" ({', '.join(parts)})" if parts else "")
