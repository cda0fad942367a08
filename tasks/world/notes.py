"""Notes of the embedded world as in its base text: facts one after another, so that later stages do not forget them."""

from __future__ import annotations

from nanochat.data.storyworld.writer import generate_notes
from nanochat.tokenization.chat_format import Conversation
from tasks.world.common import WorldTask


class WorldNotes(WorldTask):
    """Documents, not conversations: `{"text": ...}`. Nothing is asked in them, and all pairs may occur."""

    name = "WorldNotes"

    def get_example(self, index: int) -> Conversation:
        """A document."""
        return {"text": generate_notes(self.random(index), "train" if self.split == "train" else "val")}
