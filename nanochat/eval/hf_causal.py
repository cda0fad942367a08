"""A causal language model from Hugging Face transformers, from a folder or by its name on the hub, for evaluation.

Three kinds of model are refused: models that lack weights (transformers would initialise them at random), models that
bring their own code (loading would run it), and models whose predictions depend on later tokens (they would see the
answers).

Letters in shape comments: E examples, P tokens of their shared prefixes, B rows, T tokens after the prefixes, N
predicted tokens, C width, V vocabulary.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanochat.common import UserError, as_user_error, print0
from nanochat.layers.attention import varied_shapes
from nanochat.layers.padding import pad_right
from nanochat.runtime import Runtime, exact_float32
from nanochat.system.credentials import protect_hub_token

MAX_LOGITS = 1 << 28  # at a time: 1 GiB in float32
DEFAULT_CONTEXT_LEN = 2048  # tokens, for a model whose configuration and tokenizer name no limit
_CONTEXT_FIELDS = (
    "max_position_embeddings",
    "n_positions",
    "n_ctx",
    "max_sequence_length",
    "max_seq_len",
    "seq_length",
)
# Arguments of a tokenizer call that adds no tokens and reads names of special tokens as text.
_PLAIN_TEXT = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}


class HFTokenizer:
    """A tokenizer of transformers for plain text: it adds no tokens, and reads the names of special tokens as text.

    Callers put the tokenizer's `bos_token` before a document, even if the tokenizer itself does not add it (GPT-2's):
    the model was trained on documents that begin with it. Without a `bos_token`, `has_bos` is False: prompts begin with
    their text, and the `eos_token` separates documents.
    """

    def __init__(self, inner: Any) -> None:
        """Wrap `inner`, a tokenizer of transformers. Raises UserError if it is empty or has neither bos nor eos."""
        self.inner = inner
        self.has_bos = inner.bos_token_id is not None
        bos = inner.bos_token_id if self.has_bos else inner.eos_token_id
        if bos is None:
            raise UserError("it has neither a bos_token nor an eos_token: one of them must begin each document")
        self._bos = int(bos)
        first, second, both = self._ids(["a", "x", "a x"])
        if not both:  # transformers makes an empty tokenizer of a folder without tokenizer files
            raise UserError("its vocabulary is empty: are the tokenizer's files in the folder?")
        # SentencePiece's tokenizers put a space before a text that does not begin with one.
        self.adds_prefix_space = first + second == both

    def _ids(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self.inner(texts, **_PLAIN_TEXT)["input_ids"]
        return ids

    @overload
    def encode(self, text: str) -> list[int]: ...
    @overload
    def encode(self, text: list[str]) -> list[list[int]]: ...
    def encode(self, text: str | list[str]) -> list[int] | list[list[int]]:
        """Return the ids of one text, or of each text in a list.

        A space that the tokenizer adds before a text counts as the space that the text begins with.
        """
        texts = [text] if isinstance(text, str) else text
        rows = self._ids([t.removeprefix(" ") if self.adds_prefix_space else t for t in texts]) if texts else []
        return rows[0] if isinstance(text, str) else rows

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens by their names."""
        text: str = self.inner.decode(ids, clean_up_tokenization_spaces=False)
        return text

    def get_bos_token_id(self) -> int:
        """Return the id of the token that begins a document."""
        return self._bos

    def count_bytes(self, text: str, num_ids: int) -> int:
        """Return how many bytes of the text its first `num_ids` tokens cover."""
        stripped = text.removeprefix(" ") if self.adds_prefix_space else text
        ids = self._ids([stripped])[0]
        num_bytes = len(text.encode("utf-8"))
        name_lens = list(map(len, self.inner.convert_ids_to_tokens(ids)))
        if num_ids == 0 or sum(name_lens) == num_bytes:  # byte-level: a token's name has one letter for each byte
            return sum(name_lens[:num_ids])
        if not self.inner.is_fast:  # no offsets; the decoded text may be spelled differently by a lossy tokenizer
            return len(self.decode(ids[:num_ids]).encode("utf-8"))
        offsets = self.inner(stripped, return_offsets_mapping=True, **_PLAIN_TEXT)["offset_mapping"][:num_ids]
        end = max(end for _, end in offsets)
        return num_bytes - len(stripped[end:].encode("utf-8"))


