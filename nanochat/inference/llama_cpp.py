"""Generation by llama.cpp from a GGUF file, with the interface that a chat needs of `nanochat.engine.Engine`.

The package `xllamacpp` (`uv pip install -e '.[llama-cpp]'`) has llama.cpp's server in it. It listens on a free port of
the loopback address, with a random key, and is asked for token ids. Prompts are given as ids too, and the results of
tool calls are computed here, as in the engine.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator
from pathlib import Path
from typing import Any

from nanochat.common import UserError
from nanochat.engine import Column
from nanochat.inference.tool_use import RowState, Tool
from nanochat.layers.sampling_params import SamplingParams
from nanochat.system.environment import num_usable_cores
from nanochat.system.json_text import short_repr
from nanochat.tokenizer import Tokenizer

SECONDS_OF_SILENCE = 300.0  # after which the server is given up
# Its stream of events leaves out the ids of tokens that end within a character, so tokens are asked for in groups. Each
# group reads one token again.
TOKENS_A_REQUEST = 8


class LlamaCppEngine:
    """A GGUF file in llama.cpp's server, which runs in this process until it exits."""

    def __init__(
        self,
        path: Path,
        tokenizer: Tokenizer,
        context_len: int,
        *,
        num_threads: int = 0,
        num_slots: int = 1,
        exact: bool = False,
    ) -> None:
        """Load the file. `tokenizer` and `context_len` are the file's own.

        `num_threads`: 0 = the usable cores. `num_slots`: requests that are decoded together. `exact`: keys and values
        of the cache in float32, as needed to compare logits, and not in float16. Raises UserError if xllamacpp is not
        installed or cannot load the file.
        """
        import requests

        try:
            import xllamacpp
        except ImportError as error:
            raise UserError(
                f"chatting with a GGUF file needs the package xllamacpp ({error}): uv pip install -e '.[llama-cpp]'"
            ) from error
        self.tokenizer = tokenizer
        self.context_len = context_len
        self.tool = Tool(tokenizer)
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = context_len * num_slots
        params.n_parallel = num_slots
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = num_threads or num_usable_cores()
        params.verbosity = -1
        params.warmup = False
        params.port = 0
        params.ui = False
        key = secrets.token_hex()
        params.api_keys = [key]
        if exact:
            params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
            params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        self._session = requests.Session()
        self._session.trust_env = False  # neither a proxy nor ~/.netrc: the server is in this process
        self._session.headers["Authorization"] = f"Bearer {key}"
        try:
            self._server = xllamacpp.Server(params)
        except Exception as error:  # the package raises errors of several kinds
            raise UserError(f"llama.cpp cannot load {path}: {short_repr(error)}") from error

    def close(self) -> None:
        """Stop the server and free the model."""
        self._session.close()
        self._server = None

    @property
    def url(self) -> str:
        """Address of the server, http://127.0.0.1:PORT."""
        return str(self._server.listening_address)

    @property
    def headers(self) -> dict[str, str]:
        """Headers that a request of another client needs."""
        return {"Authorization": str(self._session.headers["Authorization"])}

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send a request to the server and return the response of `requests`. Raises UserError if it is refused."""
        import requests

        try:
            response = self._session.post(self.url + path, json=body, timeout=SECONDS_OF_SILENCE)
        except requests.RequestException as error:
            raise UserError(f"llama.cpp does not answer: {short_repr(error)}") from error
        if not response.ok:
            raise UserError(f"llama.cpp refused the request ({response.status_code}): {response.text[:300]}")
        return response

    def stream(self, tokens: list[int], params: SamplingParams) -> Generator[Column, None, None]:
        """Continue a prompt. Yields `([token], [mask])`, mask 1 = sampled, 0 = forced by the tool.

        Ends with an end token, after `params.max_tokens`, or when the context is full. `params.num_samples` must be 1.
        Raises UserError, before the first step, if the prompt is empty or longer than the context.
        """
        assert params.num_samples == 1, f"{params.num_samples} samples: this engine generates one"
        if not 0 < len(tokens) <= self.context_len:
            raise UserError(f"the prompt has {len(tokens)} tokens: must have 1 to {self.context_len}")
        free = self.context_len - len(tokens)
        row = RowState(self.tool, free if params.max_tokens is None else min(params.max_tokens, free))
        return self._columns(tokens, row, params, params.draw_seed())

    def _columns(
        self, prompt: list[int], row: RowState, params: SamplingParams, seed: int
    ) -> Generator[Column, None, None]:
        while not row.is_done:
            count = min(TOKENS_A_REQUEST, row.num_left)
            sampled = self._sample(prompt + row.tokens, count, params, (seed + len(row.tokens)) % 2**32)
            for token in sampled:
                row.append(token)
                yield [row.tokens[-1]], [row.mask[-1]]
                if row.is_done or row.has_forced_tokens:
                    break
            while row.has_forced_tokens and not row.is_done:
                row.append(-1)  # a forced token is taken instead
                yield [row.tokens[-1]], [row.mask[-1]]
            if not sampled:  # the server finds the context full
                return

    def _sample(self, tokens: list[int], count: int, params: SamplingParams, seed: int) -> list[int]:
        """Return up to `count` sampled ids, fewer after a token that ends an answer or a tool call."""
        body = {
            "prompt": tokens,
            "n_predict": count,
            "return_tokens": True,
            "samplers": ["top_k", "temperature", "top_p"],
            "temperature": params.temperature,
            "top_k": params.top_k or 0,
            "top_p": 1.0 if params.top_p is None else params.top_p,
            "seed": seed,
        }
        return [int(token) for token in self.post("/completion", body).json()["tokens"]]
