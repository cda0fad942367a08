"""SFT rows mixed into the steps of reinforcement learning, so that the model does not forget what SFT taught it.

Their mean loss is added to the policy gradient's loss (PPO-ptx, arXiv 2203.02155, section 3.5).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from nanochat.data.packing import ChangingSource, ConversationSource
from nanochat.runtime import Runtime
from nanochat.tokenization.chat_format import Conversation
from nanochat.tokenizer import RenderedConversation, Tokenizer
from tasks.mixture import EntryDescription, build_mixture, detect_data_kind


@dataclass(frozen=True)
class SFTRows:
    """This process's conversations of a step, and the number of trained tokens of the step over all processes."""

    rows: list[RenderedConversation]
    num_tokens: int


@dataclass(frozen=True)
class SFTMix:
    """Conversations in a fixed order; each step takes the next `num_per_step`, and the first follows the last."""

    conversations: ConversationSource
    description: list[EntryDescription]
    num_per_step: int
    tokenizer: Tokenizer
    max_tokens: int

    def rows_of_step(self, step: int, runtime: Runtime) -> SFTRows:
        """Return this process's rows of a step: with N processes, every N-th of the rows with tokens to train on."""
        indices = range(step * self.num_per_step, (step + 1) * self.num_per_step) if len(self.conversations) else ()
        rendered = [self.tokenizer.render_conversation(self._get(index), self.max_tokens) for index in indices]
        rows = [(ids, mask) for ids, mask in rendered if ids]
        return SFTRows(rows[runtime.rank :: runtime.world_size], num_tokens=sum(sum(mask) for _, mask in rows))

    def _get(self, index: int) -> Conversation:
        """Return a conversation of the mixture repeated without end; parts that are fresh have others in each pass."""
        number, row = divmod(index, len(self.conversations))
        source = self.conversations
        return (source.for_pass(number) if isinstance(source, ChangingSource) else source)[row]

    def hash(self) -> str:
        """Return a hash of the mixture's description and the number of conversations per step."""
        return hashlib.sha256(repr((self.num_per_step, self.description)).encode("utf-8")).hexdigest()


def load_sft_mix(
    num_per_step: int, mixture_file: str | None, seed: int, tokenizer: Tokenizer, max_tokens: int
) -> SFTMix:
    """Load the default SFT mixture, or the mixture in `mixture_file`; an empty mix if `num_per_step` is 0."""
    if not num_per_step:
        return SFTMix([], [], 0, tokenizer, max_tokens)
    conversations, _, description = build_mixture("sft", detect_data_kind(), mixture_file=mixture_file, seed=seed)
    return SFTMix(conversations, description, num_per_step, tokenizer, max_tokens)