class HFCausalModel(nn.Module):
    """A causal model of transformers. Its head computes in float32, and only where a token is to be predicted."""

    def __init__(self, inner: Any, tokenizer_context_len: int = DEFAULT_CONTEXT_LEN) -> None:
        """Wrap `inner`. `tokenizer_context_len`: the context of its tokenizer, for a model that names none."""
        super().__init__()
        self.inner = inner
        config = inner.config.get_text_config()
        limits = [getattr(config, name, None) for name in _CONTEXT_FIELDS]
        fallback = tokenizer_context_len if tokenizer_context_len < 1 << 20 else DEFAULT_CONTEXT_LEN
        self.context_len = next((limit for limit in limits if isinstance(limit, int) and limit > 0), fallback)
        self.vocab_size = int(inner.get_input_embeddings().num_embeddings)
        self.supports_prefix_sharing = False  # `load_hf_model` sets it after a test
        head = inner.get_output_embeddings()
        self.head = head if isinstance(head, nn.Linear) else None
        if self.head is not None and self.head.weight.dtype != torch.float32:
            # New parameters: the input embedding may share the old ones, and keeps its dtype.
            for name, value in list(self.head.named_parameters()):
                setattr(self.head, name, nn.Parameter(value.float(), requires_grad=False))
            self.head.register_forward_pre_hook(lambda _, args: (args[0].float(), *args[1:]))

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.inner.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    def are_logits_equal(self, logits: Tensor, others: Tensor) -> bool:
        """Return True if two tensors of logits differ by no more than rounding in the model's dtype."""
        tolerance = 1e-4 if self.inner.dtype == torch.float32 else 0.03
        return bool((logits - others).abs().max() <= tolerance * others.std().clamp(min=1e-6))

    def predict(self, idx: Tensor, rows: Tensor, columns: Tensor, **kwargs: Any) -> tuple[Tensor, Any]:
        """Return the logits (N, V), in float32, at `rows` (N,) and `columns` (N,) of `idx` (B, T), and the output.

        `kwargs` go to the model, for example a KV cache.
        """
        has_selected = False

        def select(_head: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            nonlocal has_selected
            has_selected = True
            return args[0][rows, columns][None], *args[1:]  # (B, T, C) -> (1, N, C)

        hook = self.head.register_forward_pre_hook(select, prepend=True) if self.head is not None else None
        try:
            output = self.inner(input_ids=idx, **{"use_cache": False, **kwargs})
        finally:
            if hook is not None:
                hook.remove()
        logits = output.logits[0] if has_selected else output.logits[rows, columns]  # without a linear head: (B, T, V)
        return logits[:, : self.vocab_size].float(), output

    def forward(self, idx: Tensor, targets: Tensor, loss_reduction: str = "none") -> Tensor:
        """Return the cross-entropy in nats (B, T) of `targets` (B, T), 0 where they are -1, as `GPT.forward` does."""
        assert loss_reduction == "none", f"loss_reduction is {loss_reduction!r}: only 'none' is supported"
        losses = torch.zeros(targets.shape, device=targets.device)
        num_rows = max(1, MAX_LOGITS // (targets.size(1) * self.vocab_size))
        for start in range(0, len(idx), num_rows):
            chunk = targets[start : start + num_rows]
            rows, columns = (chunk != -1).nonzero(as_tuple=True)
            if len(rows):
                logits, _ = self.predict(idx[start : start + num_rows], rows, columns)
                losses[start + rows, columns] = F.cross_entropy(logits, chunk[rows, columns], reduction="none")
        return losses


def prefill_prefix(
    model: HFCausalModel, prefixes: Sequence[list[int]], num_rows: Sequence[int], width: int
) -> dict[str, Any]:
    """Compute each example's prefix once. Returns the arguments with which `predict` continues on ids (B, `width`).

    `num_rows`: rows of each example, which follow one another; their sum is B. Only for a model that
    `supports_prefix_sharing`. Prefixes are padded on the left: a sliding window that counts columns, like GPT-Neo's,
    must not count padding between a prefix and what follows it.

        prefixes [1, 2], [3, 1, 4], num_rows [1, 2]  ->  idx [[0, 1, 2], [3, 1, 4]]; cache rows: 0, 1, 1
    """
    device = model.device
    max_len = max(map(len, prefixes))
    idx = torch.tensor([[0] * (max_len - len(prefix)) + prefix for prefix in prefixes], device=device)  # (E, P)
    padding = torch.tensor([[max_len - len(prefix)] for prefix in prefixes], device=device)  # (E, 1)
    positions = torch.arange(max_len + width, device=device) - padding  # (E, P + T), negative on padding
    mask = (positions >= 0).long()
    first = torch.zeros(1, dtype=torch.int64, device=device)  # one prediction, which is not used
    prefix_kwargs = {"attention_mask": mask[:, :max_len], "position_ids": positions[:, :max_len].clamp(min=0)}
    _, output = model.predict(idx, first, first, use_cache=True, **prefix_kwargs)
    # The argument, and the field of the output, were called past_key_values before transformers 5.24.
    name = "cache" if "cache" in inspect.signature(model.inner.forward).parameters else "past_key_values"
    cache = getattr(output, name)
    examples = torch.arange(len(prefixes), device=device)
    repeats = torch.tensor(num_rows, device=device)
    examples = examples.repeat_interleave(repeats, output_size=sum(num_rows))  # (E,) -> (B,)
    cache.reorder_cache(examples)
    return {
        name: cache,
        "use_cache": True,
        "attention_mask": mask[examples],
        "position_ids": positions[examples, max_len:],
    }


@torch.inference_mode()
@exact_float32()
def try_prefix_sharing(model: HFCausalModel) -> bool:
    """Return True if `prefill_prefix` is exact: a plain KV cache, explicit positions, the same logits."""
    from transformers.cache_utils import DynamicLayer

    prefixes = [[1, 2], [3, 1, 4, 2]]
    rests = [[2, 3], [1, 4], [4, 4]]
    whole = [prefixes[0] + rests[0], prefixes[1] + rests[1], prefixes[1] + rests[2]]
    rows = torch.arange(3, device=model.device)
    last = torch.tensor([len(ids) - 1 for ids in whole], device=model.device)
    try:
        cache_kwargs = prefill_prefix(model, prefixes, num_rows=[1, 2], width=2)
        cache = cache_kwargs.get("cache") or cache_kwargs["past_key_values"]
        if any(type(layer) is not DynamicLayer for layer in cache.layers):
            return False
        shared, _ = model.predict(pad_right(rests, 0, device=model.device), rows, rows * 0 + 1, **cache_kwargs)
    except Exception:  # an architecture without such a cache may raise anything
        return False
    plain, _ = model.predict(pad_right(whole, 0, device=model.device), rows, last)
    return model.are_logits_equal(shared, plain)


@torch.inference_mode()
@exact_float32()
def check_causal(model: HFCausalModel) -> None:
    """Raise UserError if the model's predictions depend on later tokens."""
    idx = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]], device=model.device) % model.vocab_size
    columns = torch.arange(3, device=model.device)
    logits, others = (model.predict(row[None], columns * 0, columns)[0] for row in idx)
    if not model.are_logits_equal(logits, others):
        raise UserError("it is not a causal language model: its predictions depend on later tokens")


