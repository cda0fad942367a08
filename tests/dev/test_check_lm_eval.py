"""Our comparison with lm_eval: with a judge made here that does as it does, and with it where it is installed."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat.checkpoint_manager import load_model
from nanochat.common import UserError
from nanochat.eval.core_prompts import encode_example
from nanochat.eval.core_scorer import OptionScore
from nanochat.runtime import Runtime
from nanochat.tokenizer import SPECIAL_TOKENS, SPLIT_PATTERN, Tokenizer
from tests.support.bundles import write_bundle

check: Any = importlib.import_module("dev.check_lm_eval")  # a command, not a package that others import

RANKS = {bytes([b]): b for b in range(256)} | {b"an": 256, b" an": 257}
TOKENIZER = Tokenizer(SPLIT_PATTERN, RANKS, {name: 258 + i for i, name in enumerate(SPECIAL_TOKENS)})
BOS = TOKENIZER.get_bos_token_id()
ROWS = {
    "choice": (
        "multiple_choice",
        [
            {"query": "Red", "choices": ["yes", "not at all"], "gold": 0},
            {"query": "Is it <|bos|>?", "choices": ["yes", "not at all"], "gold": 1},
            {"query": "long " * 90, "choices": ["yes", "not at all"], "gold": 1},
        ],
    ),
    "schema": ("schema", [{"context_options": ["it is", "I was"], "continuation": "it", "gold": 0}]),
    "words": ("language_modeling", [{"context": "one\n", "continuation": "an"}, {"context": "A", "continuation": "n"}]),
}


class PlainJudge:
    """Tokenizes and cuts as lm_eval does, and scores by reading each sequence alone. `error` is added to its sums."""

    error = 0.0

    def __init__(self, _folder: Path, context: int, _batch_size: int) -> None:
        runtime = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 0)
        self.model, self.tokenizer, _ = load_model("base", runtime)
        self.context = context

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        bare = context.rstrip()
        whole = self._encode(context + continuation)
        return whole[: len(self._encode(bare))], whole[len(self._encode(bare)) :]

    def _encode(self, text: str) -> list[int]:
        parts = [self.tokenizer.encode(part) for part in text.split("<|bos|>")]
        return [i for part in parts for i in (self.tokenizer.get_bos_token_id(), *part)]

    def score_texts(self, texts: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
        return self.score_tokens([self.pair(*text) for text in texts])

    @torch.inference_mode()
    def score_tokens(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        found = []
        for head, end in pairs:
            logs = self.model(torch.tensor([[*head, *end][-self.context - 1 : -1]]))[0, -len(end) :].log_softmax(-1)
            total = logs[range(len(end)), end].sum().item() + self.error
            found.append((total, logs.argmax(-1).tolist() == end))
        return found


def config(tmp_path: Path, **settings: Any) -> Any:
    bundle = write_bundle(tmp_path / "bundle", ROWS, num_fewshot=0, delimiter="")
    return check.Config(
        eval_bundle=str(bundle),
        tasks="all",
        random_depth=1,
        max_seq_len=64,
        vocab_size=280,
        max_per_task=-1,
        **settings,
    )


def test_every_difference_is_explained(run_here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check.main(config(tmp_path), PlainJudge)
    assert [v.why for v in found["choice"]] == ["", "special", "cut"]
    assert [v.why for v in found["schema"]] == [""]
    assert found["words"][0].why == "newlines"
    assert all(v.is_same and v.difference < 1e-5 and not v.exact_differ for some in found.values() for v in some)
    out = capsys.readouterr().out
    assert "No difference remains" in out
    assert "words 0: newlines: ours " in out
    assert not any(run_here.iterdir())  # the model with random weights was made elsewhere


@pytest.mark.usefixtures("run_here")
def test_a_judge_that_differs_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PlainJudge, "error", 0.01)
    with pytest.raises(SystemExit) as caught:
        check.main(config(tmp_path), PlainJudge)
    assert caught.value.code == 1
    out = capsys.readouterr().out
    assert "Without an explanation:\nchoice 0: with the same tokens losses differ by" in out
    assert "No difference remains" not in out


def test_why_tokens_differ() -> None:
    """A token over the border: encoded together "A" and "an" stay apart, "a" and "n" do not."""

    def why(head: str, end: str, pair: tuple[list[int], list[int]], context: int = 64) -> str:
        return str(
            check.why_other(encode_example([(head, end)], TOKENIZER, context, 0), [pair], [(head, end)], context)
        )

    a, n, newline = b"an\n"
    assert why("a", " an", ([BOS, a], [257])) == ""
    assert why("a", "n", ([BOS, 256], [])) == "border"
    assert why("a\n", "n", ([BOS, a], [newline, n])) == "newlines"
    assert why("<|bos|>", "n", ([BOS, BOS], [n])) == "special"
    assert why("aaa", "n", ([BOS, a, a, a], [n]), context=4) == ""
    assert why("aaa", "n", ([BOS, a, a, a], [n]), context=3) == "cut"


def test_draws_within_rounding_are_no_difference() -> None:
    def scores(*losses: float) -> list[OptionScore]:
        return [OptionScore(loss, False) for loss in losses]

    assert check.agree("schema", 0, scores(1, 2), scores(1, 2))
    assert not check.agree("schema", 0, scores(1, 1.01), scores(1.01, 1))
    assert check.agree("schema", 0, scores(1, 1 + 3e-5), scores(1 + 3e-5, 1))
    assert not check.agree("language_modeling", 0, [OptionScore(1, True)], scores(1))


def test_impossible_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size is 0"):
        check.Config(batch_size=0)
    with pytest.raises(UserError, match="no task nonsense"):
        check.main(check.Config(eval_bundle=str(write_bundle(tmp_path / "bundle")), tasks="nonsense"))


def test_how_to_install_the_judge() -> None:
    """Where that is said, the extra is named, whose versions are pinned in pyproject.toml, and not the package."""
    root = Path(check.__file__).resolve().parent.parent
    for name in ("README.md", "dev/check_lm_eval.py"):
        text = (root / name).read_text(encoding="utf-8")
        assert "'.[judge]'" in text, name
        assert "lm-eval" not in text, name


@pytest.mark.skipif(not importlib.util.find_spec("lm_eval"), reason="lm_eval is not installed: pip install '.[judge]'")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("run_here")
def test_lm_eval_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = check.main(config(tmp_path))
    assert [v.why for v in found["choice"]] == ["", "special", "cut"]
    assert "No difference remains" in capsys.readouterr().out
