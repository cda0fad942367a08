"""The story world: what the writer promises, measured by other means, and whether the checker has teeth."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import combinations, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.storyworld import check_text, generate_prompts, generate_stories, list_facts, sound_fraction
from nanochat.data.storyworld.lexicon import NOUNS, inflect
from nanochat.data.storyworld.world import CHARACTERS, PLACES, THINGS

SPLITS = ("train", "val", "test")


@cache
def sample(split: str, count: int, seed: int = 0) -> tuple[str, ...]:
    return tuple(islice(generate_stories(split, seed), count))


def sentences(text: str) -> list[str]:
    """Sentences by punctuation alone, without the grammar."""
    parts = [re.split(r'(?<=[.!?])"? (?=["A-Z])', paragraph) for paragraph in text.split("\n\n")]
    return [sentence for part in parts for sentence in part]


@cache
def told(split: str, count: int, seed: int = 0) -> tuple[str, ...]:
    """The sample without its notes, which are made of the same few hundred sentences on purpose."""
    plain = {sentence for fact in list_facts() for sentence in fact.sentences}
    return tuple(text for text in sample(split, count, seed) if not plain.issuperset(sentences(text)))


def masks() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """What finds names, and what finds nouns."""
    names = "|".join(sorted(map(re.escape, CHARACTERS), key=len, reverse=True))
    nouns = {*NOUNS, *THINGS, *PLACES, *(character.kind for character in CHARACTERS.values())}
    words = "|".join(sorted(map(re.escape, nouns), key=len, reverse=True))
    return re.compile(rf"\b(?:{names})\b"), re.compile(rf"\b(?:{words})(?:e?s)?\b")


# --- the text ---------------------------------------------------------------------------------------------------------


def test_sentences_are_of_many_shapes() -> None:
    names, nouns = masks()
    shapes = Counter(
        nouns.sub("#", names.sub("@", sentence))
        for text in told("train", 20_000)[:1200]
        for sentence in sentences(text)
    )
    total = sum(shapes.values())
    [(shape, count)] = shapes.most_common(1)
    assert len(shapes) >= 2_000
    assert sum(1 for n in shapes.values() if n > 1) >= 1_500, "shapes that come again"
    assert count / total < 0.01, f"{shape!r} is {count / total:.2%} of the sentences"
    assert {"#", "@"} <= set("".join(shapes)), "the masks mask"


def test_words_are_many_and_none_is_rare() -> None:
    words = Counter(word.lower() for text in sample("train", 20_000) for word in re.findall(r"[A-Za-z']+", text))
    million = sum(words.values()) / 1e6
    assert len(words) >= 1_500
    assert sum(1 for count in words.values() if count >= 20 * million) >= 1_500
    assert min(words.values()) >= 4 * million, [word for word, count in words.items() if count < 4 * million]
    assert sum(count for _, count in words.most_common(200)) > 0.6 * sum(words.values()), "a small model can learn it"


def test_documents_have_the_length_of_a_short_story() -> None:
    lengths = sorted(len(text.split()) for text in sample("train", 20_000)[:2000])
    assert lengths[0] >= 30
    assert lengths[-1] <= 300
    assert lengths[len(lengths) // 20] >= 60
    assert lengths[-len(lengths) // 20] <= 250


def test_every_document_is_new() -> None:
    assert len(set(sample("train", 20_000))) == 20_000


def test_splits_share_no_document() -> None:
    parts = {
        split: {text for seed in (0, 1) for text in sample(split, 300 if split != "train" else 3000, seed)}
        for split in SPLITS
    }
    for one, other in combinations(SPLITS, 2):
        assert not parts[one] & parts[other]


def test_a_story_is_told_in_one_split_only() -> None:
    """Not even in other words: the two who meet in a plot belong to its split, whatever else is drawn."""
    from nanochat.data.storyworld.writer import draw_plan

    rng = random.Random(5)
    split_of: dict[object, str] = {}
    for _ in range(20_000):
        drawn = draw_plan(rng)
        roles = dict(drawn.roles)
        if drawn.plot:
            known = split_of.setdefault((drawn.kind, roles["H"], roles["F"]), drawn.split())
            assert known == drawn.split()
    shares = Counter(split_of.values())
    assert all(0.03 < shares[split] / len(split_of) < 0.07 for split in ("val", "test"))


def test_stories_name_those_who_decide_their_split() -> None:
    from nanochat.data.storyworld.narrator import Narrator
    from nanochat.data.storyworld.writer import draw_plan, write_story

    rng = random.Random(6)
    for _ in range(300):
        drawn = draw_plan(rng)
        if drawn.plot:
            narrator = Narrator(rng, dict(drawn.roles))
            write_story(narrator, drawn.plot)
            for role in "HF":
                name = dict(drawn.roles)[role]
                kind = CHARACTERS[name].kind
                assert re.search(rf"\b(?:{name}|the {kind}|The {kind})\b", narrator.text()), (name, narrator.text())


def test_notes_hold_facts_only() -> None:
    notes = set(sample("train", 300)) - set(told("train", 300))
    assert 50 <= len(notes) <= 150, "about a third of the documents"
    assert all(sound_fraction(text) == 1 for text in notes)


def test_stories_are_the_same_everywhere() -> None:
    """A golden hash: whoever changes the text on purpose changes this too, and trains anew."""
    text = "\0".join(text for split in SPLITS for text in sample(split, 300)[:100])
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "0fc6ab1cb381326b"


def test_start_leaves_out_the_first_documents() -> None:
    assert list(islice(generate_stories("val", 3, start=25), 5)) == list(islice(generate_stories("val", 3), 25, 30))
    assert sample("val", 20, 1) != sample("val", 20, 2)


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="train, val, test"):
        next(generate_stories("validation"))


def test_prompts_are_beginnings_of_test_stories() -> None:
    openings = generate_prompts(8, seed=1)
    texts = sample("test", 8, 1)
    assert all(text.startswith(opening) for opening, text in zip(openings, texts, strict=True))
    assert all(3 <= len(opening.split()) <= 8 for opening in openings)


def test_verbs_inflect() -> None:
    known = {"stop": "stopped stopped stopping stops", "carry": "carried carried carrying carries",
             "go": "went gone going goes", "lie": "lay lain lying lies", "watch": "watched watched watching watches",
             "play": "played played playing plays", "sit": "sat sat sitting sits"}  # fmt: skip
    for lemma, forms in known.items():
        assert " ".join(inflect(lemma, form) for form in ("past", "part", "ger", "s")) == forms


# --- the facts --------------------------------------------------------------------------------------------------------


def test_facts_are_many_and_true() -> None:
    listed = list_facts()
    assert len({(fact.subject, fact.property) for fact in listed}) == len(listed) >= 400
    for fact in listed:
        assert len(set(fact.sentences)) == len(fact.sentences) >= 1
        assert fact.questions
        for sentence in fact.sentences:
            assert fact.value in sentence.lower() or fact.value in sentence
            assert [verdict.reason for verdict in check_text(sentence)] == [""], sentence


def test_every_fact_recurs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is stated at least 8 times in 1.5 million words, counted where the writer words it."""
    from nanochat.data.storyworld.narrator import Narrator
    from nanochat.data.storyworld.relations import RELATIONS

    stated = {id(p) for r in RELATIONS.values() for way in (r.statements, r.tails) for ps in way.values() for p in ps}
    told: Counter[tuple[str, str]] = Counter()
    tell = Narrator.emit_fact

    def count(narrator: Narrator, relation: str, subject: str, pattern: tuple[object, ...]) -> None:
        told[relation, subject] += id(pattern) in stated
        tell(narrator, relation, subject, pattern)

    monkeypatch.setattr(Narrator, "emit_fact", count)
    words = sum(len(text.split()) for text in islice(generate_stories("train", 9), 10_000))
    fewest = min((told[fact.property, fact.subject], fact.property, fact.subject) for fact in list_facts())
    assert fewest[0] >= 8 * words / 1.5e6, fewest


