# ruff: noqa: E501  (a row of a table is one line)
"""The words of the embedded data: verb inflection, nouns with their adjectives, and choices of interchangeable words."""

from dataclasses import dataclass

# past: "was", pastp: past plural "were", base: "be", s: third person "is", p: plural "are", ger: "being", part: "been"
FORMS = ("past", "pastp", "base", "s", "p", "ger", "part")

# base, past, participle
_IRREGULAR = """
be was been|have had had|do did done|go went gone|come came come|see saw seen|take took taken|give gave given
get got got|find found found|lose lost lost|say said said|tell told told|know knew known|think thought thought
feel felt felt|run ran run|swim swam swum|sing sang sung|sit sat sat|stand stood stood|fall fell fallen
fly flew flown|eat ate eaten|drink drank drunk|make made made|bring brought brought|buy bought bought
catch caught caught|teach taught taught|build built built|hide hid hidden|hear heard heard|hold held held
keep kept kept|leave left left|meet met met|put put put|read read read|rise rose risen|shake shook shaken
shine shone shone|sleep slept slept|sweep swept swept|throw threw thrown|wake woke woken|wear wore worn|win won won
write wrote written|blow blew blown|begin began begun|break broke broken|choose chose chosen|dig dug dug
draw drew drawn|forget forgot forgotten|grow grew grown|cut cut cut|let let let|light lit lit|set set set
sell sold sold|send sent sent|swing swung swung|hang hung hung|lead led led|lie lay lain|bend bent bent
creep crept crept|slide slid slid|spread spread spread|sew sewed sewn|show showed shown|become became become
tie tied tied|lend lent lent|hurt hurt hurt|sink sank sunk|tear tore torn|forgive forgave forgiven
learn learned learned|drive drove driven|beat beat beaten|hit hit hit|shoot shot shot|kneel knelt knelt
"""
_DOUBLED = frozenset(
    "chat chop clap drip drop drum fit flap hug hum nod plan rub slip snap step stir stop trip wrap".split()
)
_IRREGULAR_FORMS = {row.split()[0]: row.split() for row in _IRREGULAR.replace("\n", "|").strip("|").split("|")}
_BE = {"past": "was", "pastp": "were", "base": "be", "s": "is", "p": "are", "ger": "being", "part": "been"}
_MODALS = {"can": "could", "may": "might", "must": "must"}


def inflect(lemma: str, form: str) -> str:
    """Return a form (one of FORMS) of a verb given by its base form.

    >>> inflect("carry", "past"), inflect("go", "part"), inflect("hug", "ger"), inflect("be", "pastp")
    ('carried', 'gone', 'hugging', 'were')
    """
    if lemma in _MODALS:
        return _MODALS[lemma] if form == "past" else lemma
    if lemma in ("be", "bepl"):  # bepl: "be" after a plural noun that is spelled out in the pattern
        return _BE[{"past": "pastp", "s": "p"}.get(form, form) if lemma == "bepl" else form]
    soft_y = lemma.endswith("y") and lemma[-2] not in "aeou"
    if form in ("base", "p"):
        return lemma
    if form == "s":
        if lemma == "have":
            return "has"
        if soft_y:
            return lemma[:-1] + "ies"
        return lemma + ("es" if lemma.endswith(("s", "sh", "ch", "x", "z", "o")) else "s")
    if form == "ger":
        if lemma in ("lie", "tie"):
            return lemma[0] + "ying"
        if lemma.endswith("e") and not lemma.endswith(("ee", "oe", "ye")):
            return lemma[:-1] + "ing"
        doubled = lemma in _DOUBLED or lemma in _DOUBLE_IN_GERUND
        return lemma + (lemma[-1] if doubled else "") + "ing"
    if lemma in _IRREGULAR_FORMS:
        return _IRREGULAR_FORMS[lemma][2 if form == "part" else 1]
    if soft_y:
        return lemma[:-1] + "ied"
    if lemma.endswith("e"):
        return lemma + "d"
    return lemma + (lemma[-1] if lemma in _DOUBLED else "") + "ed"


