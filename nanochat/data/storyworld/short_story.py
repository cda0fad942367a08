"""Stories that are short enough to be told in a conversation."""

from dataclasses import dataclass
from random import Random

from nanochat.data.storyworld.narrator import Narrator
from nanochat.data.storyworld.writer import draw_plan, write_story


@dataclass(frozen=True)
class ShortStory:
    """A story, whom it is about, and the facts that it states by the way, as pairs (property, subject)."""

    text: str
    hero: str
    friend: str
    stated: frozenset[tuple[str, str]]


def generate_short_story(rng: Random, longest: int) -> ShortStory:
    """A story of the training split, of at most `longest` characters (500 or more: shorter ones are too rare)."""
    assert longest >= 500, f"a story of at most {longest} characters may never come"
    while True:
        drawn = draw_plan(rng)
        if drawn.plot is None or drawn.split() != "train":
            continue
        narrator = Narrator(rng, dict(drawn.roles))
        write_story(narrator, drawn.plot)
        if len(text := narrator.text()) <= longest:
            return ShortStory(text, narrator.roles["H"], narrator.roles["B"], frozenset(narrator.stated))
