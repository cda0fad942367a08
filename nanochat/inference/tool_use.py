"""An answer as it is written: the model's tokens, and between them what its calculator says."""

from __future__ import annotations

from nanochat.execution import calculate
from nanochat.tokenizer import Tokenizer


class Tool:
    """The ids around a call and its result, and the call itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        special = tokenizer.encode_special
        self._tokenizer, self.first_special = tokenizer, min(tokenizer.special_tokens.values())
        self.end_ids = frozenset({special("<|assistant_end|>"), special("<|bos|>")})
        self.call_start, self.call_end = special("<|python_start|>"), special("<|python_end|>")
        self._output_start, self._output_end = special("<|output_start|>"), special("<|output_end|>")

    def output(self, call: list[int]) -> list[int]:
        """What follows a call, given its ids without the tokens around it: nothing, if it has no result.

        A result is ordinary text, whatever it says: there is no end token in it.
        """
        result = calculate(self._tokenizer.decode(call))
        if result is None:
            return []
        return [self._output_start, *self._tokenizer.encode(result), self._output_end]


class RowState:
    """One answer being written: `tokens` and `mask` (1 = the model chose it) so far, and whether it is `done`.

    A call is what stands between `<|python_end|>` and the last `<|python_start|>` before it in this answer, which no
    other call has used; without one, `<|python_end|>` calls nothing. What a prompt leaves open is no call.
    """

    __slots__ = ("_call", "_room", "_tool", "_waiting", "done", "ended", "mask", "tokens")

    def __init__(self, tool: Tool, room: int) -> None:
        """`room`: tokens that it may have at most, the tool's included, whose output is cut there."""
        self.tokens: list[int] = []
        self.mask: list[int] = []
        self.ended, self.done = False, room <= 0
        self._tool, self._room = tool, room
        self._call: int | None = None  # where the open call begins
        self._waiting: list[int] = []  # output that is not written yet, the next token last

    def write(self, drawn: int) -> None:
        """Add a token: the next of the tool's, if it has any to say; else `drawn`, the model's."""
        token, mask = (self._waiting.pop(), 0) if self._waiting else (drawn, 1)
        self.tokens.append(token)
        self.mask.append(mask)
        if mask and token >= self._tool.first_special:
            self._read(token)
        self.done = self.ended or len(self.tokens) == self._room

    def _read(self, token: int) -> None:
        tool = self._tool
        if token in tool.end_ids:
            self.ended = True
        elif token == tool.call_start:
            self._call = len(self.tokens)
        elif token == tool.call_end and self._call is not None:
            self._waiting = tool.output(self.tokens[self._call : -1])[::-1]
            self._call = None
