"""Chat with a model in the terminal.

    python -m scripts.chat_cli                                 # the last stage that has a model: rl, sft or mid
    python -m scripts.chat_cli -i sft -g d20 -t 0.6 -k 50      # a given model, temperature and top-k
    python -m scripts.chat_cli -p "What is 12 * 7?"            # answer one question and exit

One process suffices, on a GPU or on a laptop. Ctrl-C stops a reply; at the prompt, Ctrl-C twice or Ctrl-D exits.
The model's calculator calls are shown in brackets, with their results: [12*7 = 84].
"""

from __future__ import annotations

import contextlib
import re
import sys
from dataclasses import dataclass

from nanochat.checkpoint_manager import load_model
from nanochat.common import UserError
from nanochat.configurator import Settings, cli, setting
from nanochat.engine import Engine
from nanochat.layers.sampling_params import SamplingParams
from nanochat.runtime import Runtime, choose_generation_dtype
from nanochat.serving.chat_session import Chunk, Message, generate_reply, latest_source, to_content
from nanochat.serving.terminal import Screen, enable_line_editing, read_message

HELP = """/clear   start a new conversation
/help    list the commands
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt is not None and not self.prompt.strip():
            raise UserError(f"prompt is {self.prompt!r}: must contain a question (omit it to chat)")

    def sampling_params(self, num_replies: int) -> SamplingParams:
        """Return the settings of the next reply after `num_replies`; with a seed, each reply uses the next one."""
        seed = None if self.seed is None else self.seed + num_replies
        return SamplingParams(self.temperature, self.top_k, self.max_tokens, seed=seed)


class Chat:
    """A conversation in the terminal: its history, and the model that replies."""

    def __init__(self, engine: Engine, config: Config, screen: Screen) -> None:
        self.engine = engine
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
        reply = generate_reply(self.engine, messages, self.config.sampling_params(self._num_replies))
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
        return not is_stopped


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
            chat.screen.notice("(cleared: a new conversation begins)")
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
        runtime = Runtime.start(device=config.device)
        source = config.source or latest_source(config.model_tag)
        model, tokenizer, meta = load_model(source, runtime, model_tag=config.model_tag, step=config.step)
        engine = Engine(model, tokenizer, choose_generation_dtype(runtime, model.compute_dtype))
    chat = Chat(engine, config, screen)
    if config.prompt is not None:
        is_complete = chat.send(config.prompt)
        if not is_complete:
            raise KeyboardInterrupt
    else:
        enable_line_editing()
        screen.notice(f"nanochat: {source} d{model.config.n_layer}, step {meta['step']}. /help lists the commands.\n")
        run_chat(chat)
    runtime.finish()


if __name__ == "__main__":
    cli(Config, main, __doc__)
