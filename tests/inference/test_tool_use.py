"""A completion token by token: sampled tokens, tool calls, forced results, and the length limit."""

from __future__ import annotations

import pytest

from nanochat.inference import tool_use
from nanochat.inference.tool_use import RowState, Tool
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer

TOKENIZER = Tokenizer(
    SPLIT_PATTERN,
    {**{bytes([i]): i for i in range(256)}, b"12": 256},
    {name: 257 + i for i, name in enumerate(SPECIAL_TOKENS)},
)
TOOL = Tool(TOKENIZER)
NAMES = {name.strip("<|>"): TOKENIZER.encode_special(name) for name in SPECIAL_TOKENS}


def to_ids(text: str) -> list[int]:
    """Encode a text in which `[name]` is a special token."""
    ids: list[int] = []
    for part in text.replace("]", "[").split("["):
        ids += [NAMES[part]] if part in NAMES else TOKENIZER.encode(part)
    return ids


def complete(sampled: str, max_tokens: int = 1000) -> tuple[str, str, RowState]:
    """Append the sampled tokens until the row is done. Returns its text, its mask, and the row.

    In `sampled`, `.` stands for a token that is discarded, because the tool forces another one.
    """
    row = RowState(TOOL, max_tokens)
    for token in to_ids(sampled):
        row.append(token)
        if row.is_done:
            break
    text = "".join(
        f"[{SPECIAL_TOKENS[i - 257].strip('<|>')}]" if i >= 257 else TOKENIZER.decode([i]) for i in row.tokens
    )
    return text, "".join(map(str, row.mask)), row


@pytest.mark.parametrize(
    ("sampled", "text", "mask"),
    [
        ("hi[assistant_end]", "hi[assistant_end]", "111"),
        (
            "a[python_start]6*7[python_end]....b",
            "a[python_start]6*7[python_end][output_start]42[output_end]b",
            "11111100001",
        ),
        # 12 is one token, also in the result
        (
            "[python_start]6+6[python_end]...b",
            "[python_start]6+6[python_end][output_start]12[output_end]b",
            "111110001",
        ),
        # tokens sampled while the tool forces its own are discarded: an end, another call
        (
            "[python_start]1[python_end][assistant_end][python_end][bos]x",
            "[python_start]1[python_end][output_start]1[output_end]x",
            "1110001",
        ),
        # two calls
        (
            "[python_start]1[python_end]...[python_start]2[python_end]...",
            "[python_start]1[python_end][output_start]1[output_end][python_start]2[python_end][output_start]2[output_end]",
            "111000111000",
        ),
        # no result: nothing is forced
        ("[python_start]1/0[python_end]b", "[python_start]1/0[python_end]b", "111111"),
        ("[python_start][python_end]b", "[python_start][python_end]b", "111"),
        # an end of a call without a start, and with a start that was used already
        ("1[python_end]b", "1[python_end]b", "111"),
        (
            "[python_start]1[python_end]...[python_end]b",
            "[python_start]1[python_end][output_start]1[output_end][python_end]b",
            "11100011",
        ),
        ("[python_start]1/0[python_end]2[python_end]b", "[python_start]1/0[python_end]2[python_end]b", "11111111"),
        (
            "[python_start]'x[python_end]'.count('x')[python_end]b",  # an expression from the first start on
            "[python_start]'x[python_end]'.count('x')[python_end]b",
            "1" * 18,
        ),
        # a call within a call: the inner one is evaluated
        (
            "[python_start]1+[python_start]2[python_end]...b",
            "[python_start]1+[python_start]2[python_end][output_start]2[output_end]b",
            "1111110001",
        ),
        # a call with other special tokens is no expression; an end token ends the completion
        ("[python_start]1[output_start]2[python_end]b", "[python_start]1[output_start]2[python_end]b", "111111"),
        ("[python_start]1[assistant_end]", "[python_start]1[assistant_end]", "111"),
        ("[python_start]1[bos]", "[python_start]1[bos]", "111"),
    ],
)
def test_a_completion_with_tool_calls(sampled: str, text: str, mask: str) -> None:
    actual_text, actual_mask, row = complete(sampled)
    assert (actual_text, actual_mask) == (text, mask)
    assert row.is_done == row.has_ended == (row.tokens[-1] in TOOL.end_ids and row.mask[-1] == 1)


@pytest.mark.parametrize("max_tokens", range(8, 16))
def test_a_result_is_cut_at_the_length_limit(max_tokens: int) -> None:
    _, mask, row = complete("[python_start]9*9*9[python_end]" + "." * 20, max_tokens)
    assert mask == ("1" * 7 + "0" * 5 + "1" * 9)[:max_tokens]
    whole = to_ids("[python_start]9*9*9[python_end][output_start]729[output_end]") + to_ids("." * 9)
    assert row.tokens == whole[:max_tokens]
    assert row.is_done
    assert not row.has_ended


def test_a_row_without_tokens_to_generate_is_done() -> None:
    assert RowState(TOOL, 0).is_done
    assert not RowState(TOOL, 1).is_done


def test_a_result_has_no_special_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool_use, "calculate", lambda _: "<|assistant_end|><|bos|>")
    forced = TOOL.output(to_ids("1"))
    assert TOKENIZER.decode(forced) == "<|output_start|><|assistant_end|><|bos|><|output_end|>"
    assert not TOOL.end_ids & set(forced)
    monkeypatch.setattr(tool_use, "calculate", lambda _: "")
    assert TOOL.output(to_ids("1")) == [NAMES["output_start"], NAMES["output_end"]]
