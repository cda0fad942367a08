"""Documents of the embedded data: variety, lengths, splits, reproducibility."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from itertools import combinations, islice

import pytest

from nanochat.data.storyworld import generate_prompts, generate_stories, sound_fraction
from nanochat.data.storyworld.lexicon import NOUNS
from nanochat.data.storyworld.narrator import Narrator
from nanochat.data.storyworld.world import CHARACTERS, PLACES, THINGS
from nanochat.data.storyworld.writer import draw_plan, write_story
from tests.support.stories import SPLITS, sample_documents, sample_without_notes, split_by_punctuation


def name_and_noun_patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Patterns that match names, and nouns."""
    names = "|".join(sorted(map(re.escape, CHARACTERS), key=len, reverse=True))
    nouns = {*NOUNS, *THINGS, *PLACES, *(character.kind for character in CHARACTERS.values())}
    words = "|".join(sorted(map(re.escape, nouns), key=len, reverse=True))
    return re.compile(rf"\b(?:{names})\b"), re.compile(rf"\b(?:{words})(?:e?s)?\b")


# --- variety ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sentences_have_many_shapes() -> None:
    """A shape is a sentence with its names and nouns masked."""
    names, nouns = name_and_noun_patterns()
    shapes = Counter(
        nouns.sub("#", names.sub("@", sentence))
        for text in sample_without_notes("train", 20_000)[:1200]
        for sentence in split_by_punctuation(text)
    )
    total = sum(shapes.values())
    [(shape, count)] = shapes.most_common(1)
    assert len(shapes) >= 2_000
    assert sum(1 for n in shapes.values() if n > 1) >= 1_500, "shapes that recur"
    assert count / total < 0.01, f"{shape!r} is {count / total:.2%} of the sentences"
    assert {"#", "@"} <= set("".join(shapes)), "the masks are used"


@pytest.mark.slow
def test_words_are_many_and_none_is_rare() -> None:
    texts = sample_documents("train", 20_000)
    words = Counter(word.lower() for text in texts for word in re.findall(r"[A-Za-z']+", text))
    total = sum(words.values())
    millions = total / 1e6
    assert len(words) >= 1_500
    assert sum(1 for count in words.values() if count >= 20 * millions) >= 1_500
    assert min(words.values()) >= 4 * millions, [word for word, count in words.items() if count < 4 * millions]
    assert sum(count for _, count in words.most_common(200)) > 0.6 * total, "a small model can learn it"


def test_documents_have_the_length_of_a_short_story() -> None:
    lengths = sorted(len(text.split()) for text in sample_documents("train", 20_000)[:2000])
    assert lengths[0] >= 30
    assert lengths[-1] <= 300
    assert lengths[len(lengths) // 20] >= 60
    assert lengths[-len(lengths) // 20] <= 250


def test_documents_are_distinct() -> None:
    assert len(set(sample_documents("train", 20_000))) == 20_000


def test_notes_are_a_third_of_the_documents_and_sound() -> None:
    notes = set(sample_documents("train", 300)) - set(sample_without_notes("train", 300))
    assert 50 <= len(notes) <= 150, "about a third of the documents"
    assert all(sound_fraction(text) == 1 for text in notes)


# --- splits -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_splits_share_no_document() -> None:
    documents = {
        split: {text for seed in (0, 1) for text in sample_documents(split, 300 if split != "train" else 3000, seed)}
        for split in SPLITS
    }
    for split, other in combinations(SPLITS, 2):
        assert not documents[split] & documents[other]


def test_a_story_is_in_one_split_only_in_any_words() -> None:
    """The two characters who meet in a plot decide the split, whatever else is drawn."""
    rng = random.Random(5)
    split_of: dict[object, str] = {}
    for _ in range(20_000):
        plan = draw_plan(rng)
        roles = dict(plan.roles)
        if plan.plot:
            assert split_of.setdefault((plan.kind, roles["H"], roles["F"]), plan.split()) == plan.split()
    num_stories = Counter(split_of.values())
    assert all(0.03 < num_stories[split] / len(split_of) < 0.07 for split in ("val", "test"))


def test_stories_name_the_characters_that_decide_their_split() -> None:
    rng = random.Random(6)
    for _ in range(300):
        plan = draw_plan(rng)
        if plan.plot:
            narrator = Narrator(rng, dict(plan.roles))
            write_story(narrator, plan.plot)
            for role in "HF":
                name = dict(plan.roles)[role]
                kind = CHARACTERS[name].kind
                assert re.search(rf"\b(?:{name}|the {kind}|The {kind})\b", narrator.text()), (name, narrator.text())


# --- reproducibility --------------------------------------------------------------------------------------------------


def test_documents_are_the_same_on_every_machine() -> None:
    """A golden hash. A change of the text on purpose changes it, and models must be trained anew."""
    text = "\0".join(text for split in SPLITS for text in sample_documents(split, 300)[:100])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "0fc6ab1cb381326b"


def test_start_skips_the_first_documents() -> None:
    assert list(islice(generate_stories("val", 3, start=25), 5)) == list(islice(generate_stories("val", 3), 25, 30))
    assert sample_documents("val", 20, 1) != sample_documents("val", 20, 2)


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="split is 'validation': must be one of train, val, test"):
        next(generate_stories("validation"))


def test_prompts_are_beginnings_of_test_stories() -> None:
    prompts = generate_prompts(8, seed=1)
    texts = sample_documents("test", 8, 1)
    assert all(text.startswith(prompt) for prompt, text in zip(prompts, texts, strict=True))
    assert all(3 <= len(prompt.split()) <= 8 for prompt in prompts)
