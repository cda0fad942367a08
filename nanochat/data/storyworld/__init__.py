"""The embedded data: a small consistent story world in English, an endless generator of stories, and a checker."""

from nanochat.data.storyworld.checker import Verdict, check_text, sound_fraction
from nanochat.data.storyworld.fact_sentences import Fact, list_facts
from nanochat.data.storyworld.writer import generate_prompts, generate_stories

__all__ = ["Fact", "Verdict", "check_text", "generate_prompts", "generate_stories", "list_facts", "sound_fraction"]
