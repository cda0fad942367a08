"""Weights that are fitted: the right options win, the others fall, and few questions change little."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nanochat.conversations.dialogues import Talk, assistant, user
from nanochat.conversations.judging import answer_matches
from nanochat.passages.grounding import grounded_question
from nanochat.quoting.choice import choose
from nanochat.quoting.features import FEATURES
from nanochat.quoting.fitting import Example, fit, fit_on_talks
from nanochat.quoting.weights import NAMES, QuotingWeights, default_weights, with_options
from tests.support.documents import make_index

ZEROS = (0.0,) * len(NAMES)
LENGTH = FEATURES.index("length")


def example(right: int, rng: np.random.Generator) -> Example:
    """Four candidates and two more options; the right one is the longest candidate, or the refusal (4)."""
    features = rng.random((4, len(FEATURES))) * 0.5
    if right < 4:
        features[right, LENGTH] = 1.0
    return Example(with_options(features, 1.0), np.arange(6) == right)


def test_what_was_right_is_chosen() -> None:
    rng = np.random.default_rng(0)
    examples = [example(int(right), rng) for right in rng.integers(0, 5, 200)]
    weights = QuotingWeights(fit(examples, ZEROS), frozenset())
    assert weights.values[LENGTH] == max(weights.values)
    chosen = [int((each.table @ np.array(weights.values)).argmax()) for each in examples]
    assert np.mean([each.is_right[place] for each, place in zip(examples, chosen, strict=True)]) > 0.9
    assert fit(examples, ZEROS) == weights.values


def test_few_questions_change_little() -> None:
    rng = np.random.default_rng(0)
    one = fit([example(0, rng)], ZEROS)
    many = fit([example(0, rng) for _ in range(200)], ZEROS)
    assert 0 < one[LENGTH] < many[LENGTH]
    assert fit([], ZEROS) == ZEROS
    none_is_right = Example(example(0, rng).table, np.zeros(6, dtype=bool))
    assert fit([none_is_right], ZEROS) == ZEROS


def talk(kind: str, question: str, answer: str, expected: tuple[str, ...] = ()) -> Talk:
    return Talk((user(question), assistant(answer)), kind, question, expected=expected)


def test_weights_of_documents(tmp_path: Path) -> None:
    tea = "Tea is a drink made of leaves."
    talks = [
        *(talk("definition", question, tea, (tea,)) for question in ("What is tea?", "Tell me what tea is.")),
        *(talk("foreign", f"Who is the king of Velmora {number}?", "I do not know.") for number in range(20)),
        *(talk("identity", question, "I am a model.") for question in ("Who art thou?", "Salve!")),
        talk("several", "And then?", "No."),
    ]
    with make_index(tmp_path) as index:
        weights = fit_on_talks(index, talks, 0)
        assert weights == fit_on_talks(index, talks, 0)
        assert weights.values != default_weights().values
        assert weights.small_talk - default_weights().small_talk == {"art", "thou", "salve"}
        assert answer_matches(choose(index, weights, "Do you know what tea is?").text or "", [tea])
        assert choose(index, weights, "Salve!").text is None
        assert fit_on_talks(index, talks[-1:], 0) == default_weights()


def test_passages_before_a_question_are_no_small_talk(tmp_path: Path) -> None:
    with make_index(tmp_path) as index:
        message = user(grounded_question(index.search("Who made tea?"), "Who made tea?"))
        made = Talk((message, assistant("I.")), "identity", "Who made tea?")
        fact = talk("about", "What came from China?", "It came from China.", ("It came from China.",))
        small_talk = fit_on_talks(index, [made, fact], 0).small_talk
        assert small_talk == default_weights().small_talk | {"who", "made", "tea"}
