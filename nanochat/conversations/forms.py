"""Forms of question for each kind of fact: a core, which asks for the fact, and a frame, which may name the document.

Each kind has at least ten cores. The last two of each, and the last frame, are kept for the test questions, so that a
model is tested on wordings it has not seen. A core begins with a word of its own, so that a frame can write it in lower
case. Texts in other languages than English have cores without words.

    "Who {predicate}?"  and  'According to "{title}", {question}'  ->  'According to "The Race", who won the prize?'
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from nanochat.conversations.facts import Fact

NUM_HELD_OUT = 2  # cores of each kind, for the test questions only

_ABOUT = (
    "What do you know about {}?|Tell me about {}.|What can you tell me about {}?|What is said about {}?|Describe {}."
    "|Give me a fact about {}.|I want to know something about {}.|What do the documents say about {}?"
    "|Please say something about {}.|Say what you know of {}.|What is there to know about {}?"
    "|What have you read about {}?"
)
_CORES = {
    "section": "What do the documents say about {heading}?|Tell me about {heading}.|What do you know about {heading}?"
    "|What is said under the heading {heading}?|Explain {heading}.|Give me the main point of {heading}."
    "|I would like to learn about {heading}.|What should I know about {heading}?|Can you say something about {heading}?"
    "|Start with {heading}, please.|What can you tell me about {heading}?|How is the part on {heading} introduced?",
    "definition": "What {is} {term}?|Tell me what {term} {is}.|Can you explain what {term} {is}?"
    "|What do you know about {term}?"
    "|Explain {term}.|Describe {term}.|I do not know what {term} {is}.|Say in a sentence what {term} {is}."
    "|Do you know what {term} {is}?|Please tell me about {term}.|What can you tell me about {term}?"
    "|I wonder what {term} {is}.",
    "list": "What is listed under {heading}?|Which points are listed under {heading}?|Give me the list under {heading}."
    "|Name what is listed under {heading}.|What are the points under {heading}?|Show me the list under {heading}."
    "|List everything under {heading}.|Tell me all points under {heading}.|Which items stand under {heading}?"
    "|Enumerate what stands under {heading}.|Can you list what is under {heading}?"
    "|What does the list under {heading} say?",
    "items": "{items}?|Tell me: {items_lower}?|Please list them: {items_lower}?|Do you know the answer? {items}?"
    "|I ask you: {items_lower}?|Name them all: {items_lower}?|One question: {items_lower}?|Can you name them? {items}?"
    "|Now tell me this: {items_lower}?|Say it in a list: {items_lower}?|List them for me: {items_lower}?"
    "|Here is my question: {items_lower}?",
    "table": "What does the table give as the {column} of {row}?|Tell me the {column} of {row}."
    "|Give the {column} for {row}."
    "|What does the table say about the {column} of {row}?|For {row}, what is the {column}?"
    "|Which {column} does {row} have?"
    "|I need the {column} of {row}.|Look up the {column} of {row}.|What stands in the column {column} for {row}?"
    "|Can you find the {column} of {row}?|Find the {column} of {row}.|What {column} is given for {row}?",
    "cell": 'What does the column "{label}" say for {row}?|For {row}, what stands under "{label}"?'
    '|Look up {row} under "{label}".'
    '|In the table, what is under "{label}" for {row}?|Tell me what the table says under "{label}" for {row}.'
    '|Find the entry "{label}" of {row}.|What is the entry of {row} under "{label}"?'
    '|Give the entry "{label}" for {row}.'
    '|Read me the column "{label}" for {row}.|Say what stands under "{label}" for {row}.'
    '|Which entry does {row} have under "{label}"?|I need the entry "{label}" of {row}.',
    "faq": "{question}|Tell me: {question_lower}|I have a question: {question_lower}|Please answer: {question_lower}"
    "|Do you know the answer? {question}|Help me with this: {question_lower}|One question: {question_lower}"
    "|I would like to know: {question_lower}|Answer me this: {question_lower}|Say it shortly: {question_lower}"
    "|Here is my question: {question_lower}|Can you help me? {question}",
    "next": 'What happens after "{previous}"?|What comes next: "{previous}"?|Continue: "{previous}."'
    '|Go on from "{previous}".|How does it go on after "{previous}"?|Tell me what happens after "{previous}".'
    '|What is the sentence after "{previous}"?|Which sentence follows "{previous}"?|I read "{previous}." What is next?'
    '|And after "{previous}"?|What follows "{previous}"?|Can you go on after "{previous}"?',
    "agent": "{who} {predicate}?|Do you know {who_lower} {predicate}?|Tell me {who_lower} {predicate}."
    "|Can you tell me {who_lower} {predicate}?|I would like to know {who_lower} {predicate}."
    "|Say {who_lower} {predicate}."
    "|I forgot {who_lower} {predicate}.|Please tell me {who_lower} {predicate}.|Remind me {who_lower} {predicate}."
    "|Find out {who_lower} {predicate}.|I wonder {who_lower} {predicate}.|Could you say {who_lower} {predicate}?",
    "has": "What {do} {subject} have?|Do you know what {subject} {has}?|Tell me what {subject} {has}."
    "|Can you tell me what {subject} {has}?|Say what {subject} {has}.|I would like to know what {subject} {has}."
    "|I forgot what {subject} {has}.|Please tell me what {subject} {has}.|Remind me what {subject} {has}."
    "|Find out what {subject} {has}.|I wonder what {subject} {has}.|Could you say what {subject} {has}?",
    "can": "What {can} {subject} do?|Do you know what {subject} {can} do?|Tell me what {subject} {can} do."
    "|Can you tell me what {subject} {can} do?|Say what {subject} {can} do."
    "|I would like to know what {subject} {can} do."
    "|I forgot what {subject} {can} do.|Please tell me what {subject} {can} do.|Remind me what {subject} {can} do."
    "|Explain what {subject} {can} do.|I wonder what {subject} {can} do.|Could you say what {subject} {can} do?",
    "about": _ABOUT.replace("{}", "{subject}"),
    "speech": 'Who {said} "{quote}"?|Do you know who {said} "{quote}"?|Tell me who {said} "{quote}".'
    '|Can you tell me who {said} "{quote}"?|I would like to know who {said} "{quote}".'
    '|Who was it that {said} "{quote}"?'
    '|I forgot who {said} "{quote}".|Please tell me who {said} "{quote}".|Remind me who {said} "{quote}".'
    '|Find out who {said} "{quote}".|I wonder who {said} "{quote}".|Could you say who {said} "{quote}"?',
    "said": "What did {speaker} say?|Tell me what {speaker} said.|Do you know what {speaker} said?|Quote {speaker}."
    "|Can you tell me what {speaker} said?|I forgot what {speaker} said.|Remind me what {speaker} said."
    "|Which words did {speaker} speak?|Please tell me what {speaker} said.|Say what {speaker} said."
    "|I wonder what {speaker} said.|Could you repeat what {speaker} said?",
    "cause": "What {happens} {condition}?|Tell me what {happens} {condition}.|Do you know what {happens} {condition}?"
    "|Can you tell me what {happens} {condition}?|Say what {happens} {condition}.|Explain what {happens} {condition}."
    "|I would like to know what {happens} {condition}.|Please tell me what {happens} {condition}."
    "|I forgot what {happens} {condition}.|Remind me what {happens} {condition}.|I wonder what {happens} {condition}."
    "|Could you say what {happens} {condition}?",
    "reason": "Why is it that {claim}?|What is the reason that {claim}?|Tell me why {claim}.|Explain why {claim}."
    "|Do you know why {claim}?|Can you tell me why {claim}?|Say why {claim}.|I would like to know why {claim}."
    "|Please tell me why {claim}.|Give the reason why {claim}.|I wonder why {claim}.|Could you say why {claim}?",
    "year": "What happened in {year}?|Tell me what happened in {year}.|What do you know about the year {year}?"
    "|Do you know what happened in {year}?|Which event was in {year}?|Say what happened in {year}."
    "|Can you tell me what happened in {year}?|I forgot what happened in {year}.|What is told of the year {year}?"
    "|Remind me what happened in {year}.|I wonder what happened in {year}.|What took place in {year}?",
    "summary": 'What is "{title}" about?|Tell me about "{title}".|How does "{title}" begin?|Introduce me to "{title}".'
    '|What do you know about "{title}"?|Say in a sentence or two what "{title}" is about.|Begin "{title}", please.'
    '|What does "{title}" say at the beginning?|Give me the beginning of "{title}".|How does the text "{title}" start?'
    '|Open "{title}" for me.|With which words does "{title}" begin?',
    "ending": 'How does "{title}" end?|Tell me the end of "{title}".|What happens at the end of "{title}"?'
    '|What is the last sentence of "{title}"?|How is "{title}" finished?|Give me the end of "{title}".'
    '|Do you know how "{title}" ends?|What comes last in "{title}"?|With which sentence does "{title}" end?'
    '|Can you tell me how "{title}" ends?|I wonder how "{title}" ends.|Could you say how "{title}" ends?',
}
_SPECIAL = {"items": "items", "label": "cell"}  # slot -> the cores for it
CORES = {kind: tuple(text.split("|")) for kind, text in _CORES.items()}
_PLAIN_CORES = (
    *(
        "{heading}",
        "{heading}?",
        "{heading}:",
        "? {heading}",
        "{heading} ...",
        "{heading} ??",
        "({heading})",
        "– {heading}",
    ),
    *("{heading} – ?", "{heading}!", "[{heading}]", "... {heading}?"),
)
_FRAMES = (
    'In "{title}", {lower}',
    'According to "{title}", {lower}',
    'I am reading "{title}". {question}',
    '{question} I mean in "{title}".',
    '"{title}": {lower}',
    'This is about "{title}". {question}',
    '{question} It is in "{title}".',
    'From "{title}": {lower}',
    'My question is about "{title}". {question}',
)
_PLAIN_FRAMES = (
    "{title}: {question}",
    "{title} – {question}",
    "{title} / {question}",
    "{title}. {question}",
    "[{title}] {question}",
)
FRAME_SHARE = 0.4  # of the questions that would be clear without the title


FOLLOW_UPS = "And {heading}?|What about {heading}?|Now {heading}, please.|Go on with {heading}.|Next: {heading}.".split(
    "|"
)
END_FOLLOW_UPS = (
    "And how does it end?|How does it end?|What happens at the end?|And the end?|What is the end of it?".split("|")
)


def cores(fact: Fact, is_test: bool) -> Sequence[str]:
    """Return the cores for a fact: those of training, or the held-out ones of the test."""
    kind = next((kind for slot, kind in _SPECIAL.items() if slot in fact.slots), fact.kind)
    all_cores = CORES[kind] if fact.is_english else _PLAIN_CORES
    return all_cores[-NUM_HELD_OUT:] if is_test else all_cores[:-NUM_HELD_OUT]


def draw_questions(fact: Fact, count: int, rng: random.Random, is_test: bool = False) -> list[str]:
    """Return `count` different questions for a fact, or fewer if there are fewer cores."""
    forms = list(cores(fact, is_test))
    rng.shuffle(forms)
    return [framed(fact, fill(fact, core), rng, is_test) for core in forms[:count]]


def fill(fact: Fact, core: str) -> str:
    """Return a core with the slots of a fact."""
    slots = dict(fact.slots)
    slots["title"] = fact.title
    for name in ("question", "items", "who"):
        if name in slots:
            slots[f"{name}_lower"] = lower_first(slots[name])
    if "do" in slots:
        slots["has"] = {"does": "has", "do": "have", "did": "had"}[slots["do"]]
    text = core.format_map(slots)
    if text.endswith(".?"):  # a name with an abbreviation at the end of a question
        text = text[:-2] + "?"
    return text[0].upper() + text[1:]


def framed(fact: Fact, question: str, rng: random.Random, is_test: bool = False) -> str:
    """Return a question, with the title of the document where it is needed, and sometimes where it is not."""
    has_title = fact.kind in ("summary", "ending") or not fact.title
    if has_title or not (fact.needs_title or rng.random() < FRAME_SHARE):
        return question
    all_frames = _FRAMES if fact.is_english else _PLAIN_FRAMES
    frame = all_frames[-1] if is_test else rng.choice(all_frames[:-1])
    is_question = question.endswith("?")
    if frame.startswith(("In ", "According")) and not (
        is_question and question.split()[0] in ("What", "Who", "Which", "Why", "How", "For")
    ):
        frame = all_frames[2]  # "In X, tell me ..." would be no English
    return frame.format(title=fact.title, question=question, lower=lower_first(question))


def lower_first(text: str) -> str:
    """Return a text with its first letter in lower case, unless its first word has other capitals, or is "I".

    >>> lower_first("What is tea?"), lower_first("I wonder"), lower_first("DNA is long.")
    ('what is tea?', 'I wonder', 'DNA is long.')
    """
    first, _, rest = text.partition(" ")
    is_title = sum(word[:1].isupper() for word in rest.split()) > 0.5 * len(rest.split())  # "What Is the Media?"
    return text if first == "I" or first[1:] != first[1:].lower() or is_title else text[:1].lower() + text[1:]
