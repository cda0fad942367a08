"""Talk with a model in the terminal.

    python -m scripts.chat_cli                                 # the last stage there is: rl, sft or mid
    python -m scripts.chat_cli -i sft -g d20 -t 0.6 -k 50      # this stage, this model; cooler answers, rarer surprises
    python -m scripts.chat_cli -p "What is 12 * 7?"            # one question, one answer

One process is enough, on a GPU or on a laptop. Ctrl-C stops an answer; twice at the prompt, or Ctrl-D, it leaves.
What the model asks its calculator stands in brackets, with the result: [12*7 = 84].
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nanochat.checkpoint_manager import load_model
from nanochat.common import UserError
from nanochat.configurator import Settings, cli, setting
from nanochat.engine import Engine
from nanochat.layers.sampling_params import SamplingParams
from nanochat.runtime import Runtime
from nanochat.serving.chat_session import Piece, fit_messages, has_ended, join, last_stage, pieces
from nanochat.serving.terminal import Screen, read_message, set_up_line_editing

HELP = """/clear   forget what was said so far
/help    these lines
/quit    leave (Ctrl-D and twice Ctrl-C do, too)
Ctrl-C   stop an answer"""


@dataclass(frozen=True)
class Config(Settings):
    source: str | None = setting(
        None, "stage of the model; none = the last there is", short="i", choices=("mid", "sft", "rl")
    )
    prompt: str | None = setting(None, "answer this question and leave", short="p")
    temperature: float = setting(0.6, "of the answers; 0 = always the likeliest token", short="t", at_least=0)
    top_k: int = setting(50, "tokens to draw from", short="k", at_least=1)
    max_tokens: int | None = setting(
        None, "longest answer, in tokens; none = what the context holds", short="m", at_least=1
    )
    seed: int | None = setting(None, "of the answers; none = others every time")
    model_tag: str | None = setting(None, "checkpoint folder; default: that of the deepest model", short="g")
    step: int = setting(-1, "checkpoint; -1 = the last", short="s", at_least=0, also=-1)
    device: str = setting("auto", "where to run", choices=("auto", "cpu", "cuda", "mps"))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt is not None and not self.prompt.strip():
            raise UserError("the prompt is empty: ask something")

    def sampling_params(self, num_replies: int) -> SamplingParams:
        """Return the settings of the next reply, given how many came before it: with a seed, each has the next one."""
        seed = None if self.seed is None else self.seed + num_replies
        return SamplingParams(self.temperature, self.top_k, self.max_tokens, seed=seed)


class Chat:
    """A conversation: the history, and the model that answers."""

    def __init__(self, engine: Engine, config: Config, screen: Screen) -> None:
        self.engine, self.config, self.screen = engine, config, screen
        self.messages: list[dict[str, Any]] = []
        self._answers = 0

    def ask(self, question: str) -> bool:
        """Show the answer as it is written, and remember both; false if Ctrl-C stopped it.

        Old messages that no longer fit are forgotten. Raises `UserError` if the question alone is too long: then
        nothing has changed.
        """
        asked = [*self.messages, {"role": "user", "content": question}]
        context = self.engine.model.config.sequence_len
        params = self.config.sampling_params(self._answers)
        prompt, dropped = fit_messages(self.engine.tokenizer, asked, context, params.reserved_tokens(context))
        self._answers += 1
        if dropped:
            self.screen.notice(f"(the oldest {dropped} messages no longer fit: forgotten)")
        tokens: list[int] = []
        said: list[Piece] = []
        stopped = False
        try:
            for piece in pieces(self.engine.tokenizer, self._tokens(prompt, params, tokens)):
                said.append(piece)
                self.screen.show(piece)
        except KeyboardInterrupt:
            stopped = True
        self.screen.end()
        if stopped:
            self.screen.notice("(stopped)")
        elif not has_ended(self.engine.tokenizer, tokens):
            self.screen.notice("(cut off: the answer has no more room)")
        content = join(said)
        answer = [{"role": "assistant", "content": content}]
        self.messages = asked[dropped:] + answer if content else asked[dropped:-1]  # no answer, no question
        return not stopped

    def _tokens(self, prompt: list[int], params: SamplingParams, tokens: list[int]) -> Iterator[int]:
        """The tokens of the answer, each put into `tokens` too."""
        for column, _ in self.engine.stream(prompt, params):
            tokens.append(column[0])
            yield column[0]


def talk(chat: Chat, screen: Screen) -> None:
    """Questions and answers until the user leaves."""
    leaving = False
    while True:
        try:
            message = read_message().strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print()
            if leaving:
                return
            leaving = True
            screen.notice("(Ctrl-C again, Ctrl-D or /quit leaves)")
            continue
        leaving = False
        if message == "/quit":
            return
        if message == "/help":
            screen.notice(HELP)
        elif message == "/clear":
            chat.messages = []
            screen.notice("(forgotten: a new conversation begins)")
        elif re.fullmatch(r"/[a-z]*", message):
            screen.notice(f"({message} is no command; /help lists them)")
        elif message:
            try:
                chat.ask(message)
            except UserError as error:
                screen.notice(f"({error})")
            print()


def main(config: Config) -> None:
    """Load the model, then talk."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    once = config.prompt is not None
    screen = Screen(notices=sys.stderr if once else sys.stdout)
    with contextlib.redirect_stdout(sys.stderr):  # with -p, only the answer goes to the output
        runtime = Runtime.start(device=config.device)
        source = config.source or last_stage(config.model_tag)
        model, tokenizer, meta = load_model(source, runtime, model_tag=config.model_tag, step=config.step)
    chat = Chat(Engine(model, tokenizer), config, screen)
    if config.prompt is not None:
        if not chat.ask(config.prompt):
            raise KeyboardInterrupt
    else:
        set_up_line_editing()
        screen.notice(f"nanochat: {source} d{model.config.n_layer}, step {meta['step']}. /help lists the commands.\n")
        talk(chat, screen)
    runtime.finish()


if __name__ == "__main__":
    cli(Config, main, __doc__)
