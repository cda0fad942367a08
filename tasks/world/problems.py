"""Word problems of the embedded world: WordProblems with worked solutions, HardProblems with answers only.

No test problem has the numbers of a training problem: the tuple of its numbers decides the split.
"""

from __future__ import annotations

from functools import partial

from nanochat.common import UserError
from nanochat.tokenization.chat_format import Conversation
from tasks.common import final_numbers_match, make_conversation, text_part, tool_call_parts
from tasks.world.common import WorldTask
from tasks.world.problem_stories import SHAPES, Story, draw_until_valid, steps_story

LEVELS = (1, 2, 3)
_LEADS = {"+": "That makes ", "-": "That leaves ", "*": "That makes ", "/": "One share is "}


class WordProblems(WorldTask):
    """Stories with numbers, of `level` steps (1, 2, 3; None: as many of each), solved by calls of the calculator."""

    name = "WordProblems"

    def __init__(
        self,
        split: str = "test",
        size: int | None = None,
        seed: int = 0,
        level: int | None = None,
        **rows: int | None,
    ) -> None:
        super().__init__(split, size, seed, **rows)
        if level not in (*LEVELS, None):
            raise UserError(f"WordProblems: level is {level!r}; it must be 1, 2, 3 or left out")
        self.level = level

    def story(self, index: int) -> Story:
        """The story of an example, with its solution."""
        length = self.level or LEVELS[index % len(LEVELS)]
        return draw_until_valid(self.random(index), self.split, partial(steps_story, length=length))

    def get_example(self, index: int) -> Conversation:
        """A story and its solution, step by step."""
        story = self.story(index)
        parts, words = [], ""
        for step in story.steps:
            parts += [text_part(words + _LEADS[step.sign]), *tool_call_parts(step.expression, str(step.result))]
            words = f"{step.result} {story.things[step.result != 1]}.\n"
        return make_conversation(story.text, [*parts, text_part(f"{words}#### {story.answer}")])

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Whether the number after `####` is right."""
        return final_numbers_match(conversation, completion)


class HardProblems(WorldTask):
    """Stories of a `shape` (a key of SHAPES) that WordProblems do not have: the question and the number only."""

    name = "HardProblems"

    def __init__(
        self,
        split: str = "test",
        size: int | None = None,
        seed: int = 0,
        shape: str = "distractor",
        **rows: int | None,
    ) -> None:
        super().__init__(split, size, seed, **rows)
        if shape not in SHAPES:
            raise UserError(f"HardProblems: shape is {shape!r}; it must be one of {', '.join(SHAPES)}")
        self.shape = shape

    def story(self, index: int) -> Story:
        """The story of an example; its steps are for whoever checks it."""
        return draw_until_valid(self.random(index), self.split, SHAPES[self.shape])

    def get_example(self, index: int) -> Conversation:
        """A story and the number that it asks for."""
        story = self.story(index)
        return make_conversation(story.text, f"#### {story.answer}")

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        """Whether the number after `####` is right."""
        return final_numbers_match(conversation, completion)
