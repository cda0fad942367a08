"""List the most frequent words of the base data in `words.txt`, for the spelling tasks.

    python -m dev.list_words                                              # 50,000 from 50 million characters
    python -m dev.list_words --num=10000 --min_count=20

Without this file the spelling tasks use the words of the embedded world (tasks/words.py), too few for a large model.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from nanochat.common import UserError, base_dir, check_file_writable, print0, write_text_atomic
from nanochat.configurator import Settings, cli, setting
from nanochat.data.shards import iter_documents
from tasks.words import FILE_NAME, WORD_LENGTHS

# Lower case excludes most names; the lookarounds exclude parts of words such as "don't" and "well-known".
_WORD = re.compile(rf"(?<![\w'’-])[a-z]{{{WORD_LENGTHS.start},{WORD_LENGTHS.stop - 1}}}(?![\w'’-])")


@dataclass(frozen=True)
class Config(Settings):
    num: int = setting(50_000, "number of words", short="n", at_least=1)
    max_chars: int = setting(50_000_000, "characters of training text to read", at_least=1)
    min_count: int = setting(5, "occurrences that a word must have", at_least=1)
    out: Path | None = setting(None, "file to write; default: words.txt in the base folder")


def main(config: Config) -> Path:
    """Write the list, the most frequent word first, and return its path."""
    out = config.out or base_dir() / FILE_NAME
    check_file_writable(out)
    counts: Counter[str] = Counter()
    chars_left = config.max_chars
    for document in iter_documents("train"):
        counts.update(_WORD.findall(document[:chars_left]))
        chars_left -= len(document)
        if chars_left <= 0:
            break
    words = [word for word, count in counts.most_common(config.num) if count >= config.min_count]
    if not words:
        raise UserError(f"min_count is {config.min_count}: no word occurs {config.min_count} times in the base data")
    write_text_atomic(out, "\n".join(words) + "\n")
    print0(f"{out}: {len(words):,} words")
    return out


if __name__ == "__main__":
    cli(Config, main, __doc__)
