"""The comparison with lm_eval: with a judge that imitates it, and with lm_eval itself if it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
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

check: Any = importlib.import_module("dev.check_lm_eval")  # dev/ is not a package

RANKS = {bytes([b]): b for b in range(256)} | {b"an": 256, b" an": 257}
TOKENIZER = Tokenizer(SPLIT_PATTERN, RANKS, {name: 258 + i for i, name in enumerate(SPECIAL_TOKENS)})
BOS = TOKENIZER.get_bos_token_id()
TASKS = {
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
    """A judge that encodes and cuts as lm_eval does, and scores each sequence alone. `error` is added to its sums."""

    error = 0.0

    def __init__(self, _folder: Path, context_len: int, _batch_size: int) -> None:
        runtime = Runtime(0, 0, 1, torch.device("cpu"), torch.float32, 0)
        self.model, self.tokenizer, _ = load_model("base", runtime)
        self.context_len = context_len

    def encode_pair(self, context: str, continuation: str) -> Any:
        whole = self._encode(context + continuation)
        border = len(self._encode(context.rstrip()))
        return check.TokenPair(whole[:border], whole[border:])

    def _encode(self, text: str) -> list[int]:
        parts = [self.tokenizer.encode(part) for part in text.split("<|bos|>")]
        return [i for part in parts for i in (self.tokenizer.get_bos_token_id(), *part)]

    def score_texts(self, texts: Sequence[tuple[str, str]]) -> list[Any]:
        return self.score_tokens([self.encode_pair(*text) for text in texts])

    @torch.inference_mode()
    def score_tokens(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Any]:
        scores = []
        for context, continuation in pairs:
            read = [*context, *continuation][-self.context_len - 1 : -1]
            logs = self.model(torch.tensor([read]))[0, -len(continuation) :].log_softmax(-1)  # (N, V)
            total = logs[range(len(continuation)), continuation].sum().item() + self.error
            scores.append(check.LogLikelihood(total, logs.argmax(-1).tolist() == continuation))
        return scores


def config(tmp_path: Path, **settings: Any) -> Any:
    bundle = write_bundle(tmp_path / "bundle", TASKS, num_fewshot=0, delimiter="")
    return check.Config(
        eval_bundle=str(bundle),
        tasks="all",
        random_depth=1,
        max_seq_len=64,
        vocab_size=280,
        max_per_task=-1,
        **settings,
    )


@pytest.mark.slow
def test_every_difference_is_explained(run_here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparisons = check.main(config(tmp_path), PlainJudge)
    assert [comparison.reason for comparison in comparisons["choice"]] == ["", "special", "cut"]
    assert [comparison.reason for comparison in comparisons["schema"]] == [""]
    assert comparisons["words"][0].reason == "newlines"
    for comparison in itertools.chain(*comparisons.values()):
        assert comparison.is_same_decision
        assert comparison.loss_difference < 1e-5
        assert not comparison.num_different_greedy
    out = capsys.readouterr().out
    assert "No difference remains" in out
    assert "words 0: newlines: nanochat " in out
    assert not any(run_here.iterdir())  # the model with random weights is in a temporary folder


@pytest.mark.usefixtures("run_here")
def test_a_judge_that_differs_fails_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(PlainJudge, "error", 0.01)
    with pytest.raises(SystemExit) as caught:
        check.main(config(tmp_path), PlainJudge)
    assert caught.value.code == 1
    out = capsys.readouterr().out
    assert "Without an explanation:\nchoice 0: with the same tokens losses differ by" in out
    assert "No difference remains" not in out


def test_reasons_of_other_tokens() -> None:
    """A token spans the border of "a" and "n", but not that of "a" and " an", when they are encoded together."""

    def reason(context: str, continuation: str, pair: tuple[list[int], list[int]], context_len: int = 64) -> str:
        texts = [(context, continuation)]
        example = encode_example(texts, TOKENIZER, context_len, 0)
        return str(check.difference_reason(example, [check.TokenPair(*pair)], texts, context_len))

    a, n, newline = b"an\n"
    assert reason("a", " an", ([BOS, a], [257])) == ""
    assert reason("a", "n", ([BOS, 256], [])) == "border"
    assert reason("a\n", "n", ([BOS, a], [newline, n])) == "newlines"
    assert reason("<|bos|>", "n", ([BOS, BOS], [n])) == "special"
    assert reason("aaa", "n", ([BOS, a, a, a], [n]), context_len=4) == ""
    assert reason("aaa", "n", ([BOS, a, a, a], [n]), context_len=3) == "cut"


def test_ties_within_rounding_are_no_difference() -> None:
    def scores(*losses: float) -> list[OptionScore]:
        return [OptionScore(loss, False) for loss in losses]

    assert check.is_same_decision("schema", 0, scores(1, 2), scores(1, 2))
    assert not check.is_same_decision("schema", 0, scores(1, 1.01), scores(1.01, 1))
    assert check.is_same_decision("schema", 0, scores(1, 1 + 3e-5), scores(1 + 3e-5, 1))
    assert not check.is_same_decision("language_modeling", 0, [OptionScore(1, True)], scores(1))


def test_impossible_settings(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="batch_size is 0"):
        check.Config(batch_size=0)
    with pytest.raises(UserError, match="no task nonsense"):
        check.main(check.Config(eval_bundle=str(write_bundle(tmp_path / "bundle")), tasks="nonsense"))


def test_how_to_install_the_judge() -> None:
    """Texts name the extra, whose versions pyproject.toml limits, and not the package."""
    root = Path(check.__file__).resolve().parent.parent
    for name in ("README.md", "dev/check_lm_eval.py"):
        text = (root / name).read_text(encoding="utf-8")
        assert "'.[judge]'" in text, name
        assert "lm-eval" not in text, name


@pytest.mark.skipif(not importlib.util.find_spec("lm_eval"), reason="lm_eval is not installed: pip install '.[judge]'")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("run_here")
def test_lm_eval_agrees(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    comparisons = check.main(config(tmp_path))
    assert [comparison.reason for comparison in comparisons["choice"]] == ["", "special", "cut"]
    assert "No difference remains" in capsys.readouterr().out
