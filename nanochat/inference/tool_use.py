"""Tool use during generation: calculator calls are detected token by token, and their results forced into the text.

sampled  <|python_start|> 6 * 7 <|python_end|>                                     mask 1
forced                                          <|output_start|> 42 <|output_end|>  mask 0

The delimiters of a call are named python, but only expressions of the calculator are evaluated; no program runs.
"""

from __future__ import annotations

from nanochat.sandbox.calculator import calculate
from nanochat.tokenizer import Tokenizer


class Tool:
    """The calculator, from token ids to token ids, and the special tokens that delimit a call and end a completion."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.first_special = min(tokenizer.special_tokens.values())
        self.end_ids = frozenset({tokenizer.encode_special("<|assistant_end|>"), tokenizer.encode_special("<|bos|>")})
        self.call_start = tokenizer.encode_special("<|python_start|>")
        self.call_end = tokenizer.encode_special("<|python_end|>")
        self._output_start = tokenizer.encode_special("<|output_start|>")
        self._output_end = tokenizer.encode_special("<|output_end|>")

    def output(self, call: list[int]) -> list[int]:
        """Return the tokens to force after a call, given the ids between its delimiters; [] if it has no result.

        The result is encoded as ordinary text, so it cannot contain a special token such as an end token.
        """
        result = calculate(self._tokenizer.decode(call))
        if result is None:
            return []
        return [self._output_start, *self._tokenizer.encode(result), self._output_end]


class RowState:
    """State of one row of a `DecodeBatch`, a completion in progress.

    `tokens`: the tokens so far. `mask`: 1 for a sampled token, 0 for one that the tool forced.
    `has_ended`: the model sampled an end token, which is the last of `tokens`. `is_done`: ended or `max_tokens` long.

    A call runs from the latest `<|python_start|>` since the previous call to the next `<|python_end|>`. An end without
    a start calls nothing, and a start in the prompt does not count.
    """

    __slots__ = ("_call_start", "_forced_tokens", "_max_tokens", "_tool", "has_ended", "is_done", "mask", "tokens")

    def __init__(self, tool: Tool, max_tokens: int) -> None:
        """`max_tokens`: length limit, forced tokens included; a tool result that exceeds it is cut."""
        self.tokens: list[int] = []
        self.mask: list[int] = []
        self.has_ended = False
        self.is_done = max_tokens <= 0
        self._tool = tool
        self._max_tokens = max_tokens
        self._call_start: int | None = None  # index in `tokens` of the open call's first token
        self._forced_tokens: list[int] = []  # tool output not yet appended, in reverse order

    def append(self, sampled: int) -> None:
        """Append the next forced token if there is one (`sampled` is then discarded), else `sampled`."""
        if self._forced_tokens:
            self.tokens.append(self._forced_tokens.pop())
            self.mask.append(0)
        else:
            self.tokens.append(sampled)
            self.mask.append(1)
            if sampled >= self._tool.first_special:
                self._handle_special(sampled)
        self.is_done = self.has_ended or len(self.tokens) == self._max_tokens

    @property
    def has_forced_tokens(self) -> bool:
        """True if the next token to append is forced, whatever is sampled."""
        return bool(self._forced_tokens)

    @property
    def num_left(self) -> int:
        """Number of tokens until the length limit."""
        return self._max_tokens - len(self.tokens)

    def _handle_special(self, token: int) -> None:
        tool = self._tool
        if token in tool.end_ids:
            self.has_ended = True
        elif token == tool.call_start:
            self._call_start = len(self.tokens)
        elif token == tool.call_end and self._call_start is not None:
            self._forced_tokens = tool.output(self.tokens[self._call_start : -1])[::-1]
            self._call_start = None
