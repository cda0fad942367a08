"""SmolTalk: system messages are added to some conversations, and invalid rows are replaced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.common import UserError
from tasks.smoltalk import SYSTEM_MESSAGE_PROB, SmolTalk


@pytest.mark.shared_data
def test_some_conversations_get_a_system_message(hub_data: Path) -> None:
    task = SmolTalk("test")
    assert len(task) == 600
    table = pq.read_table(next((hub_data / "HuggingFaceTB/smol-smoltalk/data").glob("test-*")))
    num_system = 0
    for conversation, messages in zip(task, table["messages"].to_pylist(), strict=True):
        has_system = conversation["messages"][0]["role"] == "system"
        num_system += has_system
        assert conversation["messages"][has_system:] == messages
    standard_error = (SYSTEM_MESSAGE_PROB * (1 - SYSTEM_MESSAGE_PROB) / 600) ** 0.5
    assert abs(num_system / 600 - SYSTEM_MESSAGE_PROB) < 4 * standard_error
    assert not task.invalid_rows
    assert task[3] == SmolTalk("test", start=3, stop=4)[0]


def test_an_invalid_row_is_replaced_by_the_next_valid_one(write_to_mirror: Callable[..., Path]) -> None:
    path = "HuggingFaceTB/smol-smoltalk/data/test-00000-of-00001.parquet"
    valid = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"},
    ]
    two_questions = valid[:2] + valid[1:]
    no_content = [valid[1], {"role": "assistant"}]
    rows = [{"messages": messages} for messages in ([], valid, two_questions, None, no_content)]
    write_to_mirror(path, rows)
    task = SmolTalk("test")
    assert list(task) == [{"messages": valid}] * 5
    assert task.invalid_rows == {0, 2, 3, 4}
    schema = pa.schema({"messages": pa.list_(pa.null())})
    write_to_mirror(path, pa.Table.from_pylist(rows[:1] * 2, schema))
    with pytest.raises(UserError, match="no valid conversation"):
        SmolTalk("test")[0]