def test_facts_stand_in_the_text_word_for_word() -> None:
    """Most plain statements of facts() occur in 10,000 documents as they are, pronouns and other wordings apart."""
    found = set(re.findall(r"[A-Z][^.!?\"\n]*\.", "\n".join(sample("train", 20_000)[:10_000])))
    seen = sum(any(sentence in found for sentence in fact.sentences) for fact in list_facts())
    assert seen >= 0.7 * len(list_facts())


def test_no_two_sentences_contradict() -> None:
    """Of all plain statements of a home, a favorite food or a color in the text, each subject has one value."""
    text = " ".join(sample("train", 20_000)[:3000])
    names = "|".join(map(re.escape, CHARACTERS))
    for pattern in (
        rf"\b({names}) lives ((?:in|on|by|under|above|behind|beside|near) the [^.,\"?]+)[.,]",
        rf"favorite food of ({names}) (?:is|was) ([^.,\"?]+)[.,]",
        rf"best friend of ({names}) (?:is|was) ([^.,\"?]+)[.,]",
        r"color of (?:the|\S+'s) (\w+) (?:is|was) ([^.,\"?]+)[.,]",
        r"opposite of (\w+) is (\w+)[.,]",
        r"young (\w+) is called an? (\w+)[.,]",
    ):
        values: dict[str, set[str]] = {}
        for subject, value in re.findall(pattern, text):
            values.setdefault(subject, set()).add(value)
        assert len(values) >= 15, pattern
        assert all(len(found) == 1 for found in values.values()), values


