"""Small models and tokenizers of Hugging Face transformers for tests: the kinds that differ for evaluation."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

TEXTS = [
    "The sheep said that the shepherd's dog isn't there; they'll see 1234567 of them.\n\n  def f(x):\n\treturn x\n",
    "Жили-были старик со старухой у самого синего моря. 从前有一个老人和他的妻子住在海边。😀👩‍🚀 naïve café\r\n",
    " A text that begins with a space, and names <|bos|> and <|endoftext|> and <s>.",
]


def byte_level_tokenizer() -> Any:
    """A tokenizer like GPT-2's: bytes; a space belongs to the word after it; one token begins and ends a text."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    letters = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|endoftext|>"], initial_alphabet=letters, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    ends = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **ends)


def sentence_piece_tokenizer(legacy: bool = True) -> Any:
    """A tokenizer like Llama 2's, which puts a space before every text. It has an end token and no beginning token.

    A `legacy` one puts the space also before a text that begins with a space.
    """
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<0x3F>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never" if legacy else "first")
    prepend = [tokenizers.normalizers.Prepend(" ")] if legacy else []
    # NFKC changes the number of bytes.
    inner.normalizer = tokenizers.normalizers.Sequence([*prepend, tokenizers.normalizers.NFKC()])
    decoders = tokenizers.decoders
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330, special_tokens=specials, limit_alphabet=40, show_progress=False
    )
    inner.train_from_iterator(TEXTS, trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


BASE_SHAPE = {"vocab_size": 330, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
LLAMA_SHAPE = {**BASE_SHAPE, "num_key_value_heads": 2, "max_position_embeddings": 64, "intermediate_size": 64}
GPT2_SHAPE = {"vocab_size": 330, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
GPT_NEO_SHAPE = {
    "vocab_size": 330,
    "hidden_size": 32,
    "num_layers": 2,
    "num_heads": 4,
    "max_position_embeddings": 64,
    "window_size": 8,
    "attention_types": [[["global", "local"], 1]],
}

# Name -> tokenizer, class of the configuration, its arguments.
ARCHITECTURES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "gpt2": (byte_level_tokenizer, "GPT2Config", GPT2_SHAPE),  # its head is its embedding
    "llama": (sentence_piece_tokenizer, "LlamaConfig", LLAMA_SHAPE),
    # A soft cap on logits, and a sliding window that the cache is cut to:
    "gemma2": (byte_level_tokenizer, "Gemma2Config", {**LLAMA_SHAPE, "head_dim": 8, "sliding_window": 8}),
    # Positions by ALiBi:
    "bloom": (
        byte_level_tokenizer,
        "BloomConfig",
        {"vocab_size": 330, "hidden_size": 32, "n_layer": 2, "n_head": 4},
    ),
    # A sliding window with a whole cache, and position embeddings for no more columns than the context has:
    "gpt_neo": (byte_level_tokenizer, "GPTNeoConfig", GPT_NEO_SHAPE),
    # A state in place of a cache:
    "mamba": (
        partial(sentence_piece_tokenizer, False),
        "MambaConfig",
        {"vocab_size": 330, "hidden_size": 32, "num_hidden_layers": 2},
    ),
}


def save_hf_model(architecture: str, folder: Path) -> Path:
    """Save a model with random weights, scaled up so that it prefers some tokens, and its tokenizer."""
    make_tokenizer, config, shape = ARCHITECTURES[architecture]
    torch.manual_seed(2)
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**shape))
    with torch.no_grad():
        for param in model.parameters():
            if param.dim() == 2:
                param.mul_(4)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def log_probs_alone(inner: Any, ids: list[int]) -> torch.Tensor:
    """Log-probabilities (T, V) of the token after each id of one sequence, computed alone."""
    with torch.no_grad():
        return inner(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
