"""WorldNotes: notes of the embedded world as in its base text, so that later stages do not forget its facts."""

from __future__ import annotations

from nanochat.data.storyworld.writer import generate_notes
from nanochat.tokenization.chat_format import Conversation
from tasks.world.common import WorldTask


class WorldNotes(WorldTask):
    """Documents, not conversations: `{"text": ...}`. They ask nothing and may state any fact, held out or not."""

    name = "WorldNotes"

    def get_example(self, index: int) -> Conversation:
        return {"text": generate_notes(self.example_rng(index), "train" if self.split == "train" else "val")}