_DOUBLE_IN_GERUND = frozenset("begin cut dig forget get hit let put run set sit swim win".split())

# Verbs used in their -ing form. Rare verbs are not, to avoid words too rare to be learned.
WITH_GERUND = frozenset(
    "look sit wait walk run go eat take put hold open call laugh hug thank jump pull push tell show play wash clean "
    "shake carry think listen throw watch rest knock".split()
)

# Verbs too rare for a distinct participle.
WITHOUT_PERFECT = frozenset("grow wake fall drink shake fly throw choose blow tear lie sing swim wear draw".split())

# Verbs of abilities that only some characters have: the first verb of a phrase limits its subjects. All other verbs
# suit every character except for the fish, which cannot walk.
VERB_SUBJECTS = {"flap": "bird", "swim": "swimmer", "float": "swimmer"}
SUBJECT_GROUPS = {
    "bird": "owl duck crow robin swan",
    "swimmer": "otter duck frog fish swan turtle dog bear girl boy doctor sailor",
}

# noun: classes | adjectives. A noun of class "mass" takes "some", the others "a".
_NOUNS = """
apple: fruit food carry|ripe shiny sweet
pear: fruit food carry|ripe juicy sweet
banana: fruit food carry|ripe yellow
melon: fruit food carry|big juicy round
apricot: fruit food carry|ripe sweet small
bun: baked food carry|warm soft fresh
cookie: baked food carry|crunchy sweet big
tart: baked food carry|warm sweet little
loaf: baked food carry|fresh crusty warm
waffle: baked food|warm sweet
sandwich: food carry|big fresh
omelet: meal food|hot big
soup: meal food mass|hot thick
porridge: meal food mass|warm thick creamy
stew: meal food mass|hot thick
rice: meal food mass|hot plain
pudding: meal food mass|sweet creamy cold
tea: drink mass|hot sweet
cocoa: drink mass|hot sweet
juice: drink mass|cold fresh
lemonade: drink mass|cold sour fresh
water: drink mass|cold clean fresh
cucumber: plant food carry|green fresh long
beet: plant food carry|round heavy
bean: plant food|green long
tomato: plant food carry|ripe round juicy
tulip: flower carry|tall bright pretty
poppy: flower carry|red pretty wild
sunflower: flower carry|tall bright huge
buttercup: flower carry|tiny bright wild
daffodil: flower carry|bright pretty fresh
beech: tree|tall old
elm: tree|old huge
fir: tree|tall dark
poplar: tree|thin tall
maple: tree|broad old
coin: find carry|shiny old round
ring: find carry|golden shiny thin
bottle: find carry|green old empty
shell: find carry|pretty white smooth
pebble: find carry|smooth round shiny
bracelet: find gift carry|thin pretty silver
medal: find gift carry|shiny old golden
puzzle: gift carry|small new wooden
candle: gift carry|tall white thin
mug: gift carry|big pretty new
sweater: gift clothes carry|warm thick new
jacket: clothes carry|warm long new
cap: gift clothes carry|small warm new
apron: gift clothes carry|clean long pretty
vase: breakable gift carry|tall pretty thin
plate: breakable carry|round white clean
window: breakable|big round little
jug: breakable carry|heavy old pretty
teapot: breakable carry|old pretty round
beetle: insect|shiny tiny slow
butterfly: insect|pretty bright tiny
ladybug: insect|tiny red round
dragonfly: insect|quick shiny bright
snail: insect|slow tiny wet
grasshopper: insect|green quick tiny
log: hurdle|wet heavy long
rock: hurdle|big heavy smooth
branch: hurdle|thin broken long
fence: hurdle|low wooden old
table: furniture|wooden round strong
chair: furniture|wooden strong new
bench: furniture|long wooden strong
stool: furniture|low round strong
shelf: furniture|wooden new long
letter: paper carry|long short kind
postcard: paper carry|pretty short
poem: paper|short funny pretty
picture: paper|pretty big funny
invitation: paper|kind short pretty
"""