# --- the checker ------------------------------------------------------------------------------------------------------


def test_all_that_is_written_passes() -> None:
    wrong = [v for split in SPLITS for text in sample(split, 300)[-100:] for v in check_text(text) if not v.ok]
    assert not wrong


GOOD = """
Rusty is a fox.
Rusty the fox lives in the old barn.
The fox is afraid of hunters.
The best friend of Rusty is Hazel.
Everyone knows that Luna has huge eyes.
Once upon a time, Mia took her red kite to the meadow.
Mia's kite is red.
The kite is made of paper.
The color of Tom's boat is blue.
Mia likes to paint pictures.
Mrs Bell is a teacher.
The bakery is near the school.
At the bakery you can see warm loaves.
A young dog is called a puppy.
An owl can hoot.
The opposite of hot is cold.
The day after Monday is Tuesday.
In winter, the lake freezes.
A saw is used to cut wood.
With a needle you can sew clothes.
The color of lemons is yellow.
People get milk from cows.
The work of a baker is to bake bread.
A sailor works at the harbor.
It was a windy day in spring.
Suddenly, a strong wind blew Mia's kite into a tall tree!
Mia was sad because the kite was gone.
Because Mia had a fever, she stayed in bed.
Ben jumped for joy, for the ball was safe.
Anna and Ella walked to the lake and sat down.
The two friends went home without a word.
They danced until midnight.
"I have lost my kite," said Mia.
"Can you get my kite down?" asked Mia.
"Let us look for it together," said Tom.
"Shall we try again?" asked the baker.
Tom said, "I think that Rusty lives in the old barn."
"Where does Rusty live?" asked Tom.
"Everyone knows that the opposite of big is small," said Mrs Bell.
Mrs Bell asked, "What is the opposite of big?"
"What color is my boat?" asked Tom.
"Good morning, my friend," said Percy the pig.
The miller, who was strong, pushed from behind.
Rusty, who lived in the old barn, went home with a full heart.
Max wanted to build a table, so he fetched some boards and nails.
When Rosa had opened the door, she looked around.
After opening the door, Rosa looked around.
Having opened the door, Rosa looked around.
As soon as Rosa opened the door, Max came in.
Although Sam looked every morning, nothing grew.
Sam looked every morning, but nothing grew.
While Lily swept the room, Clover slept.
The shovel hit something hard.
Both of them laughed about it for weeks.
In the evening they were tired, but happy.
Everyone in the village knows Percy the pig.
From time to time, Percy mends old things.
Percy likes to mend old things at dusk.
Max built a little house for the butterfly.
Lily found a shiny coin and a note.
That is the end of the story.
The sun rose over the village, and a sunny day began.
Nobody won, yet everyone clapped.
First Rosa broke the lock, and then she lifted the lid.
Gus lost no time and measured the wood.
Duke began to saw the boards.
Mr Hill looked away and said, "I am so sorry."
Stella winked at Mr Hill. "Friends share everything," she said.
Captain Gray heard the cry.
"""
BAD = """
Rusty lives in the mill.                              false
Rusty is a dog.                                       false
The fox is afraid of the dark.                        false
The best friend of Rusty is Mia.                      false
Mia's kite is blue.                                   false
Mia's blue kite was gone.                             false
Tom's kite was gone.                                  false
The kite is made of wood.                             false
"I have lost my kite," said Tom.                      false
Mia likes to climb trees.                             false
Mrs Bell is a doctor.                                 false
The bakery is near the river.                         false
A young dog is called a calf.                         false
A cow can bark.                                       false
The opposite of hot is big.                           false
The day after Monday is Friday.                       false
In summer, the lake freezes.                          false
A saw is used to sew clothes.                         false
The color of lemons is red.                           false
People get milk from bees.                            false
The work of a baker is to plow the fields.            false
A sailor works at the library.                        false
Rusty, who lived in the tall house, went home with a full heart. false
Tom said, "I think that Rusty lives in the cave."     false
Mia took his red kite to the meadow.
Mia was sad because he was gone.
When Rosa had opened the door, he looked around.
Anna and Ella was very sad.
Anna were sad.
The two friends was cold.
They was tired.
I were so tired.
Rosa open the door and looked around.
Rosa opened the door and looks around.
Rosa has open the door.
Having opening the door, Rosa looked around.
After opened the door, Rosa looked around.
Mia wanted to painted a card.
"Can you got my kite down?" asked Mia.
"Let us looked for it together," said Tom.
"Did you lost something?" asked Tom.
Rusty live in the old barn.
An fox lives in the old barn.
A owl can hoot.
Opened Rosa the door and looked around.
Rosa the door opened.
The the fox was tired.
The fox fox is afraid of hunters.
Rusty the cat lives in the old barn.
Rusty is in the old barn lives.
Mia took her red kite to the.
Mia was sad because.
Because Mia had a fever.
When Rosa opened the door.
Rosa and looked around.
Rosa
lives in the old barn.
rusty lives in the old barn.
Rusty lives in The old barn.
Rusty lives in the old barn
Rusty lives, in the old barn.
Rusty lives in the old barn?
"Where is my boat?" said quickly Tom.
"Where does Rusty live," asked Tom.
"Where does Rusty live?" said Tom.
"Let us look for it together." said Tom.
"Let us look for it together, said Tom.
"let us look for it together," said Tom.
Tom drank a table.
Tom ate the hill.
The kite ate some soup.
The lake went home without a word.
Finn climbed to the top of the hill.
Mia spread her wings and flew to the top of the tree.
Tom found a juicy coin.
Tom found some coin.
Tom found coin in the grass.
The zebra lives in the zoo.
Rusty lives in the old spaceship.
Mia asked her computer for help.
It rained cats and dogs.
Mia played with.
Mia Mia was sad.
Mia was was sad.
Mia was sad because because the kite was gone.
It was windy a day in spring.
Once upon a time.
Said Tom.
"Can you help me?" asked.
He.
Of the of the of the.
Mia took, and Tom.
That is the end the story of.
Sam looked every morning, but although nothing grew.
1 2 3.
Mia is 7 years old.
"""
CONTEXT = "Tom, Mia and Percy. "  # so that "he" and "she" have someone to mean; no sentence of the world itself


