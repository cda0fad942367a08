"""Any causal language model of transformers, from a folder or by its name on the hub, as our evaluation needs it.

Weights that the folder lacks, code of its own, and a model that sees what comes after a token are refused: the first
would be made up, the second would run, and the third knows the answers.

Letters in shape comments: E examples, P tokens that an example's rows share, B rows, T tokens after these, N tokens to
be predicted, C width, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanochat.common import UserError, as_user_error, print0
from nanochat.layers.padding import pad_right
from nanochat.runtime import Runtime

MAX_LOGITS = 1 << 28  # logits at a time: 1 GiB in float32
NO_LIMIT = 2048  # tokens of context for a model that has no limit of its own
PLAIN = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}  # a text and nothing else
_LIMITS = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len", "seq_length")


class HFTokenizer:
    """Another model's tokenizer, with nothing put around a text: a special token's name in it is text.

    A document begins with the token that the tokenizer itself names as the beginning (`bos_token`), also where it would
    not put it there by itself, as GPT-2's: its training text stood so. Where it names none, `has_bos` is False: prompts
    begin with nothing, and documents are parted by the end token (`eos_token`).
    """

    def __init__(self, inner: Any) -> None:
        """`inner`: a tokenizer of transformers. Raises UserError if it is empty, or names neither beginning nor end."""
        self.inner = inner
        self.has_bos = inner.bos_token_id is not None
        bos = inner.bos_token_id if self.has_bos else inner.eos_token_id
        if bos is None:
            raise UserError("it has neither a bos_token nor an eos_token: nothing can begin a document")
        self._bos = int(bos)
        first, second, both = self._ids(["a", "x", "a x"])
        if not both:  # what transformers makes of a folder without its files
            raise UserError("it has no tokens: are its files in the folder?")
        self.adds_prefix_space = first + second == both  # before a text that begins with none, as SentencePiece's do

    def _ids(self, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = self.inner(texts, **PLAIN)["input_ids"]
        return found

    @overload
    def encode(self, text: str) -> list[int]: ...
    @overload
    def encode(self, text: list[str]) -> list[list[int]]: ...
    def encode(self, text: str | list[str]) -> list[int] | list[list[int]]:
        """The ids of one text, or of each in a list.

        A space that the tokenizer puts before a text by itself is taken for the one that the text begins with.
        """
        texts = [text] if isinstance(text, str) else text
        rows = self._ids([t.removeprefix(" ") if self.adds_prefix_space else t for t in texts]) if texts else []
        return rows[0] if isinstance(text, str) else rows

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens by their names."""
        text: str = self.inner.decode(ids, clean_up_tokenization_spaces=False)
        return text

    def get_bos_token_id(self) -> int:
        """Id of the token that begins a document."""
        return self._bos

    def num_bytes(self, text: str, count: int) -> int:
        """Bytes of the text that its first `count` ids stand for."""
        given = text.removeprefix(" ") if self.adds_prefix_space else text
        ids, size = self._ids([given])[0], len(text.encode("utf-8"))
        names = list(map(len, self.inner.convert_ids_to_tokens(ids)))
        if count == 0 or sum(names) == size:  # a letter for each byte
            return sum(names[:count])
        if not self.inner.is_fast:  # what they decode to, which a lossy tokenizer may spell otherwise
            return len(self.decode(ids[:count]).encode("utf-8"))
        ends = [end for _, end in self.inner(given, return_offsets_mapping=True, **PLAIN)["offset_mapping"][:count]]
        return size - len(given[max(ends) :].encode("utf-8"))


