"""Facts from the structure of a document: headings, definitions, lists, tables, questions with answers, the summary."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from nanochat.conversations.english import AUXILIARIES, EMPTY_HEADINGS, PREPOSITIONS, QUESTION_WORDS
from nanochat.conversations.sentences import (
    MAX_SENTENCE,
    content_words,
    is_whole,
    letter_share,
    split_sentences,
    squeeze,
    stands_alone,
    words,
)
from nanochat.documents.document import Block, Document

RawFact = tuple[str, dict[str, str], tuple[str, ...], tuple[str, ...], str]  # kind, slots, sentences, headings, joint

MAX_LIST_CHARS = 400
MAX_LIST_ITEMS = 8
MAX_HEADING = 80  # characters
_ABOUT_THE_FILE = ("this story", "story was", "translat", "illustrat", "author", "suitable for", "license", "glossary")
_EXERCISE_VERBS = frozenset("discuss describe explain identify analyze analyse define compare list summarize".split())
_CANNOT_END = frozenset("is are was were the a an of to that let and or by with for from".split())
_UNCLEAR = frozenset("he she it they this these those him them his her its their i we my our such".split())
_NOTES = frozenset("note important warning tip example target see hint caution attention todo".split())
_CREDITS = frozenset(  # terms of facts about the file, in lists such as "Text: ..., Illustration: ..."
    "text illustration illustrations illustrator adaptation translation translator translated author authors license "
    "licence language source copyright version editor publisher photography".split()
)
_QUESTION_LABEL = re.compile(r"(?:q|question)\s?\d{0,3}\s?[:.)]\s?", re.IGNORECASE)
_ANSWER_LABEL = re.compile(r"(?:a|answer)\s?\d{0,3}\s?[:.)]\s?", re.IGNORECASE)
_SECTION_NUMBER = re.compile(r"(?:chapter\s|section\s)?[\dIVX]{1,4}(?:\.\d{1,3}){0,4}[.):]?\s", re.IGNORECASE)
_LIST_INTRO = re.compile(
    r"((?:the|some|these)\s[\w\s,'’-]{3,60}?)\s(is|are|were)(?:\sas\sfollows|\sthe\sfollowing)?:", re.I
)


def structure_facts(document: Document, is_english: bool) -> Iterator[RawFact]:
    """Yield the facts of a document's structure. Texts that are not English give section facts alone."""
    blocks = document.blocks
    yield from _sections(document, is_english)
    if not is_english:
        return
    yield from _summary(document)
    if is_narrative(document):
        yield from _next_sentences(document)
    for index, block in enumerate(blocks):
        before = blocks[index - 1] if index else None
        if block.kind == "definition":
            yield from _definition(block)
        elif block.kind == "list":
            yield from _list(block, before)
        elif block.kind == "table":
            yield from _table(block)
        elif block.kind == "paragraph":
            yield from _labelled_question(block, blocks[index + 1] if index + 1 < len(blocks) else None)
            yield from _question_in_text(block)


# --- headings ---------------------------------------------------------------------------------------------------------


def clean_heading(text: str) -> str:
    """Return a heading without its number and closing colon, or an empty text if it says nothing by itself.

    >>> clean_heading("2.3 Conflict Theory"), clean_heading("Introduction"), clean_heading("* * *")
    ('Conflict Theory', '', '')
    """
    text = squeeze(text).rstrip(":#.*").lstrip("-•*· ")
    if match := _SECTION_NUMBER.match(text):
        text = text[match.end() :]
    plain = "-".join(words(text))
    if sum(character.isalpha() for character in text) < 2 or len(text) > MAX_HEADING or plain in EMPTY_HEADINGS:
        return ""
    found = words(text)
    is_plain = all(part.isalpha() for part in text.split())
    is_broken = (text[0].islower() and (is_plain or len(found) > 3)) or found[-1] in _CANNOT_END
    if is_broken or (len(found) > 3 and found[0] in _EXERCISE_VERBS):
        return ""
    return "" if any(mark in text for mark in '{}|<>\\"“”') or "http" in text else text


def is_question(text: str) -> bool:
    """Return True for an English question that can be asked as it stands: its first word is one of questions."""
    first = (words(text) or [""])[0]
    return text.endswith("?") and first in QUESTION_WORDS | AUXILIARIES and len(words(text)) >= 3