def load_hf_model(name: str, runtime: Runtime) -> tuple[HFCausalModel, HFTokenizer]:
    """Load a model and its tokenizer from a folder or by name from the hub, on the runtime's device and in its dtype.

    Raises UserError if it does not exist, cannot be read, or is not a causal language model.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"this needs transformers ({error}): install it with `uv pip install transformers`") from error
    check_name(name)
    protect_hub_token()
    with as_user_error(f"the tokenizer of {name} cannot be loaded"):
        tokenizer = HFTokenizer(transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False))
    with as_user_error(f"{name} cannot be loaded"):
        auto_model: Any = transformers.AutoModelForCausalLM
        inner, loading_info = auto_model.from_pretrained(
            name, dtype=runtime.compute_dtype, trust_remote_code=False, output_loading_info=True
        )
        if missing := sorted(loading_info["missing_keys"]):
            raise UserError(f"{len(missing)} weights of {type(inner).__name__} are missing, such as {missing[0]}")
        inner.to(runtime.device).eval()
        model = HFCausalModel(inner, int(tokenizer.inner.model_max_length))
        if (num_tokens := int(tokenizer.inner.vocab_size)) > model.vocab_size:
            raise UserError(f"its tokenizer has {num_tokens} tokens, the model {model.vocab_size}")
        check_causal(model)
        model.supports_prefix_sharing = try_prefix_sharing(model)
    num_params = sum(param.numel() for param in inner.parameters())
    print0(
        f"Loaded {name}: {type(inner).__name__}, {num_params:,} parameters, a context of {model.context_len:,} tokens"
    )
    return model, tokenizer


def check_name(name: str) -> None:
    """Raise UserError if `name` is neither a folder with a model nor a possible name on the hub."""
    folder = Path(name)
    with as_user_error(f"{name} cannot be read"):
        is_folder = name != "" and folder.is_dir()
        has_config = (folder / "config.json").is_file()
        other = next(
            (path for path in (folder.iterdir() if is_folder else ()) if not path.is_file() and not path.is_dir()), None
        )
    if other:
        raise UserError(f"{other} cannot be read: it is not a file")  # transformers would wait for a pipe
    if is_folder and not has_config:
        raise UserError(f"{folder} does not hold a model of transformers: config.json is missing")
    if not is_folder and (folder.exists() or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name)):
        raise UserError(f"{name!r} is neither a folder nor a name on the Hugging Face hub (OWNER/NAME)")


def generate_hf_samples(
    model: HFCausalModel,
    tokenizer: HFTokenizer,
    prompts: Sequence[str],
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 42,
) -> list[dict[str, Any]]:
    """Return samples as `nanochat.eval.samples.generate_samples` does, generated by transformers."""
    import transformers

    generation_config: Any = transformers.GenerationConfig
    bos = tokenizer.get_bos_token_id()
    model_ends = model.inner.generation_config.eos_token_id
    end_ids = {bos, tokenizer.inner.eos_token_id, *(model_ends if isinstance(model_ends, list) else [model_ends])}
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    # A new configuration drops the folder's recommendations, such as a repetition penalty.
    model.inner.generation_config = generation_config(
        eos_token_id=sorted(end_ids - {None}), pad_token_id=bos, **sampling
    )
    start = [bos] if tokenizer.has_bos else []
    samples = []
    for index, prompt in enumerate(prompts):
        tokens = (start + tokenizer.encode(prompt))[: max(1, model.context_len // 2)]
        idx = torch.tensor([tokens], device=model.device)  # (1, T)
        torch.manual_seed(seed + index)
        max_new_tokens = min(max_tokens, model.context_len - len(tokens))
        with varied_shapes(model.device):
            generated = model.inner.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=max_new_tokens)
        output = generated[0].tolist()
        has_ended = output[-1] in end_ids and len(output) > len(tokens)
        prompt_text = tokenizer.decode(tokens[len(start) :])
        text = tokenizer.decode(output[len(start) : len(output) - has_ended])
        samples.append({"prompt": prompt_text, "text": text[len(prompt_text) :], "whole": has_ended})
    return samples
