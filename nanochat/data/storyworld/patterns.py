"""Tables for the parser, gathered from all that the writer can produce: patterns, phrases, values, vocabulary."""

from collections import defaultdict
from functools import cache, lru_cache

from nanochat.data.storyworld import documents, narrator, plots, sentences, world
from nanochat.data.storyworld.grammar import CHOICE_ITEMS, Item, Pattern, Phrase
from nanochat.data.storyworld.lexicon import NOUNS
from nanochat.data.storyworld.relations import RELATIONS

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
    """Split a pattern into its sentences, each with its closing mark."""
    parts: list[list[Item]] = [[]]
    for item in pattern:
        parts[-1].append(item)
        if item in (("w", "."), ("w", "!"), ("w", "?")):
            parts.append([])
    return [tuple(part) for part in parts if part]


@lru_cache(maxsize=1)
def sentence_patterns() -> tuple[Pattern, ...]:
    """Return every pattern of a whole narrative sentence."""
    patterns = [
        pattern
        for by_kind in (narrator.JOIN_PATTERNS, narrator.WRAP_PATTERNS)
        for marked_patterns in by_kind.values()
        for _, pattern in marked_patterns
    ]
    patterns += documents.compile_lines(sentences.OPENINGS)
    patterns += documents.compile_lines(sentences.ENDINGS)
    for table in (
        documents.HABIT_PATTERNS,
        documents.PORTRAITS,
        documents.THING_INTROS,
        documents.PORTRAIT_ENDS,
        documents.WALKS,
        documents.STOPS,
        documents.WALK_ENDS,
        documents.MEETINGS,
        documents.CLASSROOM,
        documents.BELLS,
    ):
        patterns += table
    full_stop = (("w", "."),)
    for relation in RELATIONS.values():
        for statements in relation.statements.values():
            patterns += [statement + full_stop for statement in statements]
    return tuple(dict.fromkeys(part for pattern in patterns for part in split_sentences(pattern)))


@lru_cache(maxsize=1)
def utterance_patterns() -> tuple[tuple[Pattern, str, str], ...]:
    """Return every pattern of a spoken sentence: (items without the closing mark, mark, kind of speech or "")."""
    utterances = [
        (sentence.items, sentence.mark, "")
        for table in (
            documents.ANSWERS,
            documents.QUESTIONS,
            documents.CURIOUS,
            documents.PRAISE,
            documents.PARTINGS,
        )
        for speech in table
        for sentence in speech
    ]
    for step in _all_steps():
        utterances += [(utterance.items, utterance.mark, "") for utterance in step.utterances if not utterance.kind]
    for kind, marked_patterns in narrator.SPEECH_PATTERNS.items():
        utterances += [(pattern[:-1], pattern[-1][1], kind) for _, pattern in marked_patterns]
    return tuple(dict.fromkeys(utterances))


def _all_steps() -> list[plots.Step]:
    return [step for plot in plots.STORY_PLOTS for beat in plot.beats for way in beat.ways for step in way]


@lru_cache(maxsize=1)
def phrases() -> tuple[tuple[Phrase, ...], tuple[Phrase, ...]]:
    """Return (all verb phrases, all clauses whose subject is no character), without duplicates."""
    all_phrases = list(documents.HABITS)
    for step in _all_steps():
        all_phrases += [phrase for clause in step.clauses for phrase in clause.phrases]
        all_phrases += [phrase for utterance in step.utterances for phrase in utterance.phrases]
    unique: dict[object, Phrase] = {}
    for phrase in all_phrases:
        # The letter of a role makes no difference to the parser.
        items = tuple(item[:1] + item[2:] if item[0] == "slot" else item for item in phrase.forms["base"])
        unique.setdefault((phrase.is_personal, items, phrase.subjects), phrase)
    personal = tuple(phrase for phrase in unique.values() if phrase.is_personal)
    impersonal = tuple(phrase for phrase in unique.values() if not phrase.is_personal)
    return personal, impersonal


# first word ("" for any) -> (items, phrase, number: "s", "p" or "" for both)
PhraseIndex = dict[str, list[tuple[Pattern, Phrase, str]]]


@cache
def phrase_index(is_personal: bool, form: str) -> PhraseIndex:
    """Return the phrases by the first word of a form; "past" includes the plural past."""
    index: PhraseIndex = defaultdict(list)
    for phrase in phrases()[0 if is_personal else 1]:
        forms = [(phrase.forms[form], "")]
        if form == "past" and phrase.forms["past"] != phrase.forms["pastp"] and is_personal:
            forms = [(phrase.forms["past"], "s"), (phrase.forms["pastp"], "p")]
        for items, number in forms:
            for word in first_words(items):
                index[word].append((items, phrase, number))
    return index


def first_words(items: Pattern) -> set[str]:
    """Return the words that a pattern can begin with; "" means any word."""
    if items[0][0] == "w":
        return {items[0][1]}
    if items[0][0] != "cat":
        return {""}
    words: set[str] = set()
    for option in CHOICE_ITEMS[items[0][1]]:
        words |= first_words(option or items[1:])
    return words


@lru_cache(maxsize=1)
def sentence_index() -> dict[str, list[Pattern]]:
    """Return the sentence patterns by their first words."""
    index: dict[str, list[Pattern]] = defaultdict(list)
    for pattern in sentence_patterns():
        for word in first_words(pattern):
            index[word].append(pattern)
    return index


@cache
def value_phrases(kind: str) -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """Return the phrases of a kind of word, or of a relation's values ("value:home"), by first word: (words, value)."""
    values = RELATIONS[kind.removeprefix("value:")].values.values() if kind.startswith("value:") else WORD_KINDS[kind]
    index: dict[str, list[tuple[tuple[str, ...], str]]] = defaultdict(list)
    for value in dict.fromkeys(values):
        words = tuple("a" if word == "an" else word for word in value.split())
        index[words[0]].append((words, value))
    return index


@lru_cache(maxsize=1)
def vocabulary() -> frozenset[str]:
    """Return every word that can occur, in the case that it has inside a sentence."""
    words: set[str] = set(
        "a the some his her their my your our he she they it I me you him them us and who two friends of both".split()
    )

    def add_words(items: Pattern) -> None:
        words.update(item[1] for item in items if item[0] == "w")

    for pattern in (*sentence_patterns(), *(items for items, _, _ in utterance_patterns())):
        add_words(pattern)
    personal, impersonal = phrases()
    for phrase in (*personal, *impersonal):
        for items in phrase.forms.values():
            add_words(items)
    for relation in RELATIONS.values():
        for pattern in (*relation.questions, *(p for rows in relation.statements.values() for p in rows)):
            add_words(pattern)
        words.update(word for pair in relation.values.items() for text in pair for word in text.split())
    for options in CHOICE_ITEMS.values():
        for items in options:
            add_words(items)
    words.update(word for values in WORD_KINDS.values() for value in values for word in value.split())
    words.update(word for noun in NOUNS.values() for word in (noun.word, *noun.adjectives))
    words.update(place.at for place in world.PLACES.values())
    return frozenset(words)
