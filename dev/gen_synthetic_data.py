"""Conversations in which the model says who it is, written to `identity_conversations.jsonl` in the base folder.

    python -m dev.gen_synthetic_data                                      # 1,000 from the templates, offline
    python -m dev.gen_synthetic_data --num=5000 --kind=web --seed=7
    OPENAI_API_KEY=... python -m dev.gen_synthetic_data --endpoint=https://HOST/v1 --model=NAME
    python -m dev.gen_synthetic_data --endpoint=http://localhost:8080/v1 --model=NAME --num=20 --out=try.jsonl

Who the model is stands at the top of tasks/identity.py: change that, then run this, then mid_train and chat_sft.
With `--endpoint`, which speaks OpenAI's protocol, another model puts each conversation of the templates in its own
words, so that they vary more; its answers are checked, and those that are no such conversation are dropped.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from tqdm import tqdm

from nanochat.common import UserError, base_dir, print0, write_text_atomic
from nanochat.configurator import Settings, cli, setting
from nanochat.tokenization.chat_format import Conversation
from tasks.customjson import parse_conversation
from tasks.identity import ABILITIES, FILE_NAME, PERSONA, generate_conversations
from tasks.mixture import detect_data_kind

ORDER = """Below is a conversation between a user and a chat model, as a JSON list of messages. Write another like it.
Keep every fact and the order of the topics. Change the wording, and how formal or playful the user is. Be brief.
The model is called {name}. Say nothing about it that the conversation does not say.
Answer with the JSON list only: [{{"role": "user", "content": "..."}}, {{"role": "assistant", "content": "..."}}, ...]

{conversation}"""
FIRST_WAIT = 1.0  # seconds before the second attempt at a server that is busy or away; it doubles, up to LONGEST_WAIT
LONGEST_WAIT = 30.0
_TEMPORARY = (408, 409, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Config(Settings):
    num: int = setting(1000, "how many conversations", short="n", at_least=1)
    kind: str = setting(
        "auto", "what the model was trained on; auto: as the base data says", choices=["auto", *ABILITIES]
    )
    seed: int = setting(0, "another seed, other conversations")
    out: Path | None = setting(None, "the file to write; none is identity_conversations.jsonl in the base folder")
    endpoint: str | None = setting(None, "address of an API that speaks OpenAI's protocol, up to /v1")
    model: str | None = setting(None, "the model to ask there")
    key_env: str = setting("OPENAI_API_KEY", "the environment variable that holds the key; it may be unset")
    workers: int = setting(8, "requests at a time", at_least=1)
    attempts: int = setting(4, "how often a request is made before its conversation is dropped", at_least=1)
    timeout: float = setting(60.0, "seconds to wait for an answer", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.endpoint is None) != (self.model is None):
            raise UserError("--endpoint and --model go together")


def main(config: Config) -> Path:
    """Write the file and return its path."""
    kind = detect_data_kind(if_none="world") if config.kind == "auto" else config.kind
    conversations = generate_conversations(config.num, kind, config.seed)
    if config.endpoint:
        conversations = reworded(config, conversations)
    out = config.out or base_dir() / FILE_NAME
    lines = [json.dumps(conversation["messages"], ensure_ascii=False) + "\n" for conversation in conversations]
    write_text_atomic(out, "".join(lines))
    print0(f"{out}: {len(lines):,} conversations")
    return out


def reworded(config: Config, conversations: Sequence[Conversation]) -> list[Conversation]:
    """What the other model makes of them, without those that failed. UserError if none is left."""
    reasons: list[str] = []

    def ask(conversation: Conversation) -> Conversation | None:
        try:
            return _reworded(config, conversation)
        except UserError as error:
            reasons.append(str(error))
            return None

    with ThreadPoolExecutor(config.workers) as pool:
        answers = list(tqdm(pool.map(ask, conversations), total=len(conversations), disable=None))
    found = [answer for answer in answers if answer is not None]
    if reasons:
        print0(f"{len(reasons):,} of {len(conversations):,} were dropped, the last because: {reasons[-1]}")
    if not found:
        raise UserError(f"{config.endpoint} gave no conversation: {reasons[-1]}")
    return found


def _reworded(config: Config, conversation: Conversation) -> Conversation:
    told = json.dumps(conversation["messages"], ensure_ascii=False)
    order = ORDER.format(name=PERSONA["name"], conversation=told)
    for attempt in range(1, config.attempts + 1):
        try:
            return _checked(_answer(config, order), conversation)
        except (requests.RequestException, UserError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if attempt == config.attempts or (status and status not in _TEMPORARY):
                raise UserError(f"{type(error).__name__}: {error}") from error
            if not isinstance(error, UserError):  # after a bad answer there is nothing to wait for
                time.sleep(min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)))
    raise AssertionError("the last attempt returns or raises")


def _answer(config: Config, order: str) -> str:
    key = os.environ.get(config.key_env)
    response = requests.post(
        f"{config.endpoint}".rstrip("/") + "/chat/completions",
        json={"model": config.model, "messages": [{"role": "user", "content": order}], "temperature": 1.0},
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=config.timeout,
    )
    response.raise_for_status()
    try:
        content: Any = response.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError("its answer has not the form of OpenAI's protocol") from error
    return str(content)


def _checked(answer: str, original: Conversation) -> Conversation:
    """The conversation in an answer, with as many messages as the original and the name where that has it."""
    match = re.search(r"\[.*\]", answer, re.DOTALL)
    if match is None:
        raise UserError("its answer has no JSON list")
    found = parse_conversation(match[0].encode("utf-8", errors="replace"))
    roles = [[message["role"] for message in one["messages"]] for one in (found, original)]
    if roles[0] != roles[1]:
        raise UserError("its conversation has other turns")
    if PERSONA["name"] in str(original["messages"]) and PERSONA["name"] not in str(found["messages"]):
        raise UserError("its conversation does not name the model")
    return found


if __name__ == "__main__":
    cli(Config, main, __doc__)
