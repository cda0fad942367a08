"""The checker: accepts what the writer writes, rejects what is ungrammatical or false, and bounds its time."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.data.storyworld import check_text, sound_fraction
from nanochat.data.storyworld.lexicon import NOUNS, inflect
from nanochat.data.storyworld.world import PLACES, THINGS
from tests.support.stories import SPLITS, sample_documents, sample_without_notes


@pytest.mark.slow
def test_everything_the_writer_writes_is_sound() -> None:
    unsound = [
        verdict
        for split in SPLITS
        for text in sample_documents(split, 300)[-100:]
        for verdict in check_text(text)
        if not verdict.ok
    ]
    assert not unsound


SOUND = """
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

# A line that ends in "false" is grammatical, and its reason must be that it is false.
UNSOUND = """
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
CONTEXT = "Tom, Mia and Percy. "  # a pronoun can refer to them; no sentence of the world itself


def reasons_after_context(text: str) -> list[str]:
    """The reasons why the sentences of a text after CONTEXT are unsound; "" for a sound one."""
    return [verdict.reason for verdict in check_text(CONTEXT + text)][1:]


@pytest.mark.parametrize("sentence", SOUND.strip().splitlines())
def test_sound_sentences_pass(sentence: str) -> None:
    assert not any(reasons_after_context(sentence)), reasons_after_context(sentence)


@pytest.mark.parametrize("line", UNSOUND.strip().splitlines())
def test_unsound_sentences_fail(line: str) -> None:
    sentence, *is_false = re.split(r" +(?=false$)", line)
    reasons = reasons_after_context(sentence)
    assert any(reasons), sentence
    if is_false:
        assert any(reason.startswith("false") for reason in reasons), reasons


def test_there_are_enough_examples_of_both() -> None:
    assert len(SOUND.strip().splitlines()) >= 60
    assert len(UNSOUND.strip().splitlines()) >= 60


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("Rusty lives in the mill.", "false: home of Rusty: in the old barn, not in the mill"),
        ("Tom's kite was gone.", "false: the kite belongs to Mia"),
        ("The zebra was sad.", "unknown word: 'zebra'"),
        ("Mia was sad because.", "not a sentence: stuck at '.'"),
    ],
)
def test_a_reason_names_the_fault(sentence: str, reason: str) -> None:
    assert reasons_after_context(sentence) == [reason]


@pytest.mark.parametrize(
    "text",
    [
        "Mia was sad. She went home without a word. He went home without a word.",
        "Rusty is a fox. He lives in the old barn. He lives in the mill.",
    ],
)
def test_pronouns_refer_to_someone_named_before(text: str) -> None:
    assert [verdict.ok for verdict in check_text(text)] == [True, True, False]


def test_the_end_of_a_truncated_text_gets_no_verdict() -> None:
    text = "Rusty is a fox. He lives in the"
    assert [verdict.ok for verdict in check_text(text)] == [True, False]
    assert [verdict.ok for verdict in check_text(text, truncated=True)] == [True]
    assert (sound_fraction(text), sound_fraction(text, truncated=True), sound_fraction("")) == (0.5, 1.0, 0.0)
    whole = check_text("Rusty is a fox. He is sly.", truncated=True)
    assert [verdict.sentence for verdict in whole] == ["Rusty is a fox.", "He is sly."]


# --- mutations --------------------------------------------------------------------------------------------------------


def swap_words(rng: random.Random, words: list[str]) -> list[str]:
    i, j = sorted(rng.sample(range(len(words)), 2))
    return [*words[:i], words[j], *words[i + 1 : j], words[i], *words[j + 1 :]]


def drop_word(rng: random.Random, words: list[str]) -> list[str]:
    i = rng.randrange(len(words))
    return words[:i] + words[i + 1 :]


def repeat_word(rng: random.Random, words: list[str]) -> list[str]:
    i = rng.randrange(len(words))
    return words[: i + 1] + words[i:]


def truncate(rng: random.Random, words: list[str]) -> list[str]:
    return words[: rng.randrange(1, len(words))]


def replace_noun(rng: random.Random, words: list[str]) -> list[str]:
    nouns = sorted({*NOUNS, *THINGS, *PLACES})
    positions = [i for i, word in enumerate(words) if word.strip('.,!?"') in nouns]
    if not positions:
        return words
    i = rng.choice(positions)
    return [*words[:i], words[i].replace(words[i].strip('.,!?"'), rng.choice(nouns)), *words[i + 1 :]]


def change_verb_form(rng: random.Random, words: list[str]) -> list[str]:
    lemmas = "look sit walk run go take put open laugh push find see be have carry want say ask".split()
    lemma_of = {inflect(lemma, form): lemma for lemma in lemmas for form in ("past", "ger", "s", "base")}
    positions = [i for i, word in enumerate(words) if word in lemma_of]
    if not positions:
        return words
    i = rng.choice(positions)
    return [*words[:i], inflect(lemma_of[words[i]], rng.choice(["past", "ger", "s", "base"])), *words[i + 1 :]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutate", "min_rejected"),
    [
        (swap_words, 0.97),
        (drop_word, 0.96),
        (repeat_word, 0.99),
        (truncate, 0.96),
        (replace_noun, 0.85),
        (change_verb_form, 0.9),
    ],
)
def test_mutations_are_rejected(mutate: Callable[[random.Random, list[str]], list[str]], min_rejected: float) -> None:
    """Nearly all mutated sentences are rejected; some happen to be sound ("The kite was red")."""
    rng = random.Random(1)
    texts = sample_without_notes("test", 300)[:120]
    sentences = [verdict.sentence for text in texts for verdict in check_text(text)]
    pairs = [(sentence, " ".join(mutate(rng, sentence.split()))) for sentence in sentences if len(sentence.split()) > 3]
    mutated = [mutant for sentence, mutant in pairs if mutant != sentence]
    rng.shuffle(mutated)
    is_rejected = [any(reasons_after_context(mutant)) for mutant in mutated[:400]]
    rejected = sum(is_rejected) / len(is_rejected)
    print(f"{mutate.__name__}: {rejected:.1%} of {len(is_rejected)} rejected")
    assert rejected >= min_rejected


# --- any text ---------------------------------------------------------------------------------------------------------


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
