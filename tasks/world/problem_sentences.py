# ruff: noqa: E501  (a row of a table is one line)
"""Sentence templates of the word problems: quantities of things that people have, and events that change them.

    {A} gives {k} to {F}.  ->  Mia gives 3 to Tom.

{A}  the owner: the name, or "she" if it begins the sentence; {a} "she" and {him} "her" elsewhere
{F}  someone else
{n}  a number with the things, "3 apples"; {is} agrees with it
{k}  a number alone; {are} agrees with it, and {s} is the ending of its verb
{g}  a number of containers, "4 bags"
{x}  the things in the plural
"""

from nanochat.data.storyworld.world import CHARACTERS

PEOPLE = tuple(name for name in CHARACTERS if name != "Finn")  # Finn is a fish

_THINGS = """
apple apples|pear pears|plum plums|nut nuts|cherry cherries|carrot carrots|egg eggs|cookie cookies|bun buns|coin coins
shell shells|pebble pebbles|ring rings|candle candles|button buttons|feather feathers|flower flowers|seed seeds|berry berries
stone stones|book books|letter letters|cup cups|bean beans|cake cakes|leaf leaves|stick sticks|ribbon ribbons|tulip tulips
"""
THINGS = tuple((one, many) for one, many in (pair.split() for pair in _THINGS.strip().replace("\n", "|").split("|")))

_STARTS = """
{A} has {n}.
{A} owns {n}.
In the morning, {A} has {n}.
There {is} {n} in the basket of {A}.
{A} comes home with {n}.
{A} brings {n} from the market.
{A} keeps {n} in a box.
{A} finds {n} in the forest.
{A} has {n} in a bag.
One day, {A} gets {n}.
{A} puts {n} on the table.
{A} wakes up and counts {n}.
"""
_GAINS = """
{A} finds {k} more.
{A} gets {k} more from {F}.
{F} gives {him} {k} more.
{A} buys {k} more.
Then {a} picks up {k} more.
At the market, {a} buys {k} more.
{F} brings {him} {k} more.
Behind the house, {a} finds {k} more.
After that, {a} is given {k} more.
{F} comes along and adds {k} more.
The next day, {a} gets {k} more.
{A} looks under the bed and sees {k} more.
On the way home, {a} gathers {k} more.
"""
_LOSSES = """
{A} gives {k} to {F}.
{A} loses {k}.
Then {k} {are} lost.
{F} takes {k} away.
{A} drops {k} into the river.
{A} sells {k} at the market.
Then {a} gives away {k}.
The wind carries away {k}.
{F} asks for {k}, and {a} says yes.
On the way home, {a} loses {k}.
After that, {k} {are} broken.
{A} leaves {k} on the bridge.
A goose steals {k}.
"""
_TIMES = """
Soon {a} has {k} times as many.
By magic, every one becomes {k}.
{A} works hard until {a} has {k} times as many.
A week later, {a} has {k} times as many.
{F} makes it {k} times as many.
For each one, {a} gets {k} at the market.
A kind wizard turns each one into {k}.
In the end, {a} has {k} times as many.
For every one, {F} gives {him} {k} in return.
By the evening, {a} has {k} times as many.
{A} wishes for {k} times as many, and the wish comes true.
{A} swaps every one for {k} new ones.
"""
_GROUPS = """
{A} has {g} with {n} in each.
{A} finds {g}, and there {is} {n} in each.
{F} gives {A} {g} with {n} in each.
{A} buys {g} of {n} each.
{A} fills {g} with {n} each.
There are {g} in the kitchen of {A}, each with {n}.
{A} carries {g}. Each holds {n}.
{A} opens {g}. In each {is} {n}.
{A} gets {n} a day for {k} days.
For {k} days, {A} finds {n} every day.
On each of {k} days, {A} picks up {n}.
{A} has {k} friends, and each brings {n}.
"""
_SHARES = """
{A} makes {k} equal shares and keeps one share.
{A} puts them equally into {g} and keeps only one.
{A} makes {k} equal heaps and takes one of them.
They are shared equally by {k} friends, and {A} is one of them.
{A} packs them equally into {g} and sells all but one.
{F} makes {k} equal parts, and {a} gets one part.
{A} lays them out in {k} equal rows and keeps one row.
Then they are put equally into {g}, and {a} takes one.
{A} cuts the heap into {k} equal parts and gives away all but one.
They are divided equally among {k} people, and {a} is one.
{A} splits them into {k} equal piles and keeps the first pile.
{F} puts them equally into {g} and gives {him} one of these.
"""
# The same events in words that do not occur in WordProblems; HardProblems uses them.
_NEW_GAINS = """
{F} hands {him} {k}.
A bird brings {k}.
Then {k} fall{s} out of a tree.
{A} wins {k} in a race.
Grandmother sends {k}.
{F} leaves {k} at the door for {him}.
By the river, {a} discovers {k}.
With the post come{s} {k}.
"""
_NEW_LOSSES = """
A mouse nibbles {k}.
Then {k} roll{s} down the hill.
{A} lends {k} to {F}.
{F} hides {k}.
{A} throws {k} into the well.
A crow flies off with {k}.
In the fire, {a} burns {k}.
In the lake, {k} sink{s}.
"""
_NEW_TIMES = """
The heap grows to {k} times its size.
A fairy waves her wand, and each is now {k}.
{A} dreams of {k} for each, and wakes up with them.
{F} copies them until there are {k} of each.
"""
_NEW_SHARES = """
A fair judge cuts the heap into {k}, and {a} takes one part.
One part in {k} is all that stays.
With {k} at the table, {a} takes only a fair part.
{A} may keep one of every {k}.
"""
HOLDERS = tuple("bags boxes baskets bowls sacks buckets plates jars".split())
_QUESTIONS = """
How many {x} does {A} have now?
How many {x} does {A} have?
How many {x} has {A} in the end?
How many {x} are there for {A} now?
Tell me how many {x} {A} has now.
"""