def _sections(document: Document, is_english: bool) -> Iterator[RawFact]:
    blocks = document.blocks
    for index, block in enumerate(blocks[:-1]):
        heading = clean_heading(block.text) if block.kind == "heading" else ""
        following = next((other for other in blocks[index + 1 : index + 4] if other.kind != "code"), block)
        if not heading or following.kind != "paragraph":
            continue
        sentences = _lead(following.text, is_english)
        is_title = block.level <= 1 and not block.headings and heading == clean_heading(document.title)
        if is_title and is_english and not is_question(heading):  # the summary asks for it
            continue
        if sentences and is_english and is_question(heading):
            if is_narrative(document) and not _is_answer(heading, sentences[0]):
                continue
            yield "faq", {"question": heading}, sentences, block.headings, " "
        elif sentences and not heading.endswith("?"):
            slots = {"heading": heading}
            if parent := next((clean_heading(above) for above in reversed(block.headings) if clean_heading(above)), ""):
                slots["parent"] = parent
            yield "section", slots, sentences, (*block.headings, block.text), " "


def _lead(text: str, is_english: bool) -> tuple[str, ...]:
    """Return the first sentence of a paragraph, and the second if both are short; none if it cannot stand alone."""
    sentences = split_sentences(text)[:2]
    if not is_english:  # no grammar: one sentence of a sensible length
        has_code = bool(sentences) and any(mark in sentences[0] for mark in "{}<>=|`\\_#")
        is_text = sentences and letter_share(sentences[0]) >= 0.75 and not has_code and "http" not in sentences[0]
        return tuple(sentences[:1]) if is_text and 8 <= len(sentences[0]) <= MAX_SENTENCE else ()
    if not sentences or not stands_alone(sentences[0], allow_first_person=True):
        return ()
    if len(sentences) == 2 and len(words(" ".join(sentences))) <= 30 and is_whole(sentences[1]):
        return tuple(sentences)
    return tuple(sentences[:1])


def _summary(document: Document) -> Iterator[RawFact]:
    """Yield the summary of a document with a title, its first sentences; for a story also its last sentence."""
    paragraphs = [block for block in document.blocks if block.kind == "paragraph"]
    if not paragraphs:
        return
    sentences = split_sentences(" ".join(block.text for block in paragraphs[:4]))
    lead = sentences[:2] if len(words(" ".join(sentences[:2]))) <= 40 else sentences[:1]
    if lead and all(map(is_whole, lead)) and stands_alone(lead[0], allow_first_person=True):
        yield "summary", {}, tuple(lead), (), " "
    if is_narrative(document):
        last = [sentence for block in paragraphs[-3:] for sentence in split_sentences(block.text)][-1:]
        is_about_itself = last and any(word in last[0].lower() for word in _ABOUT_THE_FILE)
        is_speech = last and last[0].startswith(('"', "“"))  # without the speaker, who stands before it
        if last and len(sentences) > 3 and is_whole(last[0]) and not is_about_itself and not is_speech:
            yield "ending", {}, tuple(last), (), " "


def _next_sentences(document: Document) -> Iterator[RawFact]:
    """Yield what follows a sentence of a story: the sentence after it, which may begin with "he" or "then"."""
    for block in document.blocks:
        previous = ""  # within a paragraph: a passage that is searched for may end with it
        for sentence in split_sentences(block.text) if block.kind == "paragraph" else ():
            is_good = is_whole(sentence) and not any(mark in sentence for mark in '"“”?')
            is_good = is_good and not any(word in sentence.lower() for word in _ABOUT_THE_FILE)
            if is_good and previous and 4 <= len(words(previous)) <= 20:
                yield "next", {"previous": previous.rstrip(".!")}, (sentence,), block.headings, " "
            previous = sentence if is_good else ""


def is_narrative(document: Document) -> bool:
    """Return True for a story: its sentences are short, and it has speech or is about what someone did."""
    text = " ".join(block.text for block in document.blocks if block.kind == "paragraph")[:20_000]
    found = words(text)
    if len(found) < 30 or sum(block.kind == "heading" for block in document.blocks) > 3:
        return False
    sentences = split_sentences(text)
    persons = sum(
        word in ("he", "she", "i", "they", "said", "was", "were", "did", "my", "his", "her") for word in found
    )
    return len(found) <= 16 * len(sentences) and persons >= 0.04 * len(found)


# --- definitions, lists, tables ---------------------------------------------------------------------------------------


def _definition(block: Block) -> Iterator[RawFact]:
    if len(block.items) == 2 and (term := clean_heading(block.items[0])):
        answer = squeeze(block.items[1])
        is_usable = len(words(answer)) >= 3 and len(answer) <= MAX_SENTENCE and term.lower() not in _NOTES
        is_noun = words(answer)[:1] in (["a"], ["an"], ["the"])  # else it may be a rule, an example, a remark
        is_plural = term.endswith("s") and not term.endswith("ss")
        if is_usable and is_noun and not is_plural:
            yield "definition", {"term": term, "is": "is"}, (answer,), block.headings, " "
        elif is_usable:
            yield "about", {"subject": term}, (answer,), block.headings, " "


