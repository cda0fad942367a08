"""Facts from the sentences of an English document: definitions, who did something, speech, causes, years.

A statement is split into subject, verb and the rest by closed lists of words (english.py), and only where they leave no
doubt: a sentence that does not fit gives no fact.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nanochat.conversations.english import (
    AFTER_A_VERB,
    AUXILIARIES,
    CONNECTIVES,
    DETERMINERS,
    FIRST_PERSON,
    FUNCTION_WORDS,
    PAST_VERBS,
    PERSONS,
    PREPOSITIONS,
    PRESENT_VERBS,
    PRONOUNS,
    SPEECH_VERBS,
)
from nanochat.conversations.sentences import content_words, is_whole, split_sentences, stands_alone, stem, words
from nanochat.conversations.structure import RawFact, is_narrative
from nanochat.documents.document import Document

MAX_SUBJECT = 7  # words
_ADVERBS = frozenset(
    "also often always never usually sometimes then soon once still just only even already today thus therefore "
    "therefore thereby almost oftentimes indeed now tomorrow yesterday tonight".split()
)
_PLURAL_VERBS = frozenset(
    "remain agree believe think say argue want know feel make suggest produce become seem".split()
)
_NOUNS_IN_LY = frozenset(
    "family fly supply reply ally july belly bully italy assembly anomaly monopoly butterfly jelly rally lily".split()
)
_PARTICIPLES = frozenset(
    "gone done come become run begun sung been worn torn born sworn drunk rung swum set put".split()
)
_TIMES = frozenset(
    "second minute hour day week month year century while time moment night morning evening few long many short little "
    "later several dinner lunch some".split()
)
_VAGUE = frozenset(
    "thing things something way ways example examples part kind type types result reason fact time times day morning "
    "evening night year case cases number people person place point idea problem question answer study studies student "
    "students chapter section figure table one rest end other others same step goal purpose use someone "
    "somebody everyone everybody anyone anybody nobody nothing everything experiment suit growth lesson deal".split()
)
_THINGS = frozenset(  # words that end as those for persons do
    "computer water paper power letter number layer filter order river weather winter summer tower container vector "
    "factor motor sensor error color colour flower tiger spider finger shoulder liver bladder matter center centre "
    "harbor sugar pepper fever member corner server pointer parameter buffer counter register processor monitor "
    "cover feather ladder laser lever meter chapter disaster border water paper mirror tumor receptor conductor".split()
)
_UNCLEAR = frozenset("he she it they him them this these those that such here there so".split())
_VAGUE_STEMS = frozenset(map(stem, _VAGUE))
_BE = frozenset("is are was were".split())
_SURE_PAST = frozenset(("was", "were", "had", "did"))
_STARTERS = (
    "when",
    "whenever",
    "if",
    "after",
    "before",
    "because",
    "once",
    "as soon as",
    "as long as",
    "until",
    "unless",
)
_CLAUSE_WORDS = frozenset(
    "and or but that which who whom when where while because as how what if to so until for".split()
)
_YEAR = re.compile(r"In (\d{4}), (?=[A-Z\w])")
_QUOTE = re.compile(r'["“]([^"“”]{8,200})["”]')


class Statement(NamedTuple):
    """A sentence in three parts, without the mark at its end."""

    subject: tuple[str, ...]
    verb: str
    rest: tuple[str, ...]
    is_name: bool

    @property
    def subject_text(self) -> str:
        """The subject as it stands within a sentence: its first word in lower case, unless it is a name."""
        is_common = self.subject[0].lower() in DETERMINERS
        first = self.subject[0].lower() if is_common and not self.is_name else self.subject[0]
        return " ".join((first, *self.subject[1:]))

    @property
    def predicate(self) -> str:
        """The verb and the rest."""
        return " ".join((self.verb, *self.rest))


def parse_statement(sentence: str, names: frozenset[str]) -> Statement | None:
    """Split a sentence into subject, verb and rest, or return None if there is a doubt. `names`: known proper names.

    >>> parse_statement("The old king gave his crown to Mia.", frozenset())
    Statement(subject=('The', 'old', 'king'), verb='gave', rest=('his', 'crown', 'to', 'Mia'), is_name=False)
    """
    tokens = sentence.rstrip(".!").split()
    lower = [token.lower().strip("\"'“”‘’,;:()") for token in tokens]
    for index in range(1, min(MAX_SUBJECT + 1, len(tokens) - 1)):
        if not tokens[index - 1][-1].isalnum():
            return None
        if _is_verb(lower, index):
            has_bracket = any("(" in token for token in tokens[: index + 1])
            is_plain = tokens[index][-1].isalnum() and not has_bracket and not _has_later_verb(tokens, lower, index)
            return _statement(tokens, lower, index, names) if is_plain else None
        if lower[index] in FUNCTION_WORDS - {"of", "the", "a", "an", "and"}:
            return None
    return None


def is_adverb(word: str) -> bool:
    """Return True for an adverb that may stand between subject and verb, in lower case.

    >>> is_adverb("slowly"), is_adverb("family"), is_adverb("often")
    (True, False, True)
    """
    return word in _ADVERBS or (word.endswith("ly") and len(word) > 4 and word not in _NOUNS_IN_LY)


def _is_past_form(word: str) -> bool:
    """Return True for a past tense or a participle; "need" and "red" are none."""
    return word in PAST_VERBS or (word.endswith("ed") and not word.endswith("eed") and len(word) > 3)


def _is_verb(lower: Sequence[str], index: int) -> bool:
    word, following = lower[index], lower[index + 1]
    if word in AUXILIARIES:
        return True
    if not (_is_past_form(word) or word in PRESENT_VERBS):
        return False
    if following == "by" and word.endswith("ed"):
        return False  # "incentives offered by cities include ..."
    if following == "and" and not any(
        _is_past_form(other) for other in lower[index + 2 : index + 4] if "-" not in other
    ):
        return False  # "mentored and non-mentored individuals"
    return (following in AFTER_A_VERB or is_adverb(following)) and lower[index - 1] not in DETERMINERS | PREPOSITIONS


def _has_later_verb(tokens: Sequence[str], lower: Sequence[str], index: int) -> bool:
    """Return True if a verb in -ed may be a participle: "territories placed in trust attained ..."."""
    if lower[index] in AUXILIARIES | PRESENT_VERBS:
        return False
    for place in range(index + 1, len(tokens)):
        word = lower[place]
        if word in ("and", "or") and any(other in _BE for other in lower[place:]):
            return True  # "the battery used in cars and vans is ..."
        if word in _CLAUSE_WORDS:
            return False
        if word in AUXILIARIES or _is_past_form(word):
            return True
        if not tokens[place][-1].isalnum():
            return False
    return False


def _statement(tokens: list[str], lower: Sequence[str], index: int, names: frozenset[str]) -> Statement | None:
    start = index  # of the verb with the adverbs before it
    while start > 1 and is_adverb(lower[start - 1]):
        start -= 1
    subject, plain = tokens[:start], lower[:start]
    is_name = tokens[0] in names and all(
        token in names or token[0].isupper() or word in ("of", "the", "and")
        for token, word in zip(subject, plain, strict=True)
    )
    if is_name and plain[-1] not in ("of", "the", "and"):
        return Statement(tuple(subject), " ".join(tokens[start : index + 1]), tuple(tokens[index + 1 :]), True)
    has_noun = plain[0] in DETERMINERS and len(plain) > 1 and plain[1] not in FUNCTION_WORDS
    is_bare = len(plain) <= 3 and not (set(plain) & (FUNCTION_WORDS | CONNECTIVES)) and not plain[0].endswith("ly")
    is_common = all(token.islower() or token[0].isdigit() for token in subject[1:])
    is_clear = plain[-1] not in FUNCTION_WORDS and plain[0] not in _ADVERBS | PRONOUNS | FIRST_PERSON
    if set(plain[1:]) & _PLURAL_VERBS:  # "many philosophers remain unconvinced by ..."
        return None
    if not is_clear or not is_common or not (has_noun or is_bare) or (plain.count("and") and plain[0] in DETERMINERS):
        return None
    return Statement(tuple(subject), " ".join(tokens[start : index + 1]), tuple(tokens[index + 1 :]), False)


class Statements:
    """The sentences of a document, and the names in them."""

    def __init__(self, document: Document) -> None:
        self._sentences = [
            (sentence, block.headings)
            for block in document.blocks
            if block.kind == "paragraph"
            for sentence in split_sentences(block.text)
        ]
        self.names, self._small = _names([sentence for sentence, _ in self._sentences])
        self._is_story = is_narrative(document)
        self._counts = Counter(word for sentence, _ in self._sentences for word in content_words(sentence))

    def facts(self) -> Iterator[RawFact]:
        """Yield the facts of all sentences, in the order of the document."""
        for sentence, headings in self._sentences:
            if not is_whole(sentence):
                continue
            found = list(_speech(sentence))
            if not found and stands_alone(sentence) and '"' not in sentence and "“" not in sentence:
                found = [*_cause(sentence, self.names), *_year(sentence)] or list(self._statement_facts(sentence))
            for kind, slots in found:
                yield kind, slots, (sentence,), headings, " "

    def _statement_facts(self, sentence: str) -> Iterator[tuple[str, dict[str, str]]]:
        statement = parse_statement(sentence, self.names)
        if statement is None or len(statement.rest) > 28:
            return
        statement = self._with_known_first_word(statement)
        if statement is None:
            return
        yield from _definition(statement)
        verb = statement.verb.lower().split()[-1]
        head = stem(_head(statement))
        if head not in _VAGUE_STEMS and _is_clear(statement.rest):
            if verb in ("has", "have", "had") and statement.rest[0].lower() not in ("been", "to", "not"):
                if not any(map(_is_participle, statement.rest[:2])):
                    do = {"has": "does", "have": "do", "had": "did"}[verb]
                    yield "has", {"do": do, "subject": statement.subject_text}
            elif verb in ("can", "could") and statement.rest[0].lower() not in ("be", "not", "also"):
                yield "can", {"can": verb, "subject": statement.subject_text}
            if self._counts[head] == 1 and not statement.is_name and self._is_specific(statement):
                yield "about", {"subject": statement.subject_text}
        if slots := _agent(statement, self._is_story):
            yield "agent", slots

    def _is_specific(self, statement: Statement) -> bool:
        """Return True unless a subject is one of many of its name, such as "the system" of a textbook."""
        first = statement.subject[0].lower()
        is_one_of_many = first == "the" and len(statement.subject) == 2 and not self._is_story
        return not is_one_of_many and first not in ("any", "each", "every", "another", "both")

    def _with_known_first_word(self, statement: Statement) -> Statement | None:
        """Write the first word of a bare subject in lower case if the document does so; in a story it may be a name."""
        first = statement.subject[0]
        if statement.is_name or first.lower() in DETERMINERS:
            return statement
        if first.lower() in self._small or first.lower().removesuffix("s") in self._small:
            return statement._replace(subject=(first.lower(), *statement.subject[1:]))
        is_name = self._is_story and not first.endswith("ing")
        return statement._replace(is_name=True) if is_name or first.isupper() else None


def _names(sentences: Sequence[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Return the words that are capitalised within sentences and never in lower case, and those in lower case."""
    inner: set[str] = set()
    small: set[str] = set()
    for sentence in sentences:
        tokens = [token.strip("\"'“”‘’,;:.!?()") for token in sentence.split()]
        small.update(token for token in tokens if token.islower())
        inner.update(token for token in tokens[1:] if token[:1].isupper() and token[1:].islower())
    names = (name for name in inner if name.lower() not in small and name.lower() not in FUNCTION_WORDS)
    return frozenset(names), frozenset(small)