class CausalModel(nn.Module):
    """A causal model of transformers. The head works in float32, and only where a token is to be predicted."""

    def __init__(self, inner: Any, tokenizer_limit: int = NO_LIMIT) -> None:
        """`tokenizer_limit`: the context that its tokenizer claims, for a model that names none."""
        super().__init__()
        self.inner = inner
        config = inner.config.get_text_config()
        limits = [getattr(config, name, None) for name in _LIMITS]
        fallback = tokenizer_limit if tokenizer_limit < 1 << 20 else NO_LIMIT
        self.context = next((limit for limit in limits if isinstance(limit, int) and limit > 0), fallback)
        self.vocab_size = int(inner.get_input_embeddings().num_embeddings)
        head = inner.get_output_embeddings()
        self.shares = False  # until it has been tried
        self.head = head if isinstance(head, nn.Linear) else None
        if self.head is not None and self.head.weight.dtype != torch.float32:  # its own copy, if the input shares it
            for name, value in list(self.head.named_parameters()):
                setattr(self.head, name, nn.Parameter(value.float(), requires_grad=False))
            self.head.register_forward_pre_hook(lambda _, given: (given[0].float(), *given[1:]))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.inner.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    def is_equal(self, logits: Tensor, others: Tensor) -> bool:
        """Whether logits differ by no more than rounding does."""
        tolerance = 1e-4 if self.inner.dtype == torch.float32 else 0.03
        return bool((logits - others).abs().max() <= tolerance * others.std().clamp(min=1e-6))

    def predict(self, ids: Tensor, rows: Tensor, columns: Tensor, **options: Any) -> tuple[Tensor, Any]:
        """Logits (N, V) in float32 of what follows these places (N,), (N,) of ids (B, T); and the model's output."""
        chosen = False

        def choose(_head: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
            nonlocal chosen
            chosen = True
            return given[0][rows, columns][None], *given[1:]  # (B, T, C) -> (1, N, C)

        hook = self.head.register_forward_pre_hook(choose, prepend=True) if self.head is not None else None
        try:
            found = self.inner(input_ids=ids, **{"use_cache": False, **options})
        finally:
            if hook is not None:
                hook.remove()
        logits = found.logits[0] if chosen else found.logits[rows, columns]  # some models have no such head
        return logits[:, : self.vocab_size].float(), found

    def forward(self, idx: Tensor, targets: Tensor, loss_reduction: str = "none") -> Tensor:
        """Cross-entropy in nats (B, T) of `targets` (B, T), 0 where they are -1: as our model's."""
        assert loss_reduction == "none", f"loss_reduction {loss_reduction!r}: only none is needed"
        losses = torch.zeros(targets.shape, device=targets.device)
        step = max(1, MAX_LOGITS // (targets.size(1) * self.vocab_size))
        for first in range(0, len(idx), step):
            wanted = targets[first : first + step]
            rows, columns = (wanted != -1).nonzero(as_tuple=True)
            if len(rows):
                logits, _ = self.predict(idx[first : first + step], rows, columns)
                losses[first + rows, columns] = F.cross_entropy(logits, wanted[rows, columns], reduction="none")
        return losses


def prefill_prefix(
    model: CausalModel, begins: Sequence[list[int]], counts: Sequence[int], width: int
) -> dict[str, Any]:
    """Read how each example begins; gives what `predict` needs to go on from there with (B, `width`) ids.

    `counts`: rows of each example, one after the other. Only for a model that `shares`. The beginnings are padded on
    the left: a window that counts columns, as GPT-Neo's, must not count padding between a beginning and what follows.
    """
    device, longest = model.device, max(map(len, begins))
    ids = torch.tensor([[0] * (longest - len(begin)) + begin for begin in begins], device=device)  # (E, P)
    columns = torch.arange(longest + width, device=device)
    places = columns - torch.tensor([[longest - len(begin)] for begin in begins], device=device)  # (E, P + T)
    mask, first = (places >= 0).long(), torch.zeros(1, dtype=torch.int64, device=device)
    known = {"attention_mask": mask[:, :longest], "position_ids": places[:, :longest].clamp(min=0)}
    _, found = model.predict(ids, first, first, use_cache=True, **known)
    cache = found.past_key_values
    examples = torch.arange(len(begins), device=device).repeat_interleave(torch.tensor(counts, device=device))  # (B,)
    cache.reorder_cache(examples)
    after = {"attention_mask": mask[examples], "position_ids": places[examples, longest:]}
    return {"past_key_values": cache, "use_cache": True, **after}


@torch.inference_mode()
def can_share(model: CausalModel) -> bool:
    """Return True if `prefill_prefix` is exact: a plain KV cache, explicit positions, the same logits."""
    from transformers.cache_utils import DynamicLayer

    begins, rests = [[1, 2], [3, 1, 4, 2]], [[2, 3], [1, 4], [4, 4]]
    counts, rows = [1, 2], torch.arange(3, device=model.device)
    whole = [[*begins[0], *rests[0]], [*begins[1], *rests[1]], [*begins[1], *rests[2]]]
    last = torch.tensor([len(ids) - 1 for ids in whole], device=model.device)
    try:
        known = prefill_prefix(model, begins, counts, 2)
        if any(type(layer) is not DynamicLayer for layer in known["past_key_values"].layers):
            return False
        found, _ = model.predict(pad_right(rests, 0, device=model.device), rows, rows * 0 + 1, **known)
    except Exception:  # whatever an architecture that does not do this may raise
        return False
    plain, _ = model.predict(pad_right(whole, 0, device=model.device), rows, last)
    return model.is_equal(found, plain)


@torch.inference_mode()
def check_causal(model: CausalModel) -> None:
    """Raise UserError if a model's predictions depend on what comes after."""
    ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]], device=model.device) % model.vocab_size
    places = torch.arange(3, device=model.device)
    one, other = (model.predict(row[None], places * 0, places)[0] for row in ids)
    if not model.is_equal(one, other):
        raise UserError("it is no causal language model: what it predicts depends on what comes after")


