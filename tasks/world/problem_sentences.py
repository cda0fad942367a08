# ruff: noqa: E501  (a row of a table is one line)
"""The sentences of word problems: who has how many of what, and what happens to them.

{A}  who has them: the name or "she" at the beginning, elsewhere {a} "she", {him} "her"
{F}  someone else
{n}  a number of things, "3 apples"; {is} goes with it
{k}  a number alone; {are} goes with it, and {s} with its verb
{g}  a number of bags or the like, "4 bags"
{x}  the things
"""

from nanochat.data.storyworld.world import CHARACTERS

PEOPLE = tuple(name for name in CHARACTERS if name != "Finn")  # a fish finds no apples

_THINGS = """
apple apples|pear pears|plum plums|nut nuts|cherry cherries|carrot carrots|egg eggs|cookie cookies|bun buns|coin coins
shell shells|pebble pebbles|ring rings|candle candles|button buttons|feather feathers|flower flowers|seed seeds|berry berries
stone stones|book books|letter letters|cup cups|bean beans|cake cakes|leaf leaves|stick sticks|ribbon ribbons|tulip tulips
"""
THINGS = tuple((one, many) for one, many in (pair.split() for pair in _THINGS.strip().replace("\n", "|").split("|")))

STARTS = """
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
GAINS = """
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
LOSSES = """
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
TIMES = """
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
GROUPS = """
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
SHARES = """
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
# The same in words that no worked solution has: HardProblems are told in these.
NEW_GAINS = """
{F} hands {him} {k}.
A bird brings {k}.
Then {k} fall{s} out of a tree.
{A} wins {k} in a race.
Grandmother sends {k}.
{F} leaves {k} at the door for {him}.
By the river, {a} discovers {k}.
With the post come{s} {k}.
"""
NEW_LOSSES = """
A mouse nibbles {k}.
Then {k} roll{s} down the hill.
{A} lends {k} to {F}.
{F} hides {k}.
{A} throws {k} into the well.
A crow flies off with {k}.
In the fire, {a} burns {k}.
In the lake, {k} sink{s}.
"""
NEW_TIMES = """
The heap grows to {k} times its size.
A fairy waves her wand, and each is now {k}.
{A} dreams of {k} for each, and wakes up with them.
{F} copies them until there are {k} of each.
"""
NEW_SHARES = """
A fair judge cuts the heap into {k}, and {a} takes one part.
One part in {k} is all that stays.
With {k} at the table, {a} takes only a fair part.
{A} may keep one of every {k}.
"""
HOLDERS = tuple("bags boxes baskets bowls sacks buckets plates jars".split())
QUESTIONS = """
How many {x} does {A} have now?
How many {x} does {A} have?
How many {x} has {A} in the end?
How many {x} are there for {A} now?
Tell me how many {x} {A} has now.
"""
SENTENCES = {
    name: tuple(table.strip().splitlines())
    for name, table in {"start": STARTS, "+": GAINS, "-": LOSSES, "*": TIMES, "of": GROUPS, "/": SHARES}.items()
}
NEW_SENTENCES = {
    name: tuple(table.strip().splitlines())
    for name, table in {"start": STARTS, "+": NEW_GAINS, "-": NEW_LOSSES, "*": NEW_TIMES, "/": NEW_SHARES}.items()
}
ASKED = tuple(QUESTIONS.strip().splitlines())

# What two people have is compared: {A} has more than {B}.
COMPARED = (
    "How many more {x} does {A} have than {B}?",
    "How many {x} does {A} have more than {B}?",
    "By how many {x} is {A} ahead of {B}?",
)
TOGETHER = (
    "How many {x} do {A} and {B} have together?",
    "How many {x} have {A} and {B} in all?",
    "{A} and {B} put all their {x} together. How many are there?",
)
# Someone has more or less than someone else; {n} is a number of things.
MORE = ("{B} has {k} more than {A}.", "{B} has {k} {x} more than {A}.", "{A} has {k} fewer than {B}.")
SOME = ("{A} has some {x}.", "There are some {x} in the basket of {A}.", "{A} keeps some {x} in a box.")
NOW = ("Now {A} has {n}.", "In the end, {A} has {n}.", "Then {A} counts {n}.")
AT_FIRST = (
    "How many {x} did {A} have at first?",
    "How many {x} were there at the beginning?",
    "With how many {x} did {A} begin?",
)
# Something that does not matter.
ASIDES = (
    "{F} is {k} years old.",
    "{F} has {k} cousins.",
    "It is a walk of {k} minutes to the market.",
    "{F} tells {k} stories.",
    "There are {k} birds in the tree.",
    "{F} sleeps for {k} hours.",
)