def _head(statement: Statement) -> str:
    """Return the last word of a subject before "of", in lower case."""
    plain = [word.lower() for word in statement.subject]
    return plain[plain.index("of") - 1] if "of" in plain[1:] else plain[-1]


def _is_participle(word: str) -> bool:
    plain = word.lower().strip(",.;:")
    return plain.endswith(("ed", "en", "ly", "own", "awn")) or plain in PAST_VERBS | _PARTICIPLES


def _is_clear(tokens: Sequence[str]) -> bool:
    """Return True if no word of a predicate stands for something of another sentence."""
    return not _UNCLEAR.intersection(word.lower().strip(".,;:!?'’") for word in tokens)


def _definition(statement: Statement) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield a definition: "X is a ...", "X refers to ...", "X is defined as ..." with a term that can be asked for."""
    verb, rest = statement.verb.lower(), [word.lower() for word in statement.rest]
    if statement.subject[0].lower() in DETERMINERS - {"a", "an", "the"} or len(statement.subject) > 5 or len(rest) < 3:
        return
    if stem(_head(statement)) in _VAGUE_STEMS:
        return
    is_kind = (
        verb in ("is", "are", "was", "were")
        and rest[0] in ("a", "an", "the", "any")
        and rest[1] not in ("same", "few", "lot")
    )
    is_called = verb in ("is", "are") and " ".join(rest[:2]) in ("defined as", "known as")
    is_meaning = verb == "refers" and rest[0] == "to"
    is_the = statement.subject[0].lower() == "the"
    if not (is_kind or is_called or is_meaning) or (is_the and "of" not in rest and "of" not in statement.subject):
        return
    term = statement.subject_text
    is_plural = verb in ("are", "were")
    be = ("was" if verb == "was" else "were") if verb in ("was", "were") else ("are" if is_plural else "is")
    yield "definition", {"term": term, "is": be}


def _agent(statement: Statement, is_story: bool) -> dict[str, str] | None:
    """Return the slots of "Who did that?", or None where it would be unclear who or what is asked for."""
    verb = statement.verb.lower().split()[-1]
    if verb in ("is", "are", "were", "do", "does", "did", "have", "been") or not _is_clear(statement.rest):
        return None
    if not 3 <= len(statement.rest) <= 24 or len(content_words(" ".join(statement.rest))) < 2:
        return None
    rest = [word.lower() for word in statement.rest]
    if verb == "was" and (rest[0] in ("a", "an", "the") or len(rest) < 4 or "and" in rest):
        return None
    if ";" in statement.predicate or ":" in statement.predicate or statement.subject[0].lower() == "any":
        return None
    head = stem(_head(statement))
    is_person = (
        _head(statement) in PERSONS
        or _head(statement).removesuffix("s") in PERSONS
        or head.endswith(("ist", "ian", "woman", "women"))
    )
    if not is_person and head.endswith(("er", "or", "ee", "yst")) and head not in _THINGS:
        return None  # a person or a thing: the list does not say
    if statement.is_name:
        is_person = is_story or (len(statement.subject) > 1 and verb in SPEECH_VERBS)
        if not is_person:
            return None
    elif head in _VAGUE_STEMS - {"person"}:
        return None
    return {"who": "Who" if is_person else "What", "predicate": statement.predicate}


def _speech(sentence: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield who said a quotation, and what that speaker said: `"...," said X.` or `X said, "..."`."""
    quotes = list(_QUOTE.finditer(sentence))
    if not 1 <= len(quotes) <= 2 or len(words(quotes[0][1])) < 3 or not quotes[0][1][0].isupper():
        return
    first = quotes[0]
    before = sentence[: first.start()].split()
    after = sentence[first.end() : quotes[1].start() if len(quotes) == 2 else len(sentence)].split()
    found = None
    if before and before[-1].strip(",:").lower() in SPEECH_VERBS and before[-1] != before[-1].strip(",:"):
        speaker = _speaker(before[:-1])
        is_all = all(
            word.lower().endswith("ly") or word.lower() in _ADVERBS | {"again"}
            for word in before[len(speaker.split()) : -1]
        )
        found = (speaker if is_all else ""), before[-1]
    elif not before and first[1].endswith((",", "!", "?", ".", ",'")):
        place = next(
            (index for index, word in enumerate(after[:5]) if word.strip(",.;:").lower() in SPEECH_VERBS), None
        )
        if place is not None:
            found = _speaker(after[:place] if place else after[1:]), after[place]
    if found and found[0]:
        verb = "asked" if found[1].strip(",.;:").lower() in ("asked", "asks", "wondered") else "said"
        yield "speech", {"said": verb, "quote": first[1].strip().rstrip(",.")}
        yield "said", {"speaker": found[0]}


