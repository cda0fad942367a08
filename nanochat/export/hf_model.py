"""Our model as transformers' architecture `nanochat`, and back: configuration, weights, model card."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

from nanochat.common import UserError
from nanochat.export.hf_tokenizer import ASSISTANT_END, BOS
from nanochat.gpt import NORM_EPS, ROPE_BASE, SOFTCAP, GPTConfig
from nanochat.reporting.markdown import escape, format_number
from nanochat.reporting.schema import Section
from nanochat.tokenizer import Tokenizer

# Which of their fields holds which of ours.
CONFIG_FIELDS = {
    "sequence_len": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
}
_NAMES = {"q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj"}
_NAMES |= {"o_proj": "self_attn.o_proj", "up_proj": "mlp.fc1", "down_proj": "mlp.fc2"}


def fixed_fields(config: GPTConfig) -> dict[str, Any]:
    """Their fields whose value our architecture decides."""
    return {
        "hidden_act": "relu2",
        "intermediate_size": 4 * config.n_embd,
        "rms_norm_eps": NORM_EPS,
        "final_logit_softcapping": SOFTCAP,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE},
        "attention_bias": False,
        "tie_word_embeddings": False,
    }


def special_token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """The ids that begin and end a text: as in our engine, the end of an answer and the next document's begin."""
    bos, end = tokenizer.get_bos_token_id(), tokenizer.encode_special(ASSISTANT_END)
    return {"bos_token_id": bos, "eos_token_id": [end, bos], "pad_token_id": bos}


def to_hf_config(config: GPTConfig, tokenizer: Tokenizer, origin: Mapping[str, Any]) -> dict[str, Any]:
    """`config.json`. `origin`: what to remember of the checkpoint; transformers keeps it and does not use it."""
    return {
        "architectures": ["NanoChatForCausalLM"],
        "model_type": "nanochat",
        **{theirs: getattr(config, ours) for ours, theirs in CONFIG_FIELDS.items()},
        **fixed_fields(config),
        **special_token_ids(tokenizer),
        "attention_dropout": 0.0,
        "use_cache": True,
        "dtype": "float32",
        "origin": dict(origin),
    }


def from_hf_config(content: Any) -> GPTConfig:
    """The shape of the model in a `config.json`. Raises UserError for a model that ours cannot be."""
    kind = content.get("model_type") if isinstance(content, dict) else None
    if kind != "nanochat":
        raise UserError(f"its model_type is {kind!r}: only 'nanochat' can be imported")
    if missing := [field for field in CONFIG_FIELDS.values() if not isinstance(content.get(field), int)]:
        raise UserError(f"{missing[0]} is {content.get(missing[0])!r}: it must be a whole number")
    config = GPTConfig(**{ours: content[theirs] for ours, theirs in CONFIG_FIELDS.items()})
    for field, value in fixed_fields(config).items():
        if content.get(field) != value:
            raise UserError(f"{field} is {content.get(field)!r}: our model has {value!r}")
    return config


def hf_weight_names(config: GPTConfig) -> dict[str, str]:
    """Name of each of our weights -> theirs."""
    names = {"embed.weight": "model.embed_tokens.weight", "head.weight": "lm_head.weight"}
    for layer in range(config.n_layer):
        for ours, theirs in _NAMES.items():
            part = "attn" if theirs.startswith("self_attn") else "mlp"
            names[f"blocks.{layer}.{part}.{ours}.weight"] = f"model.layers.{layer}.{theirs}.weight"
    return names