def load_causal(name: str, runtime: Runtime) -> tuple[CausalModel, HFTokenizer]:
    """A model and its tokenizer from a folder, or by name from the hub, on the runtime's device and in its dtype.

    Raises UserError for what is not there, cannot be read, or is no causal language model.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(f"this needs transformers ({error}): install it with `uv pip install transformers`") from error
    check_name(name)
    with as_user_error(f"the tokenizer of {name} cannot be loaded"):
        tokenizer = HFTokenizer(transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False))
    with as_user_error(f"{name} cannot be loaded"):
        kind: Any = transformers.AutoModelForCausalLM
        inner, facts = kind.from_pretrained(
            name, dtype=runtime.compute_dtype, trust_remote_code=False, output_loading_info=True
        )
        if missing := sorted(facts["missing_keys"]):
            raise UserError(f"{len(missing)} weights of {type(inner).__name__} are missing, for one {missing[0]}")
        inner.to(runtime.device).eval()
        model = CausalModel(inner, int(tokenizer.inner.model_max_length))
        if (size := int(tokenizer.inner.vocab_size)) > model.vocab_size:
            raise UserError(f"its tokenizer has {size} tokens, the model {model.vocab_size}")
        check_causal(model)
        model.shares = can_share(model)
    parameters = sum(parameter.numel() for parameter in inner.parameters())
    print0(f"Loaded {name}: {type(inner).__name__}, {parameters:,} parameters, a context of {model.context:,} tokens")
    return model, tokenizer


def check_name(name: str) -> None:
    """Raise UserError for what is neither a folder with a model nor a possible name on the hub."""
    folder = Path(name)
    with as_user_error(f"{name} cannot be read"):
        is_folder, has_config = name != "" and folder.is_dir(), (folder / "config.json").is_file()
    if is_folder and not has_config:
        raise UserError(f"{folder} holds no model of transformers: config.json is missing")
    if not is_folder and (folder.exists() or not re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", name)):
        raise UserError(f"{name!r} is neither a folder nor a name on the Hugging Face hub (OWNER/NAME)")


def write_samples(
    model: CausalModel,
    tokenizer: HFTokenizer,
    prompts: Sequence[str],
    max_tokens: int,
    temperature: float = 0.0,
    seed: int = 42,
) -> list[dict[str, Any]]:
    """What `nanochat.eval.samples.write_samples` does, by transformers' own generation."""
    import transformers

    configuration: Any = transformers.GenerationConfig
    own = model.inner.generation_config.eos_token_id
    ends = {tokenizer.get_bos_token_id(), tokenizer.inner.eos_token_id, *(own if isinstance(own, list) else [own])}
    bos = tokenizer.get_bos_token_id()
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {}
    model.inner.generation_config = configuration(  # nothing that the folder recommends, such as a penalty
        eos_token_id=sorted(ends - {None}), pad_token_id=bos, **sampling
    )
    samples = []
    for index, prompt in enumerate(prompts):
        start = [bos] if tokenizer.has_bos else []
        tokens = (start + tokenizer.encode(prompt))[: max(1, model.context // 2)]
        ids = torch.tensor([tokens], device=model.device)
        torch.manual_seed(seed + index)
        most = min(max_tokens, model.context - len(tokens))
        given = model.inner.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=most)[0].tolist()
        whole = given[-1] in ends and len(given) > len(tokens)
        used, text = (tokenizer.decode(found[len(start) :]) for found in (tokens, given[: len(given) - whole]))
        samples.append({"prompt": used, "text": text[len(used) :], "whole": whole})
    return samples
