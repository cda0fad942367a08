"""A solver of the embedded world's word problems that reads the text only, independent of the generator's templates."""

from __future__ import annotations

import re

from nanochat.data.storyworld.world import CHARACTERS

# Words by which a sentence changes the number of things.
_TIMES = re.compile(
    r"times as many|every one becomes|turns each one|[Ff]or (each|every) one|swaps every one"
    r"|times its size|each is now|dreams|copies"
)
_SHARE = re.compile(r"equal|judge|One part in|fair part|one of every")
_GAIN = re.compile(r" more|hands|bird brings|out of a tree|wins|Grandmother|at the door|discovers|With the post")
_GROUPS = re.compile(r" each\b| in each|[Ii]n each| every day| a day for|[Oo]n each of| days, ")
_LOSS = re.compile(
    r"gives \d+ to|gives away \d|loses|lost|takes \d+ away|drops|sells \d|carries away|asks for|broken|leaves|steals"
    r"|nibbles|roll|lends|hides|throws|crow flies off|burns|sink"
)
DISTRACTOR = re.compile(
    r"[A-Z][\w ]* (is \d+ years old|has \d+ cousins|tells \d+ stories|sleeps for \d+ hours)\. ?"
    r"|It is a walk [^.]*\. ?|There are \d+ birds [^.]*\. ?"
)


def count_things(text: str) -> int:
    """Return the number of things after the sentences of a story about one person."""
    total, num_groups = -1, 0
    for sentence in re.split(r"(?<=\.) ", text):
        numbers = [int(number) for number in re.findall(r"\d+", sentence)]
        if not numbers:
            continue
        if total < 0 and num_groups:  # "Each holds 4 apples."
            total = num_groups * numbers[0]
        elif total < 0 and len(numbers) == 2:
            assert _GROUPS.search(sentence), sentence
            total = numbers[0] * numbers[1]
        elif total < 0 and re.search(r" (carries|opens) ", sentence):
            num_groups = numbers[0]
        elif total < 0:
            total = numbers[0]
        elif _TIMES.search(sentence):
            total *= numbers[0]
        elif _SHARE.search(sentence):
            assert total % numbers[0] == 0, text
            total //= numbers[0]
        elif _GAIN.search(sentence):
            total += numbers[0]
        else:
            assert _LOSS.search(sentence), sentence
            total -= numbers[0]
    return total


def people_in(text: str) -> list[str]:
    return [name for name in CHARACTERS if re.search(rf"\b{name}\b", text)]


def split_question(text: str) -> tuple[str, str]:
    """Split a problem into the story and the question, which may have a sentence before it."""
    sentences = re.split(r"(?<=[.?]) ", text)
    num_last = 2 if text.endswith("are there?") else 1
    return " ".join(sentences[:-num_last]), " ".join(sentences[-num_last:])


def split_by_person(story: str, names: list[str]) -> list[str]:
    """Split the sentences about two people: the second's begin with the first mention of that name."""
    cut = max(story.index(name) for name in names)
    cut = story.rfind(". ", 0, cut) + 2
    return [story[:cut], story[cut:]]


def solve(text: str) -> int:
    """Return the answer of a problem about one person or two."""
    story, question = split_question(DISTRACTOR.sub("", text))
    names = sorted(people_in(question), key=question.index)
    if len(names) == 1:
        return count_things(story)
    parts = split_by_person(story, names)
    part_of = {name: part for part in parts for name in names if re.search(rf"\b{name}\b", part)}
    first, second = (count_things(part_of[name]) for name in names)
    is_sum = bool(re.search(r"together|in all", question))
    assert is_sum != bool(re.search(r"more|ahead", question)), question
    return first + second if is_sum else first - second
