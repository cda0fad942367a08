"""What reinforcement learning shall not unlearn: worked conversations, from which every step learns as well.

The policy gradient's loss has the mean loss on them added to it (PPO-ptx in arXiv 2203.02155, section 3.5).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from nanochat.data.packing import ConversationSource, RenderedConversation
from nanochat.runtime import Runtime
from nanochat.tokenizer import Tokenizer
from tasks.mixture import EntryDescription


@dataclass(frozen=True)
class SFTRows:
    """This process's share of a step's conversations, and the number of trained tokens in all of them."""

    rows: list[RenderedConversation]
    num_tokens: int


@dataclass(frozen=True)
class SFTMix:
    """`count` conversations a step, in their order, again and again: what a step has depends on its number only."""

    conversations: ConversationSource
    description: list[EntryDescription]
    count: int
    tokenizer: Tokenizer
    max_tokens: int

    def of_step(self, step: int, runtime: Runtime) -> SFTRows:
        """This process's share, every N-th of N processes; what has nothing to learn in it is left out."""
        chosen = range(step * self.count, (step + 1) * self.count) if len(self.conversations) else range(0)
        conversations = (self.conversations[index % len(self.conversations)] for index in chosen)
        rendered = [self.tokenizer.render_conversation(each, self.max_tokens) for each in conversations]
        rows = [(ids, mask) for ids, mask in rendered if ids]
        return SFTRows(rows[runtime.rank :: runtime.world_size], sum(sum(mask) for _, mask in rows))

    def hash(self) -> str:
        """Tells another replay from this."""
        return hashlib.sha256(repr((self.count, self.description)).encode("utf-8")).hexdigest()
