"""An answer token by token: what the model draws, and what becomes of it."""

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


def ids(text: str) -> list[int]:
    """`[name]` is a special token."""
    found: list[int] = []
    for piece in text.replace("]", "[").split("["):
        found += [NAMES[piece]] if piece in NAMES else TOKENIZER.encode(piece)
    return found


def written(draws: str, room: int = 1000) -> tuple[str, str, RowState]:
    """What is written when the model wants `draws`, with `.` for what it says while the tool speaks, and the mask."""
    writer = RowState(TOOL, room)
    for token in ids(draws):
        writer.append(token)
        if writer.is_done:
            break
    text = "".join(
        f"[{SPECIAL_TOKENS[i - 257].strip('<|>')}]" if i >= 257 else TOKENIZER.decode([i]) for i in writer.tokens
    )
    return text, "".join(map(str, writer.mask)), writer


@pytest.mark.parametrize(
    ("draws", "text", "mask"),
    [
        ("hi[assistant_end]", "hi[assistant_end]", "111"),
        (
            "a[python_start]6*7[python_end]....b",
            "a[python_start]6*7[python_end][output_start]42[output_end]b",
            "11111100001",
        ),
        # 12 is one token, which the tool writes as such
        (
            "[python_start]6+6[python_end]...b",
            "[python_start]6+6[python_end][output_start]12[output_end]b",
            "111110001",
        ),
        # what the model would say while the tool speaks is lost: an end, another call
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
        # no result: the model goes on
        ("[python_start]1/0[python_end]b", "[python_start]1/0[python_end]b", "111111"),
        ("[python_start][python_end]b", "[python_start][python_end]b", "111"),
        # an end without a beginning, and one that was used already
        ("1[python_end]b", "1[python_end]b", "111"),
        (
            "[python_start]1[python_end]...[python_end]b",
            "[python_start]1[python_end][output_start]1[output_end][python_end]b",
            "11100011",
        ),
        ("[python_start]1/0[python_end]2[python_end]b", "[python_start]1/0[python_end]2[python_end]b", "11111111"),
        (
            "[python_start]'x[python_end]'.count('x')[python_end]b",  # from the first start on it would be a call: of 1
            "[python_start]'x[python_end]'.count('x')[python_end]b",
            "1" * 18,
        ),
        # a call within a call: the inner one counts
        (
            "[python_start]1+[python_start]2[python_end]...b",
            "[python_start]1+[python_start]2[python_end][output_start]2[output_end]b",
            "1111110001",
        ),
        # other special tokens in a call are no expression; an end ends
        ("[python_start]1[output_start]2[python_end]b", "[python_start]1[output_start]2[python_end]b", "111111"),
        ("[python_start]1[assistant_end]", "[python_start]1[assistant_end]", "111"),
        ("[python_start]1[bos]", "[python_start]1[bos]", "111"),
    ],
)
def test_what_is_written(draws: str, text: str, mask: str) -> None:
    found, found_mask, writer = written(draws)
    assert (found, found_mask) == (text, mask)
    assert writer.is_done == writer.has_ended == (writer.tokens[-1] in TOOL.end_ids and writer.mask[-1] == 1)


@pytest.mark.parametrize("room", range(1, 9))
def test_the_tools_output_is_cut_where_there_is_no_more_room(room: int) -> None:
    _, mask, writer = written("[python_start]9*9*9[python_end]" + "." * 20, room=7 + room)
    assert mask == ("1" * 7 + "0" * 5 + "1" * 9)[: 7 + room]
    assert (
        writer.tokens
        == (ids("[python_start]9*9*9[python_end][output_start]729[output_end]") + ids("." * 9))[: 7 + room]
    )
    assert writer.is_done
    assert not writer.has_ended


def test_no_room_is_done() -> None:
    assert RowState(TOOL, 0).is_done
    assert not RowState(TOOL, 1).is_done


def test_the_tool_cannot_end_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool_use, "calculate", lambda _: "<|assistant_end|><|bos|>")
    forced = TOOL.output(ids("1"))
    assert TOKENIZER.decode(forced) == "<|output_start|><|assistant_end|><|bos|><|output_end|>"
    assert not TOOL.end_ids & set(forced)
    monkeypatch.setattr(tool_use, "calculate", lambda _: "")
    assert TOOL.output(ids("1")) == [NAMES["output_start"], NAMES["output_end"]]
