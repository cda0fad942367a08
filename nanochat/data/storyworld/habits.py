"""Habits of characters, for portraits, and the sentences around walks, talks and lessons. Notation: grammar.py.

For example:

    HABIT_PATTERNS line "[when] , N1 V1.s ."  with habit "*sweep the floor and *sing"
    ->  "After supper, Mia sweeps the floor and sings."
"""

HABITS = """
*wash {H.his} face with cold water
*open the window and *greet the sun
*go/walk to {P:out} and *come back before noon
*drink {x:drink} and *look at the clouds
*eat {x:food} under a tree
*sweep the floor and *sing
*water the plants behind the house
*visit {F} {P:out.at}
*talk with {F} for an hour
*play with {F} until it *get dark
*think about the day in silence
*look for {x:find} {P:out.at}
*sit by the window and *watch the rain
*light a candle and *read
*make {x:meal} for {F}
*write a letter to {F}
*count the stars until {H.sub} *fall asleep
*mend old things
*bake {x:baked} for the neighbors
*carry water from the well
*gather wood for the stove
*listen to the wind in the chimney
*take a short nap in the shade
*tidy the room
*dream of far countries
*wait for {F} at the gate
*chat with everyone at the market
*dust the shelves
*stretch in the sun
*tell {F} a new story
*practice a new song
*follow the same path to {P:out}
*smell every {x:flower.bare} beside the road
*climb to the top of the hill and *shout
*rest on a bench {P:out.at}
*count {H.his} treasures
*brush {H.his} hair
*help {F} to carry heavy things
*share {x:fruit} with {F}
*polish {H.his} shoes
"""


# Sentences about a habit of N1.
HABIT_PATTERNS = """
[when] , N1 V1.s .
[when] , N1 V1.s .
N1 V1.s [when] .
N1 likes to V1.base [when] .
[when] , N1 likes to V1.base .
N1 never forgets to V1.base [when] .
what does N1 do [when] ? H1 V1.s .
"""
PORTRAITS = """
let me tell you about {A} .
do you know {A} ?
this is what people say about {A} .
have you ever met {A} ?
everyone in the [village] knows {A} .
who is {A} ?
here are some words about {A} .
{A.sub} is well known in the [village] .
there is a lot to say about {A} .
"""
THING_INTROS = """
now a few words about {T} .
and then there is {T} .
{A.sub} would never sell {T} .
nothing is dearer to {A} than {T} .
many people have asked about {T} .
"""
PORTRAIT_ENDS = """
that is {A} .
now you know {A} .
everyone is glad to have {A} in the [village] .
go and say hello to {A} .
if you see {A} , you will remember all this .
"""
WALKS = """
one {d} in {s} , {A.sub} and {B} went for a walk .
{A.sub} showed {B} the [village] on a {w} {d} .
it was a {w} {d} , and {A.sub} and {B} wanted to see the world .
{B.sub} was new in the [village] , and {A.sub} was a good guide .
"""
STOPS = """
first they came to {P} .
then they passed {P} .
they stopped at {P} to rest .
after an hour they reached {P} .
a narrow path led them to {P} .
they crossed a field and saw {P} .
soon they stood in front of {P} .
next came {P} .
{B.sub} wanted to see {P} as well .
"""
WALK_ENDS = """
in the evening they were [tired] , but [happy] .
they came home when the stars were out .
{B.sub} had never walked so far in one {d} .
they decided to go the same way again soon .
at the end of the walk they shared some bread .
"""
ANSWERS = """
F1 .
F1 .
F1 .
i think that F1 .
everyone knows that F1 .
of course , F1 .
well , F1 .
i am sure that F1 .
my father told me that F1 .
let me think . F1 .
"""
QUESTIONS = """
F1 ?
F1 ?
F1 ?
tell me , F1 ?
and F1 ?
now , F1 ?
i wonder , F1 ?
"""

# {A} and {B} meet at {P}.
MEETINGS = """
one {d} in {s} , {A.sub} met {B} {P.at} .
{A.sub} and {B} were sitting {P.at} on a {w} {d} .
on the way to {P} , {A.sub} saw {B} .
{A.sub} was waiting {P.at} when {B.sub} came along .
it was a {w} {d} , and {A.sub} had nothing to do . so {A.sub} went to {P} to see {B} .
{B.sub} knew almost everything , and {A.sub} was full of questions .
{A.sub} had come to {P} to learn more about the [village] .
it rained , and {A.sub} and {B} stayed in the kitchen .
"""
CURIOUS = """
[hello] , my friend .
i have a question .
may i ask you something ?
there is something i want to know .
i am new here .
people say that you know everything .
tell me something i do not know yet .
let us play a game of questions .
"""
PRAISE = """
that is right .
very good .
you are right .
well done !
i see .
i did not know that .
that is good to know .
how interesting !
[thanks] .
you know a lot .
now i remember .
"""
PARTINGS = """
[thanks] . now i know a little more .
goodbye , my friend .
it is late . i must go home .
that is enough for today .
see you tomorrow !
you should be a teacher .
next time it is my turn to ask .
i will never forget that .
"""
CLASSROOM = """
the children sat down , and {A.sub} opened a big book .
the bell rang , and the school was quiet .
on {day} , {A.sub} asked the class about the world .
{A.sub} wrote a word on the board .
it was a {w} {d} in {s} , but the children had to learn .
{A.sub} loved to ask questions , and the children loved to answer them .
all the children put up their hands .
there was a test at school on {day} .
"""
BELLS = """
then the bell rang , and everyone ran outside .
{A.sub} was proud of the class .
after that , the children went home .
{A.sub} closed the book . it was enough for one day .
the lesson was over , but {B.sub} wanted to hear more .
{B.sub} had learned a lot that {d} .
"""
