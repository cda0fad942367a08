# ruff: noqa: E501  (a row of a table is one line)
"""Sentence patterns: joins of clauses, wraps of speech, wordings of facts, openings and endings. Notation: grammar.py.

    goal: to V2.base , N1 V1.past .  ->  "To find the kite, Mia climbed the hill."

Joins: `one` clause; `same`, a sequence of two with the same subject; `seq`, with different subjects; `cause`, 1 because
of 2; `but`; `while`, 1 while 2; `goal`, 1 in order to 2. `+` needs a first clause that is deliberate. A full stop in the
middle makes two sentences. A repeated line is more frequent.
"""

JOINS = """
one: C1 .
one: C1 .
one: C1 .
one: [next] C1 .
one: [next] C1 .
one: + N1 decided to V1.base .
one: + N1 began to V1.base .
one: + N1 started V1.ger .
one: + N1 lost no time and V1.past .
one: + the next thing N1 did was to V1.base .
sudden: [sudden] C1 .
sudden: [sudden] C1 .
sudden: [sudden] C1 !
sudden: but then C1 !
sudden: but then , [sudden] C1 .
sudden: and what happened then ? C1 !
final: [last] C1 .
final: [last] C1 .
final: C1 in the end .
final: and so C1 .
final: that was how C1 .
same: N1 V1.past and V2.past .
same: N1 V1.past and V2.past .
same: [next] N1 V1.past and V2.past .
same: N1 V1.past , and then H1 V2.past .
same: first N1 V1.past , and then H1 V2.past .
same: + after V1.ger , N1 V2.past .
same: + after V1.ger , N1 V2.past .
same: + N1 was busy V1.ger . [next] H1 V2.past .
same: + N1 V1.past before V2.ger .
same: when N1 had V1.part , H1 V2.past .
same: as soon as N1 had V1.part , H1 V2.past .
same: N1 V1.past . [next] H1 V2.past .
same: N1 V1.past . H1 V2.past .
same: + having V1.part , N1 V2.past .
seq: C1 , and C2 .
seq: C1 , and C2 .
seq: C1 , and soon C2 .
seq: when C1 , C2 .
seq: as soon as C1 , C2 .
seq: after C1.perf , C2 .
seq: C1 , and then C2 .
seq: C1 . [next] C2 .
seq: C1 . C2 .
cause: C1 because C2 .
cause: C1 because C2 .
cause: because C2 , C1 .
cause: C2 , so C1 .
cause: C2 , so C1 .
cause: C2 , and that was why C1 .
cause: as C2 , C1 .
cause: since C2 , C1 .
cause: C1 , for C2 .
cause: C2 . that was why C1 .
cause: C2 . so C1 .
cause: C1 . the reason was simple : C2 .
but: C1 , but C2 .
but: C1 , but C2 .
but: although C1 , C2 .
but: even though C1 , C2 .
but: C1 , yet C2 .
but: C1 . but C2 .
but: C1 . still , C2 .
while: while C2 , C1 .
while: C1 while C2 .
while: C2 , and [meanwhile] C1 .
while: C2 . [meanwhile] C1 .
goal: N1 V1.past to V2.base .
goal: N1 V1.past in order to V2.base .
goal: N1 V1.past because H1 wanted to V2.base .
goal: N1 wanted to V2.base , so H1 V1.past .
goal: to V2.base , N1 V1.past .
goal: N1 V1.past . H1 wanted to V2.base .
"""

# Speech, by kind. The subject of V is in the pattern: "we", "you" or "i".
SPEECH = """
plan: let us V1.base .
plan: shall we V1.base ?
plan: why do we not V1.base ?
plan: we could V1.base .
plan: i think we should V1.base .
plan: come , let us V1.base .
plan: would you like to V1.base with me ?
did: did you V1.base ?
did: have you V1.part ?
did: is it true that you V1.past ?
past: i V1.past .
past: i have V1.part .
past: i think i have V1.part .
past: i am afraid i V1.past .
past: [oh] , i have V1.part !
will: i will V1.base .
will: i am going to V1.base .
will: i can V1.base if you like .
will: wait here , and i will V1.base .
will: do not worry , i will V1.base .
can: can you V1.base ?
can: could you V1.base , please ?
can: will you V1.base ?
can: please help me to V1.base .
"""