def _templates(table: str) -> tuple[str, ...]:
    return tuple(table.strip().splitlines())


# Templates by the kind of event: the quantity at the start ("of": as groups), or the operation that changes it.
SENTENCES = {
    "start": _templates(_STARTS),
    "+": _templates(_GAINS),
    "-": _templates(_LOSSES),
    "*": _templates(_TIMES),
    "of": _templates(_GROUPS),
    "/": _templates(_SHARES),
}
NEW_SENTENCES = {
    "start": _templates(_STARTS),
    "+": _templates(_NEW_GAINS),
    "-": _templates(_NEW_LOSSES),
    "*": _templates(_NEW_TIMES),
    "/": _templates(_NEW_SHARES),
}
QUESTIONS = _templates(_QUESTIONS)

# Questions that compare the quantities of two people; {A} has more than {B}.
DIFFERENCE_QUESTIONS = (
    "How many more {x} does {A} have than {B}?",
    "How many {x} does {A} have more than {B}?",
    "By how many {x} is {A} ahead of {B}?",
)

# Questions for the sum of the quantities of two people.
SUM_QUESTIONS = (
    "How many {x} do {A} and {B} have together?",
    "How many {x} have {A} and {B} in all?",
    "{A} and {B} put all their {x} together. How many are there?",
)

# {B} has {k} more than {A}.
DIFFERENCES = ("{B} has {k} more than {A}.", "{B} has {k} {x} more than {A}.", "{A} has {k} fewer than {B}.")

# A story whose start is unknown: its beginning, its end and its question.
UNKNOWN_STARTS = ("{A} has some {x}.", "There are some {x} in the basket of {A}.", "{A} keeps some {x} in a box.")
FINAL_COUNTS = ("Now {A} has {n}.", "In the end, {A} has {n}.", "Then {A} counts {n}.")
START_QUESTIONS = (
    "How many {x} did {A} have at first?",
    "How many {x} were there at the beginning?",
    "With how many {x} did {A} begin?",
)

# Sentences with an irrelevant number.
DISTRACTORS = (
    "{F} is {k} years old.",
    "{F} has {k} cousins.",
    "It is a walk of {k} minutes to the market.",
    "{F} tells {k} stories.",
    "There are {k} birds in the tree.",
    "{F} sleeps for {k} hours.",
)
