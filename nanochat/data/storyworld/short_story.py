"""Stories short enough for a conversation."""

from dataclasses import dataclass
from random import Random

from nanochat.data.storyworld.narrator import Narrator
from nanochat.data.storyworld.writer import draw_plan, write_story

MIN_LIMIT = 500  # shorter stories are too rare to wait for


@dataclass(frozen=True)
class ShortStory:
    """A story, its hero and friend by name, and the facts that it states, as pairs (property, subject)."""

    text: str
    hero: str
    friend: str
    stated: frozenset[tuple[str, str]]


def generate_short_story(rng: Random, max_chars: int) -> ShortStory:
    """Return a story of the training split with at most `max_chars` characters (at least 500)."""
    assert max_chars >= MIN_LIMIT, f"max_chars is {max_chars}: must be at least {MIN_LIMIT}"
    while True:
        plan = draw_plan(rng)
        if plan.plot is None or plan.split() != "train":
            continue
        narrator = Narrator(rng, dict(plan.roles))
        write_story(narrator, plan.plot)
        text = narrator.text()
        if len(text) <= max_chars:
            return ShortStory(text, narrator.roles["H"], narrator.roles["B"], frozenset(narrator.stated))