# Q1 is the speech up to a pause, Q2 the rest; S1 is a verb of saying that suits Q1; M1 is the hearer.
# Keys: the number of quotes.
WRAPS = """
1: “ Q1 ” S1 N1 .
1: “ Q1 ” S1 N1 .
1: “ Q1 ” N1 S1 .
1: “ Q1 ” S1 N1 [softly] .
1: N1 S1 [kindly] , “ Q1 ”
1: N1 [glance] M1 . “ Q1 ” H1 S1 .
1: N1 turned to M1 and S1 , “ Q1 ”
1: N1 [gesture] . “ Q1 ” H1 S1 .
1: N1 [gesture] and S1 , “ Q1 ”
2: “ Q1 ” S1 N1 . “ Q2 ”
2: “ Q1 ” N1 S1 . “ Q2 ”
2: “ Q1 ” S1 N1 [softly] . “ Q2 ”
2: “ Q1 ” S1 N1 and [glance] M1 . “ Q2 ”
"""

# Two lines per relation: relation|type of the subject|statements, then |questions; alternatives are separated by ;.
RELATIONS = """
home|char|{A.sub} *live {v};{A.sub} *have {A.own} home {v};{A.sub} *sleep {v} every night;the home of {A} *be {v}
|where does {A} live ?;do you know where {A} lives ?;where is the home of {A} ?
kind|char|{A.sub} *be a {v}
|who is {A} ?;what is {A} ?
food|char|{A.sub} *like {v} best of all;{A.sub} *love to eat {v};the favorite food of {A} *be {v};{A.sub} *be very fond of {v}
|what does {A} like to eat ?;what is the favorite food of {A} ?;what should we cook for {A} ?
friend|char|the best friend of {A} *be {v};{A.sub} *like {v} more than anyone else;{A.sub} *have a best friend called {v}
|who is the best friend of {A} ?;whom does {A} like best ?
thing|char|{A.sub} *own a {v};{A.sub} *have a {v} of {A.own} own;the {v} *belong to {A}
|what does {A} own ?;which thing belongs to {A} ?
hobby|char|{A.sub} *like to {v};{A.sub} *love to {v};the favorite pastime of {A} *be to {v};if {A.sub} *have time , {A.he} *like to {v}
|what does {A} like to do ?;what is the favorite pastime of {A} ?
fear|char|{A.sub} *be afraid of {v};{A.sub} *be scared of {v};nothing *frighten {A} more than {v}
|what is {A} afraid of ?;what frightens {A} most ?
look|char|{A.sub} *have {v};everyone *know that {A.sub} *have {v}
|what does {A} look like ?;how can i know {A} when we meet ?
trait|char|{A.sub} *be [very] {v};everyone *say that {A.sub} *be {v};{A.sub} *be known to be {v}
|what is {A} like ?;how would you describe {A} ?
color|thing|{A.sub} *be {v};the color of {A} *be {v}
|what color is {A} ?;do you know the color of {A} ?
material|thing|{A.sub} *be made of {v};{v} *be what {A.sub} *be made of
|what is {A} made of ?;do you know what {A} is made of ?
kept|thing|{A.sub} *be kept {v};the place for {A} *be {v}
|where is {A} kept ?;where is the place for {A} ?
near|place|{A.sub} *be near the {v};{A.sub} *be not far from the {v};close to the {v} *be {A}
|where is {A} ?;how do i find {A} ?
sight|place|{A.at} you *can see {v};people go to {A} to see {v}
|what is there to see {A.at} ?;what can you see {A.at} ?
sound|species|a {A} *can {v};if you come near a {A} , it may {v}
|what can a {A} do ?;what may a {A} do if you come near ?
covering|species|a {A} *be covered with {v};the body of a {A} *be covered with {v}
|what covers the body of a {A} ?;what is a {A} covered with ?
young|species|a young {A} *be called a {v};the child of a {A} *be called a {v}
|what is a young {A} called ?;what do you call the child of a {A} ?
work|trade|the work of a {A} *be to {v};it *be the task of a {A} to {v}
|what is the work of a {A} ?;what is the task of a {A} ?
workplace|trade|a {A} *work at the {v};the {v} *be where a {A} *work
|where does a {A} work ?;in which place can you find a {A} at work ?
foodcolor|foodstuff|the color of {A} *be {v};{v} *be the color of {A}
|what is the color of {A} ?;do you know which color {A} can have ?
taste|foodstuff|the taste of {A} *be {v};{v} *be how people describe the taste of {A}
|what is the taste of {A} ?;how would you describe the taste of {A} ?
origin|foodstuff|people get {A} {v};{A.sub} *must come {v}
|where do people get {A} ?;where must {A} come from ?
opposite|word|the opposite of {A} *be {v};if something *be not {A} , it *may be {v}
|what is the opposite of {A} ?;which word is the opposite of {A} ?
dayafter|day|the day after {A} *be {v};after {A} *come {v};{v} *follow {A}
|which day comes after {A} ?;what is the day after {A} ?
season|happening|in {v} , {A};it *be in {v} that {A}
|when is it that {A} ?;in which season can you see that {A} ?
tool|tool|a {A} *be used to {v};with a {A} you *can {v};people need a {A} to {v}
|what is a {A} used for ?;what can you do with a {A} ?
"""

