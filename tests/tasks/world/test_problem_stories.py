"""Word-problem stories: ranges of numbers, the split of a set of numbers, pronouns."""

from __future__ import annotations

import re
from collections import Counter
from itertools import pairwise

from nanochat.data.storyworld.world import CHARACTERS
from tasks.world.problem_stories import MAX_NUMBER, MAX_RESULT, SHAPES, is_in_split
from tests.support.problem_solver import people_in, split_question
from tests.support.world_problems import NUM_PROBLEMS, SPLITS, hard_problems, question_of, word_problems


def test_numbers_are_small() -> None:
    stories = [word_problems(split).story(index) for split in SPLITS for index in range(NUM_PROBLEMS)]
    stories += [hard_problems(shape).story(index) for shape in SHAPES for index in range(100)]
    for story in stories:
        assert all(1 <= number <= MAX_NUMBER == 20 for number in story.numbers) or "some " in story.text
        for step in story.steps:
            assert 1 <= step.result <= MAX_RESULT == 99
            assert step.left <= MAX_RESULT
            assert step.right <= MAX_RESULT


def test_the_numbers_decide_the_split() -> None:
    in_test = Counter(is_in_split((a, b), "test") for a in range(1, 21) for b in range(1, 21))
    assert 0.15 < in_test[True] / 400 < 0.25
    assert all(is_in_split((a, 7), "test") != is_in_split((a, 7), "train") for a in range(100))
    assert all(is_in_split((a, 7), "test") == is_in_split((7, a), "test") for a in range(100))


def test_a_pronoun_refers_to_the_person_of_the_sentence_before() -> None:
    """ "He" and "she" begin a sentence only if the sentence before names nobody else of that sex."""
    for row in word_problems("train"):
        sentences = re.split(r"(?<=[.?]) ", question_of(row))
        for before, sentence in pairwise(sentences):
            if match := re.match(r"(He|She)\b", sentence):
                sex = {"He": "m", "She": "f"}[match[1]]
                heroes = people_in(split_question(question_of(row))[1])
                named = {name for name in people_in(before) if CHARACTERS[name].sex == sex}
                assert named <= set(heroes), question_of(row)
                assert len(named) <= 1, question_of(row)
                assert sex in {CHARACTERS[hero].sex for hero in heroes}
