"""The file of weights, and the scores of options."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from nanochat.common import UserError
from nanochat.quoting.features import FEATURES
from nanochat.quoting.weights import (
    DEFAULTS,
    NAMES,
    QuotingWeights,
    default_weights,
    default_weights_path,
    load_weights,
    save_weights,
)


def test_there_is_a_default_weight_for_each_name() -> None:
    assert len(DEFAULTS) == len(NAMES) == len(set(NAMES))
    assert {"who", "are", "you", "hello"} <= default_weights().small_talk


def test_scores_are_those_of_the_options() -> None:
    values = np.arange(1.0, len(NAMES) + 1)
    features = np.eye(len(FEATURES))[:3]
    weights = QuotingWeights(tuple(values.tolist()), frozenset())
    assert weights.scores(features, 0.0).tolist() == [1, 2, 3, values[-4], values[-3]]
    assert weights.scores(features[:0], 0.5).tolist() == [values[-4], values[-3] + 0.5 * values[-2] + values[-1]]


def test_weights_are_read_as_they_were_written(base_dir: Path) -> None:
    path = default_weights_path()
    assert path == base_dir / "documents" / "quoting.json"
    assert load_weights(path) == default_weights()
    path.parent.mkdir(parents=True)
    weights = QuotingWeights(tuple(float(place) for place in range(len(NAMES))), frozenset({"hé", "you"}))
    save_weights(path, weights)
    assert load_weights(path) == weights


def changed(name: str, value: object) -> dict[str, object]:
    values = {**dict(zip(NAMES, DEFAULTS, strict=True)), name: value}
    return {"weights": values, "small_talk": []}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        json.dumps({"weights": {}, "small_talk": []}),
        json.dumps(changed("refusal", "1")),
        json.dumps(changed("refusal", 1e9)),
        json.dumps(changed("refusal", 1)).replace('"refusal": 1', '"refusal": NaN'),
        json.dumps(changed("another", 1)),
        json.dumps({**changed("refusal", 1), "small_talk": [1]}),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "quoting.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"quoting\.json.*document_talks") as caught:
        load_weights(path)
    assert "\n" not in str(caught.value)