def _speaker(tokens: Sequence[str]) -> str:
    """Return the name or noun that tokens begin with, up to the first comma, or an empty text if it is not clear.

    >>> _speaker(["the", "old", "woman", "sadly."]), _speaker(["Mia", "Brown,", "laughing."]), _speaker(["she."])
    ('the old woman', 'Mia Brown', '')
    """
    name: list[str] = []
    for token in tokens[:6]:
        bare = token if len(token) == 2 and token[0].isupper() else token.rstrip(",.;:!?")
        plain = bare.lower()
        is_part = plain not in FUNCTION_WORDS and not plain.endswith("ly") and bare.rstrip(".").isalpha()
        is_determiner = not name and plain in DETERMINERS
        if not (is_part or is_determiner):
            break
        if name and name[0][:1].isupper() and name[0].lower() not in DETERMINERS and not bare[:1].isupper():
            break
        name.append(plain if is_determiner else bare)
        if token != bare:
            break
    if any(word.lower() in PAST_VERBS or word.endswith(("ed", "ing")) for word in name):
        return ""
    rest = tokens[len(name) :][:1]
    is_noun = len(name) > 1 and name[0] in DETERMINERS
    is_name = bool(name) and all(token[:1].isupper() for token in name) and name[0].lower() not in CONNECTIVES
    is_complete = not rest or (
        rest[0].rstrip(",.").isalpha() and (rest[0].endswith("ly") or rest[0].lower() in FUNCTION_WORDS)
    )
    is_complete = (
        is_complete or (bool(rest) and rest[0].rstrip(",.;:!?").endswith("ly")) or tokens[len(name) - 1][-1] in ",.;:"
    )
    return " ".join(name) if (is_noun or is_name) and is_complete and len(name) <= 4 else ""