def judged(text: str) -> list[str]:
    """The reasons against sentences that stand after another; "" where there is none."""
    return [verdict.reason for verdict in check_text(CONTEXT + text)][1:]


@pytest.mark.parametrize("sentence", GOOD.strip().splitlines())
def test_good_sentences_pass(sentence: str) -> None:
    assert not any(judged(sentence)), judged(sentence)


@pytest.mark.parametrize("line", BAD.strip().splitlines())
def test_bad_sentences_fail(line: str) -> None:
    sentence, *kind = re.split(r" +(?=false$)", line)
    assert any(judged(sentence)), sentence
    if kind:
        assert any(reason.startswith("false") for reason in judged(sentence)), judged(sentence)


def test_there_are_enough_of_both() -> None:
    assert len(GOOD.strip().splitlines()) >= 60
    assert len(BAD.strip().splitlines()) >= 60


def test_a_reason_says_what_is_true() -> None:
    assert judged("Rusty lives in the mill.") == ["false: home of Rusty: in the old barn, not in the mill"]
    assert judged("Tom's kite was gone.") == ["false: the kite belongs to Mia"]
    assert judged("The zebra was sad.") == ["unknown word: 'zebra'"]
    assert judged("Mia was sad because.") == ["not a sentence: stuck at '.'"]


def test_pronouns_need_someone_to_mean() -> None:
    assert [v.ok for v in check_text("Mia was sad. She went home without a word. He went home without a word.")][
        :3
    ] == [
        True,
        True,
        False,
    ]
    assert [v.ok for v in check_text("Rusty is a fox. He lives in the old barn. He lives in the mill.")] == [
        True,
        True,
        False,
    ]


