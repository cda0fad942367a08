"""The embedded data: a small, consistent English world, a generator of endless stories about it, and a checker."""

from nanochat.data.storyworld.checker import Verdict, check_text, sound_fraction
from nanochat.data.storyworld.facts import Fact, generate_prompts, list_facts
from nanochat.data.storyworld.writer import generate_stories

__all__ = ["Fact", "Verdict", "check_text", "generate_prompts", "generate_stories", "list_facts", "sound_fraction"]
