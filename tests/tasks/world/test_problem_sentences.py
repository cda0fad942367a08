"""Sentences of word problems: the number of templates, their use, and their grammar."""

from __future__ import annotations

import re

import pytest

from tasks.common import Task, reference_text
from tasks.world.problem_sentences import NEW_SENTENCES, QUESTIONS, SENTENCES, THINGS
from tasks.world.problem_stories import SHAPES
from tests.support.world_problems import hard_problems, question_of, word_problems


def test_there_are_many_templates_of_every_kind_and_all_are_used() -> None:
    assert all(len(templates) >= 12 for templates in SENTENCES.values())
    new_templates = {kind: set(templates) for kind, templates in NEW_SENTENCES.items() if kind != "start"}
    assert not [kind for kind, templates in new_templates.items() if templates & set(SENTENCES[kind])]
    text = "\n".join(question_of(row) for row in word_problems("train"))
    for templates in (*SENTENCES.values(), QUESTIONS):
        for template in templates:
            longest_fixed_part = max(re.split(r"\{\w+\}", template), key=len)
            assert longest_fixed_part in text, template


@pytest.mark.parametrize(
    "task", [word_problems("train"), *(hard_problems(shape) for shape in SHAPES)], ids=lambda task: task.name
)
def test_grammar(task: Task) -> None:
    """One thing is singular, several are plural; sentences begin with capitals; no field is left open."""
    singulars = {one for one, _ in THINGS}
    plurals = {many for _, many in THINGS}
    for row in task:
        text = question_of(row) + " " + reference_text(row).replace("\n", " ")
        for number, word in re.findall(r"\b(\d+) (\w+)", text):
            if word in plurals:
                assert number != "1", text
            if word in singulars:
                assert number == "1", text
        assert not re.search(r"[{}]|  |\b1 are\b|\b(?!1\b)\d+ is (lost|broken)", text), text
        assert not re.search(r"(^|[.?] )[a-z]", question_of(row)), text
        assert question_of(row)[-1] in ".?"
