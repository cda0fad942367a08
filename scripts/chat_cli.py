"""Chat with a model in the terminal.

    python -m scripts.chat_cli                                 # the last stage that has a model: rl, sft or mid
    python -m scripts.chat_cli -i sft -g d20 -t 0.6 -k 50      # a given model, temperature and top-k
    python -m scripts.chat_cli -p "What is 12 * 7?"            # answer one question and exit
    python -m scripts.chat_cli --grounded                      # quotations of the documents, or that they do not answer
    python -m scripts.chat_cli --grounded --quote=false        # the model writes, with the best passages before it
    python -m scripts.chat_cli --gguf=d20.gguf                 # a file of scripts.export_gguf, through llama.cpp

One process suffices, on a GPU or on a laptop. Ctrl-C stops a reply; at the prompt, Ctrl-C twice or Ctrl-D exits.
The model's calculator calls are shown in brackets, with their results: [12*7 = 84]. If the passages of the documents
are indexed (scripts.index_documents), the sources of an answer follow it; /sources shows their text.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nanochat.checkpoint_manager import load_model
from nanochat.common import UserError, print0, visible
from nanochat.configurator import Settings, cli, setting
from nanochat.engine import Engine
from nanochat.layers.sampling_params import SamplingParams
from nanochat.runtime import Runtime
from nanochat.serving.chat_session import (
    Chunk,
    Content,
    GivenReply,
    Message,
    Reply,
    ReplyEngine,
    generate_reply,
    latest_source,
    to_content,
)
from nanochat.serving.sources import SOURCES_CHOICES, DocumentSources, Source, check_sources, open_sources
from nanochat.serving.terminal import Screen, enable_line_editing, read_message
from nanochat.steps.make_step import QUANTIZE_CHOICES, generation_dtype

HELP = """/clear   start a new conversation
/help    list the commands
/sources show the passages next to the last answer
/quit    exit (so do Ctrl-D, and Ctrl-C twice)
Ctrl-C   stop a reply"""


@dataclass(frozen=True)
class Config(Settings):
    source: str | None = setting(
        None,
        "stage whose model to chat with; none = the last that has a model",
        short="i",
        choices=("mid", "sft", "rl"),
    )
    prompt: str | None = setting(None, "answer this question and exit", short="p")
    temperature: float = setting(0.6, "sampling temperature; 0 = greedy", short="t", at_least=0)
    top_k: int = setting(50, "sample among the k most likely tokens", short="k", at_least=1)
    max_tokens: int | None = setting(
        None, "maximum tokens of a reply; none = until the context is full", short="m", at_least=1
    )
    seed: int | None = setting(None, "random seed of the replies; none = a new one for each")
    model_tag: str | None = setting(
        None, "tag of the checkpoint; default: the deepest model's", short="g", names="name"
    )
    step: int = setting(-1, "step of the checkpoint; -1 = the last", short="s", at_least=0, or_value=-1)
    device: str = setting("auto", "device to run on", choices=("auto", "cpu", "cuda", "mps"))
    quantize: str = setting("none", "weights of 8 bits: faster on a CPU, a little worse", choices=QUANTIZE_CHOICES)
    sources: str = setting(
        "auto",
        "show the passages of the documents nearest to each answer; auto = if they are indexed",
        choices=SOURCES_CHOICES,
    )
    grounded: bool | None = setting(
        None, "put the best passages of the documents before each question; none = if the model was trained so"
    )
    quote: bool = setting(True, "if grounded: reply with sentences of the documents, or that they do not answer")
    gguf: Path | None = setting(None, "GGUF file to chat with instead of a checkpoint, through llama.cpp on the CPU")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sources(self.sources, self.grounded)
        if self.prompt is not None and not self.prompt.strip():
            raise UserError(f"prompt is {self.prompt!r}: must contain a question (omit it to chat)")
        if self.gguf is not None and (self.source, self.model_tag, self.step) != (None, None, -1):
            raise UserError("--gguf names the model: omit source, model_tag and step")
        if self.gguf is not None and self.quantize != "none":
            raise UserError(
                "--quantize is for checkpoints: the weights of a GGUF file are as scripts.export_gguf wrote them"
            )

    def sampling_params(self, num_replies: int) -> SamplingParams:
        """Return the settings of the next reply after `num_replies`; with a seed, each reply uses the next one."""
        seed = None if self.seed is None else self.seed + num_replies
        return SamplingParams(self.temperature, self.top_k, self.max_tokens, seed=seed)


class Chat:
    """A conversation in the terminal: its history, and the model that replies."""

    def __init__(
        self, engine: ReplyEngine, config: Config, screen: Screen, documents: DocumentSources | None = None
    ) -> None:
        """`documents`: those whose passages are shown next to the answers."""
        self.engine = engine
        self.documents = documents
        self.sources: list[Source] = []  # of the last answer
        self.config = config
        self.screen = screen
        self.messages: list[Message] = []
        self._num_replies = 0

    def send(self, text: str) -> bool:
        """Show the reply to a message while it is generated, and keep both. Returns False if Ctrl-C stopped it.

        Old messages that no longer fit are dropped. Raises `UserError`, and changes nothing, if the message alone is
        too long.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        reply, sources = self._begin_reply(messages)
        self._num_replies += 1
        if reply.num_dropped:
            self.screen.notice(f"(the oldest {reply.num_dropped} messages no longer fit and were dropped)")
        chunks: list[Chunk] = []
        is_stopped = False
        try:
            for chunk in reply:
                chunks.append(chunk)
                self.screen.show(chunk)
        except KeyboardInterrupt:
            is_stopped = True
        self.screen.end_reply()
        if is_stopped:
            self.screen.notice("(stopped)")
        elif not reply.has_ended:
            self.screen.notice("(cut off: the reply reached its maximum length)")
        kept = messages[reply.num_dropped :]
        content = to_content(chunks)
        if content:
            self.messages = [*kept, {"role": "assistant", "content": content}]
        else:
            self.messages = kept[:-1]  # without a reply the message is dropped, too: roles must alternate
        if content:
            self._show_sources(messages, content, sources)
        return not is_stopped

    def _begin_reply(self, messages: list[Message]) -> tuple[Reply | GivenReply, list[Source]]:
        """Begin the reply to the last message. Returns it and the sources of the message."""
        params = self.config.sampling_params(self._num_replies)
        if self.documents is None:
            return generate_reply(self.engine, messages, params), []
        prompt, sources, reply = self.documents.prepare(self.engine, messages, params)
        if reply is not None:
            return GivenReply(reply, prompt.num_dropped), sources
        return Reply(self.engine, prompt, params), sources

    def _show_sources(self, messages: list[Message], answer: Content, known: list[Source]) -> None:
        """Print the places of the passages nearest to an answer, and keep them for /sources."""
        if self.documents is None:
            return
        self.sources = self.documents.find(messages, answer, known)
        for number, source in enumerate(self.sources, 1):
            self.screen.notice(source_line(number, source))
        if not self.sources:
            self.screen.notice("(no passage of the documents has these words)")

    def show_passages(self) -> None:
        """Print the sources of the last answer with their text."""
        for number, source in enumerate(self.sources, 1):
            self.screen.notice(f"{source_line(number, source)}\n{visible(source.passage.text)}\n")
        if self.documents is None:
            self.screen.notice("(no documents are indexed: see python -m scripts.index_documents --help)")
        elif not self.sources:
            self.screen.notice("(no answer yet, or no passage for it)")


