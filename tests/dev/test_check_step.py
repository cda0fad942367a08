"""dev.check_step: the price of a dtype, against bits per byte measured by the evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dev import check_step
from nanochat.common import UserError
from nanochat.dataloader import split_into_rows
from nanochat.inference.native_step import is_available
from nanochat.loss_eval import bits_per_byte
from nanochat.runtime import Runtime
from tests.support.exports import TOKENIZER, loud_model, save
from tests.support.gguf import SHAPES

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not is_available(), reason="the Rust extension is not built"),
]
TEXT = "Once upon a time there was a fox.\n\n\n\nIt lived in a wood, and it was happy.\n"


def test_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path / "base"))
    monkeypatch.setattr(check_step, "fastest_cpu", lambda _dtype: None)  # AMX is tried in a child process
    model = loud_model(SHAPES["plain"])
    save(model, tokenizer=TOKENIZER)
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    prices = check_step.main(check_step.Config(text=text))
    assert list(prices) == ["torch, float32", "float32", "bfloat16", "int8"]

    paragraphs = [part for part in TEXT.split("\n\n") if part]
    ids = [id for part in paragraphs for id in TOKENIZER.encode(part, prepend=TOKENIZER.get_bos_token_id())]
    rows = split_into_rows(torch.tensor(ids).numpy(), model.config.sequence_len)
    runtime = Runtime.without_setup(torch.device("cpu"), compute_dtype=torch.float32)
    expected = bits_per_byte(model, rows, torch.tensor(TOKENIZER.token_bytes()), 1, runtime)
    assert prices["torch, float32"].bits_per_byte == pytest.approx(expected, rel=1e-6)
    assert prices["float32"].bits_per_byte == pytest.approx(expected, rel=1e-5)
    assert prices["float32"].agreement > 0.9
    for name in ("bfloat16", "int8"):
        assert prices[name].bits_per_byte == pytest.approx(expected, rel=0.1)
        assert prices[name].bits_per_byte != prices["float32"].bits_per_byte
    assert "\nint8 " in capsys.readouterr().out


def test_an_empty_text() -> None:
    with pytest.raises(UserError, match="empty"):
        check_step.measure({}, torch.full((1, 9), -1), torch.ones(9, dtype=torch.int64))
