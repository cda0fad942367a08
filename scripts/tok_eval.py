"""Measure bytes per token on several kinds of text, and compare with the tokenizers of GPT-2 and GPT-4 if available.

python -m scripts.tok_eval
python -m scripts.tok_eval --peers=false       # without the other tokenizers, which may have to be downloaded
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import tiktoken

from nanochat.common import print0
from nanochat.configurator import Settings, cli, setting
from nanochat.dataset import iter_documents
from nanochat.report import check_results_writable, log_section
from nanochat.tokenizer import Tokenizer, get_tokenizer

PEERS = {"GPT-2": "gpt2", "GPT-4": "cl100k_base"}
_LOAD_SECONDS = 10.0

TEXTS = {
    "English": """The lighthouse keeper had counted the steps so often that he no longer needed a lamp: one hundred and
forty-two to the gallery, nine more to the lantern. On the evening of the storm he stopped halfway, because something
was knocking, slowly and without any rhythm, on the outside of the wall. "It's only a shutter," he told himself, though
the tower had never had shutters; and then, since nobody else would do it, he went on climbing.""",
    "numbers": """In 1987 the village had 3,412 inhabitants; by 2023 there were 1,870, of whom 41.6% were older than 65.
Rainfall: 812 mm, 1,024.5 mm, 77 mm. Call 555-0142 between 08:30 and 17:45. 12 x 12 = 144, 2^16 = 65536,
pi = 3.14159265.""",
    "Python": '''from collections import deque


def shortest_path(graph: dict[str, list[str]], start: str, goal: str) -> list[str] | None:
    """Breadth-first search; None if there is no way from start to goal."""
    queue = deque([[start]])
    seen = {start}
    while queue:
        path = queue.popleft()
        if path[-1] == goal:
            return path
        for neighbour in graph.get(path[-1], []):
            if neighbour not in seen:
                seen.add(neighbour)
                queue.append([*path, neighbour])
    return None
''',
    "mathematics": r"""Let $f \colon [a, b] \to \mathbb{R}$ be continuous, and differentiable on $(a, b)$.
Then there is a $\xi \in (a, b)$ with \[ f'(\xi) = \frac{f(b) - f(a)}{b - a}. \]
For $\|x\|_2 \le 1$ we have $\sum_{i=1}^n x_i^2 \le 1$.""",
    "German": """Der Leuchtturmwärter hatte die Stufen so oft gezählt, dass er keine Lampe mehr brauchte. Am Abend des
Sturms blieb er auf halber Höhe stehen, denn draußen klopfte etwas langsam und unregelmäßig gegen die Mauer.""",
    "Russian": """Смотритель маяка так часто считал ступени, что лампа была ему больше не нужна. В тот вечер,
когда началась буря, он остановился на полпути: снаружи что-то медленно и неровно стучало в стену.""",
    "Chinese": """灯塔看守人数过太多次台阶，早已不需要灯。
暴风雨来临的那个晚上，他走到一半停了下来，因为外面有什么东西在慢慢地、没有节奏地敲着墙。他对自己说：“只不过是风。”然后继续往上走。""",
    "Hindi": """प्रकाशस्तंभ के रखवाले ने सीढ़ियाँ इतनी बार गिनी थीं कि उसे अब दीपक की ज़रूरत नहीं थी।
तूफ़ान की शाम वह आधे रास्ते में रुक गया।""",
    "Arabic": """كان حارس المنارة قد عدّ الدرجات مرات كثيرة حتى لم يعد يحتاج إلى مصباح.
وفي مساء العاصفة توقف في منتصف الطريق.""",
    "emoji": """Wow!! 🎉🎉 That's great :-) 👍🏽 see you @ 8pm ✈️🌍 … don't be late 😅❤️""",
}


@dataclass(frozen=True)
class Config(Settings):
    max_chars: int = setting(
        2_000_000, "maximum number of characters of the validation documents; 0 = none", at_least=0
    )
    peers: bool = setting(True, "compare with GPT-2's and GPT-4's tokenizers, from tiktoken's cache or the network")


def main(config: Config) -> dict[str, dict[str, float]]:
    """Print and report bytes per token; return them as kind of text -> tokenizer -> ratio."""
    tokenizer = get_tokenizer()
    check_results_writable("tok_eval")
    encoders: dict[str, Tokenizer | tiktoken.Encoding] = {"nanochat": tokenizer}
    notes = []
    for name, encoding_name in PEERS.items() if config.peers else ():
        encoding = load_peer(encoding_name)
        if isinstance(encoding, tiktoken.Encoding):
            encoders[name] = encoding
        else:
            notes.append(f"{name}'s tokenizer is not available ({encoding}): not compared.")

    texts = dict(TEXTS)
    if config.max_chars:
        texts["validation documents"] = validation_text(config.max_chars)
    ratios = {
        kind: {name: bytes_per_token(encoder, text) for name, encoder in encoders.items()}
        for kind, text in texts.items()
    }
    print0(*notes, f"{'bytes per token':22}" + "".join(f"{name:>12}" for name in encoders), sep="\n")
    for kind, row in ratios.items():
        print0(f"{kind:22}" + "".join(f"{ratio:12.2f}" for ratio in row.values()))
    sizes = [f"{name}: {vocabulary_size(encoder):,} tokens." for name, encoder in encoders.items()]
    log_section(
        "tok_eval",
        {
            "title": "Tokenizer: bytes per token",
            "settings": config,
            "metrics": {f"{kind}, {name}": ratio for kind, row in ratios.items() for name, ratio in row.items()},
            "headline": [],
            "notes": [*notes, *sizes],
        },
    )
    return ratios


def bytes_per_token(encoder: Tokenizer | tiktoken.Encoding, text: str) -> float:
    """Return the UTF-8 bytes per token of a text, after checking that its ids decode to the same text."""
    ids = encoder.encode(text) if isinstance(encoder, Tokenizer) else encoder.encode_ordinary(text)
    assert encoder.decode(ids) == text, f"{text[:80]!r} is not decoded to the same text"
    return len(text.encode("utf-8")) / len(ids)


def vocabulary_size(encoder: Tokenizer | tiktoken.Encoding) -> int:
    """Return the number of ids, special tokens included."""
    return encoder.get_vocab_size() if isinstance(encoder, Tokenizer) else encoder.n_vocab


def validation_text(max_chars: int) -> str:
    """Return the first `max_chars` characters of the validation documents, joined with blank lines."""
    documents = []
    remaining = max_chars
    for document in iter_documents("val"):
        documents.append(document[:remaining])
        remaining -= len(document)
        if remaining <= 0:
            break
    return "\n\n".join(documents)


def load_peer(encoding_name: str) -> tiktoken.Encoding | str:
    """Load an encoding of tiktoken's, or return the reason why it is not available.

    It may have to be downloaded. tiktoken sets no time limit, so a thread loads it, and is abandoned if it takes too
    long.
    """
    outcomes: list[tiktoken.Encoding | str] = []

    def load() -> None:
        try:
            outcomes.append(tiktoken.get_encoding(encoding_name))
        except Exception as error:  # such as no network, a proxy's refusal, a damaged cache
            outcomes.append(type(error).__name__)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    thread.join(_LOAD_SECONDS)
    return outcomes[0] if outcomes else f"no answer within {_LOAD_SECONDS:g} s"


if __name__ == "__main__":
    cli(Config, main, __doc__)