def test_a_sample_that_was_cut() -> None:
    text = "Rusty is a fox. He lives in the"
    assert [verdict.ok for verdict in check_text(text)] == [True, False]
    assert [verdict.ok for verdict in check_text(text, truncated=True)] == [True]
    assert (sound_fraction(text), sound_fraction(text, truncated=True), sound_fraction("")) == (0.5, 1.0, 0.0)
    assert [verdict.sentence for verdict in check_text("Rusty is a fox. He is sly.", truncated=True)] == [
        "Rusty is a fox.",
        "He is sly.",
    ]


def _swap(rng: random.Random, words: list[str]) -> list[str]:
    i, j = sorted(rng.sample(range(len(words)), 2))
    return [*words[:i], words[j], *words[i + 1 : j], words[i], *words[j + 1 :]]


def _drop(rng: random.Random, words: list[str]) -> list[str]:
    i = rng.randrange(len(words))
    return words[:i] + words[i + 1 :]


def _repeat(rng: random.Random, words: list[str]) -> list[str]:
    i = rng.randrange(len(words))
    return words[: i + 1] + words[i:]


def _cut(rng: random.Random, words: list[str]) -> list[str]:
    return words[: rng.randrange(1, len(words))]


def _other_noun(rng: random.Random, words: list[str]) -> list[str]:
    nouns = sorted({*NOUNS, *THINGS, *PLACES})
    places = [i for i, word in enumerate(words) if word.strip('.,!?"') in nouns]
    if not places:
        return words
    i = rng.choice(places)
    return [*words[:i], words[i].replace(words[i].strip('.,!?"'), rng.choice(nouns)), *words[i + 1 :]]


def _other_form(rng: random.Random, words: list[str]) -> list[str]:
    """Another form of a verb."""
    lemmas = "look sit walk run go take put open laugh push find see be have carry want say ask".split()
    forms = {inflect(lemma, form): lemma for lemma in lemmas for form in ("past", "ger", "s", "base")}
    places = [i for i, word in enumerate(words) if word in forms]
    if not places:
        return words
    i = rng.choice(places)
    return [*words[:i], inflect(forms[words[i]], rng.choice(["past", "ger", "s", "base"])), *words[i + 1 :]]


@pytest.mark.parametrize(
    ("mutate", "least"),
    [(_swap, 0.97), (_drop, 0.96), (_repeat, 0.99), (_cut, 0.96), (_other_noun, 0.85), (_other_form, 0.9)],
)
def test_mutations_are_caught(mutate: Callable[[random.Random, list[str]], list[str]], least: float) -> None:
    """Of sentences changed at random nearly all are rejected; the rest happen to be sound too ("The kite was red")."""
    rng = random.Random(1)
    whole = [verdict.sentence for text in told("test", 300)[:120] for verdict in check_text(text)]
    changed = [(s, " ".join(mutate(rng, s.split()))) for s in whole if len(s.split()) > 3]
    changed = [(s, c) for s, c in changed if s != c]
    rng.shuffle(changed)
    caught = [any(judged(c)) for _, c in changed[:400]]
    print(f"{mutate.__name__}: {sum(caught) / len(caught):.1%} of {len(caught)} rejected")
    assert sum(caught) / len(caught) >= least


@settings(max_examples=60, deadline=2000)
@given(
    st.one_of(
        st.text(max_size=300),
        st.lists(st.sampled_from('the fox Rusty , . " said and was who lives in old barn'.split())).map(" ".join),
    )
)
def test_any_text_is_judged(text: str) -> None:
    verdicts = check_text(text)
    assert len(verdicts) <= len(text)
    assert all(verdict.ok == (not verdict.reason) for verdict in verdicts)
    joined = "".join(verdict.sentence for verdict in verdicts)
    assert re.sub(r"\s", "", joined) == re.sub(r"\s", "", text), "nothing is lost"


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "text",
    ["the " * 2500, '"' * 10_000, "." * 10_000, "Rusty and " * 1000, "\x00\ud800 é" * 2000, ", who was sad" * 800,
     "“Let us go,” said Tom. " * 400, '"Thank you. ' * 800],
)  # fmt: skip
def test_long_garbage_is_judged_in_bounded_time(text: str) -> None:
    assert not any(verdict.ok for verdict in check_text(text))
