"""The weights of the choice between quotations, a refusal and own words, in a file beside the index of passages.

    $NANOCHAT_BASE_DIR/documents/quoting.json    `scripts.document_talks --grounded` writes it

Without it the default ones hold, which were fitted on stories and on textbooks together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from nanochat.common import UserError, write_json_atomic
from nanochat.conversations.sentences import words
from nanochat.documents.document import documents_dir
from nanochat.quoting.features import FEATURES
from nanochat.system.json_files import check_type, read_json
from tasks.identity import generate_conversations

OPTIONS = ("refusal", "own words", "own words, share outside of small talk", "own words, any outside of small talk")
NAMES = (*FEATURES, *OPTIONS)
WEIGHTS_FILE = "quoting.json"
MAX_WEIGHT = 100.0
REMEDY = "run python -m scripts.document_talks --grounded, or remove the file"
# In the order of NAMES
DEFAULTS: tuple[float, ...] = (
    *(2.29, 1.44, 1.23, -1.10, -4.42, -3.59, 1.52, 0.80, 0.82),
    *(0.89, -0.22, 1.85, 1.48, 3.05, -2.76, -1.07, 2.32, 3.02),
    *(6.38, -0.23, 3.21, 1.64, -2.08, 4.90, 1.56, 6.40, -0.13),
    *(1.50, -0.38, 1.26, 1.00, 0.28, 0.69, 1.97, 2.73, -0.84),
    *(-1.18, 3.64, 2.13, -3.41, -1.18, 0.00, -2.98, -1.01, 0.51),
    *(0.70, 6.84, 2.71, 8.81, -6.29, -7.64),
)


@dataclass(frozen=True)
class QuotingWeights:
    """A weight for each of NAMES, and the words of small talk, in lower case."""

    values: tuple[float, ...]
    small_talk: frozenset[str]

    def scores(self, features: np.ndarray, foreign_share: float) -> np.ndarray:
        """Return the scores of all candidates (n, F), then those of a refusal and of own words: (n + 2,)."""
        scores: np.ndarray = with_options(features, foreign_share) @ np.array(self.values)
        return scores


def with_options(features: np.ndarray, foreign_share: float) -> np.ndarray:
    """Return the features of all options: (n, F) of candidates to (n + 2, len(NAMES))."""
    table = np.zeros((len(features) + 2, len(NAMES)))
    table[: len(features), : len(FEATURES)] = features
    table[-2, len(FEATURES)] = 1
    table[-1, len(FEATURES) + 1 :] = (1, foreign_share, float(foreign_share > 0))
    return table


@lru_cache(maxsize=1)
def default_weights() -> QuotingWeights:
    """Return the weights for documents that none were fitted on."""
    talks = generate_conversations(400, "documents", 0)
    texts = [str(message["content"]) for talk in talks for message in talk["messages"] if message["role"] == "user"]
    return QuotingWeights(DEFAULTS, small_talk_words(texts))


def small_talk_words(questions: list[str]) -> frozenset[str]:
    """Return the words of questions about the model itself, and of greetings."""
    return frozenset(word for question in questions for word in words(question))


def default_weights_path() -> Path:
    """Return the path of the fitted weights: `$NANOCHAT_BASE_DIR/documents/quoting.json`."""
    return documents_dir() / WEIGHTS_FILE


def save_weights(path: Path, weights: QuotingWeights) -> None:
    """Write weights to a file, completely or not at all."""
    content = {"weights": dict(zip(NAMES, weights.values, strict=True)), "small_talk": sorted(weights.small_talk)}
    write_json_atomic(path, content)


@dataclass(frozen=True)
class _File:
    """The content of quoting.json."""

    weights: dict[str, float]
    small_talk: list[str]


def load_weights(path: Path) -> QuotingWeights:
    """Return the weights of a file, or the default ones if it does not exist. Raises UserError if it is damaged."""
    if not path.exists():
        return default_weights()
    try:
        content = read_json(path)
        check_type(content, _File, "")
        if list(content["weights"]) != list(NAMES):
            raise UserError("weights has other names than this version's")
        values = tuple(map(float, content["weights"].values()))
        if not all(math.isfinite(value) and abs(value) <= MAX_WEIGHT for value in values):
            raise UserError(f"a weight is not between -{MAX_WEIGHT:g} and {MAX_WEIGHT:g}")
    except UserError as error:
        raise UserError(f"{path} is damaged, or of another version: {error} ({REMEDY})") from error
    return QuotingWeights(values, frozenset(content["small_talk"]))
