"""Word problems of the embedded world: WordProblems with worked solutions, HardProblems with answers only.

No test problem has the numbers of a training problem: the numbers of a problem decide its split.
"""

from __future__ import annotations

from functools import partial

from nanochat.common import UserError
from nanochat.tokenization.chat_format import Conversation
from tasks.common import final_numbers_match, make_conversation, text_part, tool_call_parts
from tasks.world.common import WorldTask
from tasks.world.problem_stories import SHAPES, Story, draw_steps_story, draw_valid

LEVELS = (1, 2, 3)
_LEADS = {"+": "That makes ", "-": "That leaves ", "*": "That makes ", "/": "One share is "}


class WordProblems(WorldTask):
    """Stories with numbers, of `level` steps (1, 2 or 3; None: all in turn), solved by calls of the calculator."""

    name = "WordProblems"

    def __init__(
        self,
        split: str = "test",
        size: int | None = None,
        seed: int = 0,
        level: int | None = None,
        **kwargs: int | None,
    ) -> None:
        super().__init__(split, size, seed, **kwargs)
        if level not in (*LEVELS, None):
            raise UserError(f"WordProblems: level is {level!r}: must be 1, 2 or 3 (omit it for all)")
        self.level = level

    def story(self, index: int) -> Story:
        """Return the story of an example, with its solution."""
        num_steps = self.level or LEVELS[index % len(LEVELS)]
        return draw_valid(self.example_rng(index), self.split, partial(draw_steps_story, num_steps=num_steps))

    def get_example(self, index: int) -> Conversation:
        story = self.story(index)
        parts = []
        result_line = ""
        for step in story.steps:
            parts += [
                text_part(result_line + _LEADS[step.sign]),
                *tool_call_parts(step.expression, str(step.result)),
            ]
            result_line = f"{step.result} {story.things[step.result != 1]}.\n"
        return make_conversation(story.text, [*parts, text_part(f"{result_line}#### {story.answer}")])

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return final_numbers_match(conversation, completion)


class HardProblems(WorldTask):
    """Stories of a `shape` (a key of SHAPES) that WordProblems lacks, with the final number as the only answer."""

    name = "HardProblems"

    def __init__(
        self,
        split: str = "test",
        size: int | None = None,
        seed: int = 0,
        shape: str = "distractor",
        **kwargs: int | None,
    ) -> None:
        super().__init__(split, size, seed, **kwargs)
        if shape not in SHAPES:
            raise UserError(f"HardProblems: shape is {shape!r}: must be one of {', '.join(SHAPES)}")
        self.shape = shape

    def story(self, index: int) -> Story:
        """Return the story of an example; its steps are not part of the conversation."""
        return draw_valid(self.example_rng(index), self.split, SHAPES[self.shape])

    def get_example(self, index: int) -> Conversation:
        story = self.story(index)
        return make_conversation(story.text, f"#### {story.answer}")

    def evaluate(self, conversation: Conversation, completion: str) -> bool:
        return final_numbers_match(conversation, completion)
