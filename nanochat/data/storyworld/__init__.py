"""The embedded data: a small, consistent English world, a writer of endless stories about it, and a checker."""

from nanochat.data.storyworld.check import Verdict, check, share_sound
from nanochat.data.storyworld.facts import Fact, facts, prompts
from nanochat.data.storyworld.write import stories

__all__ = ["Fact", "Verdict", "check", "facts", "prompts", "share_sound", "stories"]
