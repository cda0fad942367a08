"""Stories that are short enough to be told in a conversation."""

from dataclasses import dataclass
from random import Random

from nanochat.data.storyworld.voice import Voice
from nanochat.data.storyworld.write import plan, tell_story


@dataclass(frozen=True)
class ShortStory:
    """A story, whom it is about, and the facts that it states by the way, as pairs (property, subject)."""

    text: str
    hero: str
    friend: str
    stated: frozenset[tuple[str, str]]


def short_story(rng: Random, longest: int) -> ShortStory:
    """A story of the training split, of at most `longest` characters (500 or more: shorter ones are too rare)."""
    assert longest >= 500, f"a story of at most {longest} characters may never come"
    while True:
        drawn = plan(rng)
        if drawn.plot is None or drawn.split() != "train":
            continue
        voice = Voice(rng, dict(drawn.roles))
        tell_story(voice, drawn.plot)
        if len(text := voice.text()) <= longest:
            return ShortStory(text, voice.roles["H"], voice.roles["B"], frozenset(voice.stated))