def _cause(sentence: str, names: frozenset[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield what happens "when ...": a clause at the beginning, ended by a comma, or the reason after "because"."""
    lower = sentence.lower()
    starter = next((word for word in _STARTERS if lower.startswith(f"{word} ")), None)
    if starter is not None:
        clause, comma, main = sentence.partition(", ")
        if comma and _is_clause(clause[len(starter) :].split()) and _is_main_clause(main.split()):
            is_past = _is_past(main, clause)
            condition = clause[0].lower() + clause[1:]
            yield "cause", {"happens": "happened" if is_past else "happens", "condition": condition}
        return
    claim, because, _ = sentence.partition(" because ")
    if because and "," not in claim and 4 <= len(words(claim)) <= 20 and not sentence.count(" because ") > 1:
        first = claim.split()[0]
        claim = claim.removesuffix(" possibly").removesuffix(" probably").removesuffix(" simply").removesuffix(" only")
        if _is_clear(claim.split()):
            yield (
                "reason",
                {
                    "claim": claim
                    if first in names or (len(first) > 1 and first[1:] != first[1:].lower())
                    else claim[0].lower() + claim[1:]
                },
            )


def _is_clause(tokens: Sequence[str]) -> bool:
    plain = [token.lower() for token in tokens]
    if not plain or plain[0].endswith("ing"):  # "when writing letters", which advice follows
        return False
    is_event = bool(content_words(" ".join(tokens)) - _TIMES)  # not "after a few minutes"
    return 3 <= len(tokens) <= 20 and plain[0] not in FIRST_PERSON and _is_clear(tokens) and is_event


def _is_main_clause(tokens: Sequence[str]) -> bool:
    plain = [token.lower().strip(".,;:!") for token in tokens]
    if len(plain) < 3 or plain[0] in ("and", "or", "but", "which", "who", "especially", "such", "including", "as"):
        return False
    is_verb = [word in AUXILIARIES | PAST_VERBS | PRESENT_VERBS or word.endswith("ed") for word in plain[1:8]]
    return any(is_verb) or plain[0] in ("press", "use", "run", "try", "set", "check", "make", "add", "see")


def _is_past(main: str, condition: str) -> bool:
    """Return True if what happens is told in the past. A verb in -ed counts if the condition is in the past as well."""
    was_past = any(word in _SURE_PAST or _is_past_form(word) for word in words(condition))
    for word in words(main)[1:10]:
        if word in _SURE_PAST or word in PAST_VERBS:
            return True
        if word in AUXILIARIES | PRESENT_VERBS:
            return False
        if _is_past_form(word):
            return was_past
    return was_past


def _year(sentence: str) -> Iterator[tuple[str, dict[str, str]]]:
    match = _YEAR.match(sentence)
    rest = sentence[match.end() :].split() if match else []
    if match and rest and rest[0].lower() not in FIRST_PERSON | PRONOUNS:
        yield "year", {"year": match[1]}
