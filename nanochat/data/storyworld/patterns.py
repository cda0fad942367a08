"""The tables that the parser looks things up in, gathered from all that the writer can say."""

from collections import defaultdict
from functools import cache, lru_cache

from nanochat.data.storyworld import documents, narrator, plots, sentences, world
from nanochat.data.storyworld.grammar import CHOICE_ITEMS, Item, Phrase
from nanochat.data.storyworld.lexicon import NOUNS
from nanochat.data.storyworld.relations import RELATIONS

Pattern = tuple[Item, ...]
WORD_KINDS: dict[str, tuple[str, ...]] = {
    "weather": tuple(word for words in sentences.WEATHER.values() for word in words),
    "season": sentences.SEASONS,
    "daypart": sentences.PARTS_OF_DAY,
    "day": tuple(world.DAYS),
    "species": tuple(world.SOUNDS),
    "trade": tuple(world.WORK),
    "foodstuff": tuple(world.TASTES),
    "word": tuple(world.OPPOSITES),
    "happening": tuple(world.SEASON_OF),
    "tool": tuple(world.TOOL_USES),
}


def split_sentences(pattern: Pattern) -> list[Pattern]:
    """The sentences of a pattern that may hold several, each with its closing mark."""
    parts: list[list[Item]] = [[]]
    for item in pattern:
        parts[-1].append(item)
        if item in (("w", "."), ("w", "!"), ("w", "?")):
            parts.append([])
    return [tuple(part) for part in parts if part]


@lru_cache(maxsize=1)
def sentence_patterns() -> tuple[Pattern, ...]:
    """Every pattern of a whole narrative sentence."""
    tables = [
        pattern
        for kind in (narrator.JOIN_PATTERNS, narrator.WRAP_PATTERNS)
        for rows in kind.values()
        for _, pattern in rows
    ]
    tables += documents.compile_lines(sentences.OPENINGS) + documents.compile_lines(sentences.ENDINGS)
    for (
        name
    ) in "HABIT_PATTERNS PORTRAITS THING_INTROS PORTRAIT_ENDS WALKS STOPS WALK_ENDS MEETINGS CLASSROOM BELLS".split():
        tables += getattr(documents, name)
    stop = (("w", "."),)
    tables += [pattern + stop for r in RELATIONS.values() for rows in r.statements.values() for pattern in rows]
    return tuple(dict.fromkeys(part for pattern in tables for part in split_sentences(pattern)))


@lru_cache(maxsize=1)
def utterance_patterns() -> tuple[tuple[Pattern, str, str], ...]:
    """Every pattern of something said: items without the closing mark, the mark, the kind of speech."""
    said = [(s.items, s.mark, "") for t in ("ANSWERS", "QUESTIONS", "CURIOUS", "PRAISE", "PARTINGS")
            for row in getattr(documents, t) for s in row]  # fmt: skip
    for step in _steps():
        said += [(u.items, u.mark, "") for u in step.utterances if not u.kind]
    for kind, rows in narrator.SPEECH_PATTERNS.items():
        said += [(pattern[:-1], pattern[-1][1], kind) for _, pattern in rows]
    return tuple(dict.fromkeys(said))


def _steps() -> list[plots.Step]:
    return [step for plot in plots.STORY_PLOTS for beat in plot.beats for way in beat.ways for step in way]


@lru_cache(maxsize=1)
def phrases() -> tuple[tuple[Phrase, ...], tuple[Phrase, ...]]:
    """All verb phrases, and all clauses without a character for a subject."""
    found = list(documents.HABITS)
    for step in _steps():
        found += [phrase for clause in step.clauses for phrase in clause.phrases]
        found += [phrase for utterance in step.utterances for phrase in utterance.phrases]
    unique: dict[object, Phrase] = {}
    for phrase in found:
        key = (
            phrase.personal,
            tuple(item[:1] + item[2:] if item[0] == "slot" else item for item in phrase.forms["base"]),
        )
        unique.setdefault((key, phrase.subjects), phrase)
    return tuple(p for p in unique.values() if p.personal), tuple(p for p in unique.values() if not p.personal)


Index = dict[str, list[tuple[Pattern, Phrase, str]]]  # first word ("" for a slot) -> items, phrase, number


@cache
def phrase_index(personal: bool, form: str) -> Index:
    """The phrases by the first word of their form; "past" holds the plural past as well."""
    index: Index = defaultdict(list)
    for phrase in phrases()[0 if personal else 1]:
        forms = [(phrase.forms[form], "")]
        if form == "past" and phrase.forms["past"] != phrase.forms["pastp"] and personal:
            forms = [(phrase.forms["past"], "s"), (phrase.forms["pastp"], "p")]
        for items, number in forms:
            for first in first_words(items):
                index[first].append((items, phrase, number))
    return index


def first_words(items: Pattern) -> set[str]:
    """The words a pattern can begin with; "" stands for any."""
    if items[0][0] == "w":
        return {items[0][1]}
    if items[0][0] != "cat":
        return {""}
    firsts: set[str] = set()
    for option in CHOICE_ITEMS[items[0][1]]:
        firsts |= first_words(option or items[1:])
    return firsts


def _by_first(patterns: tuple[Pattern, ...]) -> dict[str, list[Pattern]]:
    index: dict[str, list[Pattern]] = defaultdict(list)
    for pattern in patterns:
        for first in first_words(pattern):
            index[first].append(pattern)
    return index


@lru_cache(maxsize=1)
def sentence_index() -> dict[str, list[Pattern]]:
    """Sentence patterns by first word."""
    return _by_first(sentence_patterns())


@cache
def value_phrases(kind: str) -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """The fixed phrases of a kind of word or of a relation's values, by first word: (words, value)."""
    values = RELATIONS[kind[6:]].values.values() if kind.startswith("value:") else WORD_KINDS[kind]
    index: dict[str, list[tuple[tuple[str, ...], str]]] = defaultdict(list)
    for value in dict.fromkeys(values):
        words = tuple("a" if word == "an" else word for word in value.split())
        index[words[0]].append((words, value))
    return index


@lru_cache(maxsize=1)
def vocabulary() -> frozenset[str]:
    """Every word that can occur (in the case in which it stands inside a sentence)."""
    words: set[str] = set(
        "a the some his her their my your our he she they it I me you him them us and who two friends of both".split()
    )

    def gather(items: Pattern) -> None:
        words.update(item[1] for item in items if item[0] == "w")

    for pattern in (*sentence_patterns(), *(items for items, _, _ in utterance_patterns())):
        gather(pattern)
    for group in (*phrases()[0], *phrases()[1]):
        for items in group.forms.values():
            gather(items)
    for relation in RELATIONS.values():
        for pattern in (*relation.questions, *(p for rows in relation.statements.values() for p in rows)):
            gather(pattern)
        words.update(word for pair in relation.values.items() for value in pair for word in value.split())
    for options in CHOICE_ITEMS.values():
        for items in options:
            gather(items)
    words.update(word for kinds in WORD_KINDS.values() for value in kinds for word in value.split())
    words.update(word for noun in NOUNS.values() for word in (noun.word, *noun.adjectives))
    words.update(place.at for place in world.PLACES.values())
    return frozenset(words)