def to_hf_weights(weights: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """Our weights under their names, without the rows that pad the vocabulary. Raises UserError if some do not fit."""
    names = hf_weight_names(config)
    if odd := sorted(weights.keys() ^ names.keys()):
        raise UserError(f"transformers' nanochat has no place for this model: {odd[0]} is in one of them only")
    rows = {"embed.weight": config.vocab_size, "head.weight": config.vocab_size}
    return {theirs: weights[ours][: rows.get(ours)].contiguous() for ours, theirs in names.items()}


def from_hf_weights(weights: Mapping[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """The inverse, in float32: zero rows pad the vocabulary. Raises UserError for weights of another model."""
    names = hf_weight_names(config)
    if odd := sorted(weights.keys() ^ set(names.values())):
        raise UserError(f"the weights are not those of its configuration: {odd[0]} is in one of them only")
    padding = config.padded_vocab_size - config.vocab_size
    found = {}
    for ours, theirs in names.items():
        weight = weights[theirs].float()
        found[ours] = pad(weight, (0, 0, 0, padding)) if ours in ("embed.weight", "head.weight") else weight
        if found[ours].shape != (shape := weight_shape(ours, config)):
            raise UserError(f"{theirs} has the shape {tuple(weights[theirs].shape)}, where {ours} needs {shape}")
    return found


def weight_shape(name: str, config: GPTConfig) -> tuple[int, int]:
    """Rows and columns of one of our weights."""
    width, kind = config.n_embd, name.split(".")[-2]
    rows = {
        **dict.fromkeys(("embed", "head"), config.padded_vocab_size),
        **dict.fromkeys(("k_proj", "v_proj"), config.n_kv_head * config.head_dim),
        "up_proj": 4 * width,
    }
    return rows.get(kind, width), 4 * width if kind == "down_proj" else width


CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [nanochat]
---

# nanochat {tag}, stage {source}

A GPT of {parameters:,} parameters, trained with nanochat: {n_layer} layers, {n_embd} wide, {n_head} query heads,
{n_kv_head} key-value heads, a vocabulary of {vocab_size:,} and a context of {sequence_len:,} tokens. This is the
checkpoint of step {step:,}.

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
- The chat template renders what nanochat's `render_conversation` does, with a mask of what the model learns to say
  (`return_assistant_tokens_mask=True`). Here a last question without an answer stays; there it is left out. The result
  of a tool belongs after its call: after text, the mask may lack some of the last character's tokens.
"""
_BASE_USAGE = 'inputs = tokenizer("Once upon a time", return_tensors="pt")'
_CHAT_USAGE = """\
messages = [{"role": "user", "content": "Why is the sky blue?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""


def model_card(
    source: str, tag: str, meta: Mapping[str, Any], config: GPTConfig, parameters: int, sections: Mapping[str, Section]
) -> str:
    """The folder's README.md: what the model is, how to load it, our metrics from its training and from the report.

    The report holds the last evaluation of each kind, maybe of another model: only this checkpoint's are taken.
    """
    history = meta.get("loop", {}).get("history", [])
    last = {name: value for row in history for name, value in row.items()}
    names = {"val_bpb": "validation bits per byte", "loss": "training loss (nats per token)"}
    lines = [f"- {text}: {format_number(last[name])}" for name, text in names.items() if name in last]
    stage = re.compile("base_(loss|eval)" if source == "base" else f"chat_eval_{source}")
    for name, section in sections.items():
        if not stage.fullmatch(name) or section.get("checkpoint") != f"{tag}:{meta['step']}":
            continue
        notes = " ".join(map(escape, section.get("notes", [])))
        lines += ["", f"From the report's section {name} ({section.get('time')}). {notes}".strip(), ""]
        lines += [f"- {escape(metric)}: {_shown(value)}" for metric, value in section.get("metrics", {}).items()]
    return CARD.format(
        source=source,
        tag=tag,
        step=meta["step"],
        compute_dtype=meta["compute_dtype"],
        **asdict(config),
        parameters=parameters,
        usage=_BASE_USAGE if source == "base" else _CHAT_USAGE,
        metrics="\n".join(lines).strip() or "None were recorded.",
        bos=BOS,
        end=ASSISTANT_END,
    )


def _shown(metric: Any) -> str:
    """A metric of the report; its interval and its number of examples, where it has them."""
    if not isinstance(metric, dict):
        return format_number(metric)
    low, high = metric.get("interval") or (None, None)
    parts = [] if low is None else [f"95% interval {format_number(low)} to {format_number(high)}"]
    parts += [f"n = {metric['n']}"] if metric.get("n") is not None else []
    return format_number(metric["value"]) + (f" ({', '.join(parts)})" if parts else "")