def source_line(number: int, source: Source) -> str:
    """Return the line with the place of a source."""
    mark = " (quoted)" if source.is_quoted else " (read before the answer)" if source.is_given else ""
    return f"[{number}] {source.title}{mark}"


def run_chat(chat: Chat) -> None:
    """Read messages and commands, and reply, until the user exits."""
    is_exiting = False  # Ctrl-C was pressed once at the prompt
    is_first = True  # no message yet
    while True:
        try:
            message = read_message().strip()
        except EOFError:
            print()
            if is_first and not sys.stdin.isatty():
                chat.screen.notice('(no message: standard input is empty or closed; -p "..." asks one question)')
            return
        except KeyboardInterrupt:
            print()
            if is_exiting:
                return
            is_exiting = True
            chat.screen.notice("(Ctrl-C again, Ctrl-D or /quit exits)")
            continue
        is_exiting = is_first = False
        if message == "/quit":
            return
        if message == "/help":
            chat.screen.notice(HELP)
        elif message == "/clear":
            chat.messages = []
            chat.sources = []
            chat.screen.notice("(cleared: a new conversation begins)")
        elif message == "/sources":
            chat.show_passages()
        elif re.fullmatch(r"/[a-z]*", message):
            chat.screen.notice(f"({message} is not a command; /help lists them)")
        elif message:
            try:
                chat.send(message)
            except UserError as error:
                chat.screen.notice(f"({error})")
            print()


def main(config: Config) -> None:
    """Load the model, then chat, or answer the question of `config.prompt`."""
    screen = Screen(notices=sys.stdout if config.prompt is None else sys.stderr)
    with contextlib.redirect_stdout(sys.stderr):  # with -p, standard output has only the reply
        runtime = Runtime.start(device=config.device if config.gguf is None else "cpu")
        model = load_gguf(config.gguf) if config.gguf else load_checkpoint(config, runtime)
        documents = open_sources(config.sources, config.grounded, model.meta, config.quote)
    with contextlib.closing(documents) if documents else contextlib.nullcontext():
        chat_or_answer(Chat(model.engine, config, screen, documents), model.name)
    runtime.finish()


class ChatModel(NamedTuple):
    """A model to chat with: its engine, its name for the user, and meta.json of its checkpoint, {} without one."""

    engine: ReplyEngine
    name: str
    meta: Mapping[str, Any]


def load_checkpoint(config: Config, runtime: Runtime) -> ChatModel:
    """Load the checkpoint that the settings name."""
    source = config.source or latest_source(config.model_tag)
    model, tokenizer, meta = load_model(source, runtime, model_tag=config.model_tag, step=config.step)
    engine = Engine(model, tokenizer, generation_dtype(runtime, model.compute_dtype, config.quantize))
    return ChatModel(engine, f"{source} d{model.config.n_layer}, step {meta['step']}", meta)


def load_gguf(path: Path) -> ChatModel:
    """Load a GGUF file, and print what llama.cpp computes otherwise than nanochat with it."""
    from nanochat.export.gguf_file import GGUFFile
    from nanochat.inference.llama_cpp import LlamaCppEngine

    file = GGUFFile.open(path)
    for limit in file.limits:
        print0(f"NOTICE: {limit}")
    engine = LlamaCppEngine(path, file.tokenizer(), file.context_len)
    return ChatModel(engine, f"{path.name} through llama.cpp", {})


def chat_or_answer(chat: Chat, name: str) -> None:
    """Chat, or answer the question of the settings. `name`: of the model."""
    config, screen = chat.config, chat.screen
    if config.prompt is not None:
        is_complete = chat.send(config.prompt)
        if not is_complete:
            raise KeyboardInterrupt
    else:
        enable_line_editing()
        screen.notice(f"nanochat: {name}. /help lists the commands.")
        if chat.documents is not None and chat.documents.examples:
            screen.notice(f"Try: {chat.documents.examples[0]}")
        screen.notice("")
        run_chat(chat)


if __name__ == "__main__":
    cli(Config, main, __doc__)
