"""Generate conversations in which the model says who it is: `identity_conversations.jsonl` in the base folder.

    python -m dev.gen_synthetic_data                                      # 1,000 from the templates, offline
    python -m dev.gen_synthetic_data --num=5000 --kind=web --seed=7
    OPENAI_API_KEY=... python -m dev.gen_synthetic_data --endpoint=https://HOST/v1 --model=NAME
    python -m dev.gen_synthetic_data --endpoint=http://localhost:8080/v1 --model=NAME --num=20 --out=try.jsonl

The identity is defined at the top of tasks/identity.py: edit it, then run this, then mid_train and chat_sft. With
`--endpoint`, a server of OpenAI's protocol, another model rephrases each conversation for variety; its replies are
checked, and those that are not such a conversation are dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from nanochat.common import UserError, base_dir, check_file_writable, print0, write_text_atomic
from nanochat.configurator import Settings, cli, setting
from nanochat.conversations.chat_client import ChatServer, optional_server
from nanochat.tokenization.chat_format import Conversation
from tasks.customjson import parse_conversation
from tasks.identity import ABILITIES, FILE_NAME, PERSONA, generate_conversations
from tasks.mixture import detect_data_kind

PROMPT = """Below is a conversation between a user and a chat model, as a JSON list of messages. Write another like it.
Keep every fact and the order of the topics. Change the wording, and how formal or playful the user is. Be brief.
The model is called {name}. Say nothing about it that the conversation does not say.
Answer with the JSON list only: [{{"role": "user", "content": "..."}}, {{"role": "assistant", "content": "..."}}, ...]

{conversation}"""


@dataclass(frozen=True)
class Config(Settings):
    num: int = setting(1000, "number of conversations", short="n", at_least=1)
    kind: str = setting(
        "auto", "kind of text the model was trained on; auto: that of the base data", choices=["auto", *ABILITIES]
    )
    seed: int = setting(0, "seed of the templates")
    out: Path | None = setting(None, "file to write; default: identity_conversations.jsonl in the base folder")
    endpoint: str | None = setting(None, "address of a server of OpenAI's protocol, up to /v1")
    model: str | None = setting(None, "model of that server")
    key_env: str = setting("OPENAI_API_KEY", "environment variable that holds the key; it may be unset")
    workers: int = setting(8, "concurrent requests", at_least=1)
    attempts: int = setting(4, "requests for a conversation before it is dropped", at_least=1)
    timeout: float = setting(60.0, "seconds to wait for a reply", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.server()

    def server(self) -> ChatServer | None:
        """Return the server that rephrases, if there is one. Raises UserError for an unsafe address."""
        options = {"key_env": self.key_env, "timeout": self.timeout, "attempts": self.attempts, "only_https": False}
        return optional_server(self.endpoint, self.model, **options)


def main(config: Config) -> Path:
    """Write the file and return its path."""
    out = config.out or base_dir() / FILE_NAME
    check_file_writable(out)
    kind = detect_data_kind(if_none="world") if config.kind == "auto" else config.kind
    conversations = generate_conversations(config.num, kind, config.seed)
    if config.endpoint:
        conversations = rephrase_all(config, conversations)
    lines = [json.dumps(conversation["messages"], ensure_ascii=False) + "\n" for conversation in conversations]
    write_text_atomic(out, "".join(lines))
    print0(f"{out}: {len(lines):,} conversations")
    return out


def rephrase_all(config: Config, conversations: Sequence[Conversation]) -> list[Conversation]:
    """Return the conversations as the other model rephrases them, in order, without those that failed.

    Raises UserError if all failed.
    """
    server = config.server()
    assert server is not None, "conversations are rephrased by a server"
    errors: list[str] = []

    def rephrase_or_none(conversation: Conversation) -> Conversation | None:
        try:
            return _rephrase(server, conversation)
        except UserError as error:
            errors.append(str(error))
            return None

    with ThreadPoolExecutor(config.workers) as pool:
        results = list(tqdm(pool.map(rephrase_or_none, conversations), total=len(conversations), disable=None))
    rephrased = [conversation for conversation in results if conversation is not None]
    if errors:
        print0(f"{len(errors):,} of {len(conversations):,} were dropped, the last because: {errors[-1]}")
    if not rephrased:
        raise UserError(f"{config.endpoint} gave no conversation: {errors[-1]}")
    return rephrased


def _rephrase(server: ChatServer, conversation: Conversation) -> Conversation:
    messages = json.dumps(conversation["messages"], ensure_ascii=False)
    prompt = PROMPT.format(name=PERSONA["name"], conversation=messages)
    return server.ask(prompt, lambda reply: _parse_reply(reply, conversation))


def _parse_reply(reply: str, original: Conversation) -> Conversation:
    """Return the conversation in a reply. It must have the roles, and the name, of the original."""
    match = re.search(r"\[.*\]", reply, re.DOTALL)
    if match is None:
        raise UserError("the reply has no JSON list")
    conversation = parse_conversation(match[0].encode("utf-8", errors="replace"))
    roles = [message["role"] for message in conversation["messages"]]
    original_roles = [message["role"] for message in original["messages"]]
    if roles != original_roles:
        raise UserError("the conversation of the reply has other turns")
    name = PERSONA["name"]
    if name in str(original["messages"]) and name not in str(conversation["messages"]):
        raise UserError("the conversation of the reply does not name the model")
    return conversation


if __name__ == "__main__":
    cli(Config, main, __doc__)