def _list(block: Block, before: Block | None) -> Iterator[RawFact]:
    items = tuple(squeeze(item) for item in block.items)
    if not len(items) >= 2 or _is_navigation(items) or any("{{" in item or "<%" in item for item in items):
        return
    if all(_key_value(item)[0] for item in items):
        for item in items:
            term, meaning = _key_value(item)
            if len(words(meaning)) >= 3 and len(item) <= MAX_SENTENCE:
                yield "about", {"subject": term}, (item,), block.headings, " "
        return
    is_long = len(items) > MAX_LIST_ITEMS or sum(map(len, items)) > MAX_LIST_CHARS
    if is_long or any(len(words(item)) < 1 for item in items):
        return
    intro = split_sentences(before.text)[-1] if before is not None and before.kind == "paragraph" else ""
    if match := _LIST_INTRO.fullmatch(intro):
        phrase = match[1][0].lower() + match[1][1:]
        yield "list", {"items": f"What {match[2].lower()} {phrase}"}, items, block.headings, "\n- "
    elif heading := clean_heading(block.headings[-1]) if block.headings else "":
        yield "list", {"heading": heading}, items, block.headings, "\n- "


def _is_navigation(items: Sequence[str]) -> bool:
    """Return True for a list of links, or of facts about the file such as its licence."""
    text = " ".join(items).lower()
    terms = {(words(item.partition(":")[0]) or [""])[0] for item in items if ":" in item}
    if len(_CREDITS & terms) >= 2:
        return True
    has_marks = any(mark in text for mark in ("http", "](", "license:", "licence:", "language:", "©", "www."))
    return has_marks or all(len(words(item)) <= 1 for item in items)


def _key_value(item: str) -> tuple[str, str]:
    """Return the term and the meaning of an item such as "seed: the first random number", or two empty texts."""
    for mark in (": ", " – ", " — ", " - "):
        term, found, meaning = item.partition(mark)
        if found and 1 <= len(words(term)) <= 4 and len(term) <= 40 and meaning and term.lower() not in _NOTES:
            return term.strip("*`_ "), meaning
    return "", ""


def _table(block: Block) -> Iterator[RawFact]:
    rows = [tuple(squeeze(cell) for cell in row) for row in block.rows]
    if len(rows) < 2 or len(rows[0]) < 2 or any(len(row) != len(rows[0]) for row in rows):
        return
    names = [row[0] for row in rows[1:]]
    for row in rows[1:]:
        if not words(row[0]) or len(row[0]) > 60 or names.count(row[0]) > 1:
            continue
        for column, cell in zip(rows[0][1:], row[1:], strict=True):
            if 1 <= len(words(column)) <= 6 and words(cell) and len(cell) <= MAX_SENTENCE and len(column) <= 60:
                is_noun = not set(words(column)) & (QUESTION_WORDS | AUXILIARIES | PREPOSITIONS)
                slots = {"column": _lower_words(column)} if is_noun else {"label": column}
                yield "table", {"row": row[0], **slots}, (cell,), block.headings, " "


def _lower_words(text: str) -> str:
    """Return a text with its words in lower case, but for abbreviations and others with inner capitals.

    >>> _lower_words("Use Case"), _lower_words("URL of API")
    ('use case', 'URL of API')
    """
    return " ".join(word if word[1:] != word[1:].lower() else word.lower() for word in text.split())


# --- questions that stand in the text ---------------------------------------------------------------------------------


def _labelled_question(block: Block, following: Block | None) -> Iterator[RawFact]:
    """Yield "Q: ... A: ..." of a paragraph, or of a paragraph and the one after it."""
    text = squeeze(block.text)
    label = _QUESTION_LABEL.match(text)
    if label is None:
        return
    question, mark, rest = text[label.end() :].partition("?")
    rest = rest.strip() or (squeeze(following.text) if following is not None and following.kind == "paragraph" else "")
    answer_label = _ANSWER_LABEL.match(rest)
    if not mark or answer_label is None:
        return
    sentences = split_sentences(rest[answer_label.end() :])[:2]
    if sentences and len(words(question)) >= 2 and sum(map(len, sentences)) <= 2 * MAX_SENTENCE:
        yield "faq", {"question": f"{question}?"}, tuple(sentences), block.headings, " "


def _question_in_text(block: Block) -> Iterator[RawFact]:
    """Yield a question of the text with the sentence after it, if that takes up most words of the question."""
    sentences = split_sentences(block.text)
    for question, answer in pairwise(sentences):
        if not is_question(question) or '"' in question or "“" in question or len(question) > 150:
            continue
        is_clear = not (_UNCLEAR | {"you", "your"}).intersection(words(question))
        if is_clear and _is_answer(question, answer) and stands_alone(answer):
            yield "faq", {"question": question}, (answer,), block.headings, " "


def _is_answer(question: str, answer: str) -> bool:
    """Return True if a sentence takes up at least half of the words of a question."""
    asked = content_words(question)
    return len(asked & content_words(answer)) >= max(1, (len(asked) + 1) // 2)