# Openings and endings of stories. {A}: the hero; {s}: season; {w}: weather; {d}: part of the day.
OPENINGS = """
it was a {w} {d} in {s} .
it was {s} , and the {d} was {w} .
on a {w} {d} in {s} , C1 .
one {w} {d} in {s} , C1 .
one {d} in {s} , C1 .
it happened on a {w} {d} .
this is the story of {A} .
do you know the story of {A} ?
once upon a time , C1 .
not long ago , C1 .
everyone in the [village] still remembers that {d} in {s} .
let me tell you what happened to {A} one {d} in {s} .
nobody had seen such a {w} {d} in {s} for years .
the {d} was {w} , as it often is in {s} .
{s} had come to the [village] at last .
the sun rose over the [village] , and a {w} {d} began .
"""

ENDINGS = """
that night {A.sub} slept better than ever .
{A.sub} never forgot that {d} .
[ever] , {A.sub} and {B} were the best of friends .
a good friend is worth more than gold .
it is good to have a friend like {B} .
people in the [village] still talk about it .
the stars came out one by one over the [village] .
{A.sub} told the whole story to everyone at [home2] .
and if you meet {A} , ask about that {d} .
small things can make a big difference .
it had been a long {d} , but a good one .
when {A.sub} went to bed , {A.he} was still smiling .
kindness always finds its way back .
{A.sub} and {B} promised to meet again the next day .
now you know why {A.sub} and {B} like each other so much .
that is the end of the story .
{A.sub} fell asleep with a smile .
{B.sub} was proud of {A} .
nothing tastes as good as supper after such a {d} .
and all was well again .
trouble is only half as heavy when two carry it .
the moon rose , and the [village] went to sleep .
{A.sub} had learned something that {d} .
{A.sub} thanked {B} once more before bedtime .
since then , {A.sub} has often thought of that {d} .
the best days often begin badly .
both of them laughed about it for weeks .
some days are simply worth remembering .
{A.sub} wrote it all down so that nobody would forget .
"""

WEATHER = {
    "windy": ("windy", "breezy", "stormy"),
    "cloudy": ("cloudy", "gray", "misty", "dull"),
    "sunny": ("sunny", "bright", "warm", "clear", "golden", "mild"),
    "snowy": ("snowy", "icy", "cold"),
}
SEASONS = ("spring", "summer", "autumn", "winter")
PARTS_OF_DAY = ("morning", "day", "afternoon")