@dataclass(frozen=True)
class Noun:
    """A common noun: "a ripe apple", "some hot soup"."""

    word: str
    classes: frozenset[str]
    adjectives: tuple[str, ...]

    @property
    def article(self) -> str:
        """The article of its first mention."""
        return "some" if "mass" in self.classes else "a"


NOUNS: dict[str, Noun] = {}
for _line in _NOUNS.strip().splitlines():
    _word, _rest = _line.split(": ")
    _classes, _adjectives = _rest.split("|")
    NOUNS[_word] = Noun(_word, frozenset(_classes.split()), tuple(_adjectives.split()))

# name: interchangeable words or phrases; "_" is the empty one. A repeated alternative is more frequent.
_CHOICES = """
very: _ | _ | very | so | quite | rather
happy: happy | glad | pleased | delighted | cheerful | full of joy
sad: sad | unhappy | upset | close to tears
tired: tired | sleepy | worn out
angry: angry | cross | furious
afraid: afraid | scared | frightened | terrified | nervous
surprised: surprised | amazed
hungry: hungry | starving
proud: proud
nice: nice | wonderful | beautiful
great: great | wonderful | good
small: small | little | tiny
kindly: _ | kindly | gently | warmly | with a smile
softly: _ | _ | softly | quietly | in a low voice | shyly
slowly: slowly | carefully
care: _ | _ | carefully | gently | patiently | with great care
long: for a long time | for a while | for many minutes | for an hour | all afternoon
everywhere: high and low | in every corner | all around | here and there
next: then | then | soon | after that , | a little later , | a moment later , | next , | before long , | not long after ,
meanwhile: meanwhile , | at the same time , | just then , | at that very moment ,
sudden: suddenly , | all at once , | all of a sudden , | without warning , | just then ,
last: at last , | in the end , | finally , | at long last ,
said: said | said | said | called | whispered | remarked | murmured
replied: said | answered | replied | said | whispered
glance: looked at | glanced at | smiled at | nodded to | winked at | leaned towards | turned around to | waved to | stared at | blinked at | beamed at | stepped closer to
gesture: smiled | nodded | laughed | sighed | grinned | frowned | blinked | shrugged | looked up | looked away | waved | stopped | turned around | came closer | leaned forward | sat up | thought for a moment | waited a little | listened | bowed
asked: asked | asked | wondered | inquired
cried: cried | shouted | called | exclaimed
yes: yes | of course | certainly | with pleasure | gladly | sure
no: no | not at all | certainly not | i am afraid not
thanks: thank you | thank you so much | many thanks | thanks a lot
hello: hello | good day | good morning | hello there | hi
please: please | please , please
oh: oh | oh dear | goodness | dear me | oh no
wow: wow | hooray | wonderful | look | how splendid
home: home | back home | straight home
together: together | side by side | with one another
village: village | little village | quiet village | small town
path: path | narrow path | dusty road
evening: in the evening | at sunset | at sundown | after dark | at dusk | after supper
dusk: sunset | nightfall | dark | supper | late in the evening
home2: home | school | work | breakfast | supper
dawn: in the morning | at dawn | after breakfast | at first light | at sunrise | early in the day
noon: at noon | after lunch | around midday | in the afternoon | at twelve o'clock
night: at night | at midnight | under the moon | long after bedtime | under the stars
when: [dawn] | [noon] | [evening] | [night] | every day | on rainy days | on quiet days | when nobody looks | twice a week | from time to time | on Sunday
ever: ever after | from that day on | from then on | ever since
"""
CHOICES: dict[str, tuple[str, ...]] = {}
for _line in _CHOICES.strip().splitlines():
    _word, _rest = _line.split(": ")
    CHOICES[_word] = tuple("" if alt.strip() == "_" else alt.strip() for alt in _rest.split(" | "))
