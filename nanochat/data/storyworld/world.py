# ruff: noqa: E501  (a row of a table is one line)
"""The permanent world of the embedded data: characters, things and places, and all facts about them that never change.

All facts are in the tables of this file. A character owns exactly one thing, every animal is the only one of its kind, and every adult the
only one of their trade. So "the fox", "the baker" and "the kite" each refer to one individual, and a sentence about them
is either true or false.
"""

from dataclasses import dataclass

# name | kind | sex | home | favorite food | best friend | thing: color: material: kept | hobby | fear | look | trait
_CHARACTERS = """
Mia|girl|f|in the yellow house|pancakes|Tom|kite:red:paper:under the bed|paint pictures|thunder|curly hair|brave
Tom|boy|m|in the house by the bridge|strawberries|Mia|boat:blue:wood:in the bathtub|climb trees|deep water|freckles|careful
Lily|girl|f|in the white cottage|cherries|Clover|doll:pink:cloth:on the pillow|pick flowers|spiders|long hair|gentle
Ben|boy|m|in the house by the bridge|noodles|Rex|ball:green:rubber:behind the door|play football|the dark|dark hair|loud
Anna|girl|f|in the tall house|grapes|Ella|flute:silver:metal:in the drawer|write songs|wasps|blue eyes|patient
Sam|boy|m|on the farm|sausages|Duke|hat:brown:straw:on the hook|ride horses|lightning|red cheeks|cheerful
Ella|girl|f|in the yellow house|ice cream|Anna|lantern:golden:glass:in the cupboard|count the stars|snakes|green eyes|curious
Max|boy|m|in the tall house|pizza|Leo|drum:black:leather:in the attic|build castles|ghosts|big ears|stubborn
Rosa|girl|f|above the bakery|muffins|Hetty|umbrella:purple:silk:in the hall|skip rope|big waves|brown braids|lively
Leo|boy|m|in the lighthouse|fish pie|Max|telescope:white:brass:beside the window|watch the ships|high walls|short hair|thoughtful
Mr Hill|baker|m|above the bakery|walnut cake|Mr Stone|spoon:orange:wood:in the kitchen|tell jokes|burnt bread|a white beard|jolly
Mrs Green|gardener|f|in the white cottage|carrot soup|Molly|wheelbarrow:yellow:tin:in the shed|grow roses|hungry slugs|a sunburnt nose|hopeful
Mr Stone|miller|m|in the mill|barley bread|Mr Hill|sack:gray:linen:by the wheel|play chess|fire|dusty eyebrows|strong
Mrs Bell|teacher|f|beside the school|apple pie|Mrs Moon|bell:copper:bronze:on the desk|read poems|rusty nails|round glasses|fair
Mr Wood|carpenter|m|behind the workshop|mushrooms|Barney|hammer:dark red:steel:on the wall|carve animals|broken ladders|rough hands|handy
Mrs Brook|doctor|f|near the market|vegetable soup|Miss Reed|bag:dark blue:canvas:in the closet|swim in the lake|icy roads|warm hands|calm
Mr Field|farmer|m|on the farm|potatoes|Daisy|tractor:dark green:iron:in the garage|plant trees|hailstorms|muddy boots|hardworking
Mrs Lane|grocer|f|above the shop|plums|Mr King|basket:cream:willow:under the counter|solve riddles|mice in the cellar|a kind face|generous
Captain Gray|sailor|m|on the old ship|fried fish|Stella|compass:bronze:gold:in the cabin|sing sea songs|thick fog|a long beard|bold
Mrs Moon|librarian|f|in the stone tower|tea cakes|Mrs Bell|book:violet:parchment:on the top shelf|read old maps|leaking roofs|gray hair|clever
Mr Bright|painter|m|in the round house|oranges|Casper|brush:turquoise:horsehair:in the jar|paint sunsets|losing colors|stained fingers|dreamy
Mr King|postman|m|beside the post office|meat pies|Mrs Lane|bicycle:light blue:aluminum:in the yard|collect stamps|angry geese|long legs|punctual
Mrs Frost|tailor|f|in the tall house|biscuits|Misty|scarf:crimson:wool:in the trunk|sew costumes|moths|thin fingers|neat
Miss Reed|singer|f|in the round house|peaches|Mrs Brook|violin:maroon:maple:in the case|dance at night|losing her voice|golden hair|graceful
Rusty|fox|m|in the old barn|roast chicken|Hazel|wagon:scarlet:oak:behind the barn|explore caves|hunters|a bushy tail|sly
Hazel|squirrel|f|in the old oak|hazelnuts|Rusty|pouch:tan:moss:in the hollow|hide nuts|hawks|tiny paws|quick
Bruno|bear|m|in the cave|honey|Pip|blanket:beige:fleece:in the corner|sleep in the sun|bees|thick fur|lazy
Luna|owl|f|in the bell tower|warm biscuits|Henry|clock:pale yellow:ivory:above the stairs|tell stories|bright lamps|huge eyes|wise
Pip|mouse|m|under the bakery|cheese|Bruno|button:pearly:shell:in the matchbox|play hide and seek|traps|whiskers|shy
Daisy|cow|f|in the cowshed|fresh grass|Mr Field|ribbon:rosy:satin:around her neck|walk in the meadow|barking dogs|long horns|peaceful
Rex|dog|m|in the red kennel|bones|Ben|stick:light brown:birch:under the porch|chase leaves|fireworks|floppy ears|loyal
Misty|cat|f|above the shop|cream|Mrs Frost|cushion:lilac:velvet:near the stove|nap on the roof|cold baths|soft paws|proud
Clover|rabbit|f|under the hill|carrots|Lily|cup:mint green:clay:on the low shelf|jump over logs|foxes at night|long ears|nervous
Otto|otter|m|by the river|trout|Dora|raft:dark brown:bamboo:under the bridge|slide down banks|nets|sleek fur|playful
Dora|duck|f|by the pond|bread crumbs|Otto|bucket:bright yellow:plastic:between the reeds|splash in puddles|sharp hooks|a flat beak|chatty
Henry|hedgehog|m|under the hedge|crab apples|Luna|rug:olive:hemp:at the door|roll in leaves|wheels|sharp spines|grumpy
Felix|frog|m|in the pond|flies|Toby|trumpet:emerald:thick paper:under a leaf|sing in the rain|storks|a wide mouth|noisy
Molly|mole|f|under the garden|radishes|Mrs Green|spade:rust red:copper:in the tunnel|dig tunnels|floods|a pink nose|busy
Casper|crow|m|in the pine tree|corn|Mr Bright|mirror:shiny black:crystal:in the nest|collect treasures|scarecrows|black feathers|cunning
Duke|horse|m|in the stable|oats|Sam|saddle:chestnut:suede:on the fence|race the wind|loud trains|a long mane|noble
Dolly|sheep|f|on the green hill|clover leaves|Gus|bonnet:snow white:lace:on the hay|count clouds|wolves|woolly ears|mild
Gus|goat|m|behind the mill|cabbage|Dolly|wheel:dusty gray:stone:beside the gate|climb rocks|slippery ice|a pointed beard|rude
Ruby|robin|f|in the apple tree|worms|Percy|feather:sky blue:down:among the twigs|whistle tunes|cold winters|a red breast|merry
Toby|turtle|m|by the lake|lettuce|Felix|flag:ivory:cotton:inside his shell|take long walks|hot sand|a hard shell|slow
Finn|fish|m|in the lake|water weeds|Mabel|pearl:milky white:marble:under a rock|blow bubbles|pikes|silver scales|silent
Hetty|hen|f|in the henhouse|seeds|Rosa|whistle:coral:bone:beside the eggs|scratch the ground|thieves|spotted feathers|motherly
Percy|pig|m|in the pigsty|turnips|Ruby|bowl:peach:porcelain:on the straw|roll in mud|sharp knives|a curly tail|greedy
Stella|swan|f|on the island|pondweed|Captain Gray|necklace:amber:coral beads:in the reeds|dance on the water|ugly words|a long neck|elegant
Barney|badger|m|in the forest|blackberries|Mr Wood|armchair:plum:cotton:by the fireplace|cook stews|noisy visitors|a striped face|helpful
Mabel|donkey|f|beside the well|thistles|Finn|cart:lemon yellow:ash wood:near the well|carry baskets|steep hills|gray ears|kind
"""

# kind | sound, as a verb | covering | young one
_SPECIES = """
fox|yelp|fur|cub
squirrel|chatter|fur|kit
bear|growl|fur|cub
owl|hoot|feathers|owlet
mouse|squeak|fur|pup
cow|moo|hair|calf
dog|bark|fur|puppy
cat|meow|fur|kitten
rabbit|thump|fur|bunny
otter|chirp|fur|pup
duck|quack|feathers|duckling
hedgehog|snuffle|spines|hoglet
frog|croak|smooth skin|tadpole
mole|scratch|fur|pup
crow|caw|feathers|chick
horse|neigh|hair|foal
sheep|baa|wool|lamb
goat|bleat|hair|kid
robin|tweet|feathers|chick
turtle|hiss|a shell|hatchling
fish|bubble|scales|fry
hen|cluck|feathers|chick
pig|oink|bristles|piglet
swan|honk|feathers|cygnet
badger|grunt|fur|cub
donkey|bray|hair|foal
"""

# place | preposition | kinds | near | sight
_PLACES = """
bakery|at|shop in|school|warm loaves
school|at|in|library|wooden desks
library|in|in|market|tall shelves
market|at|shop out|post office|busy stalls
post office|at|shop in|shop|piles of letters
shop|in|shop in|bakery|jars of sweets
workshop|in|in|mill|sharp saws
mill|at|in|river|a great wheel
farm|on|out|orchard|golden fields
orchard|in|out trees|farm|rows of apple trees
garden|in|out trees|white cottage|beds of roses
park|in|out trees play|school|wooden benches
meadow|in|out play|stream|wild flowers
stream|by|out water|meadow|smooth pebbles
river|by|out water|bridge|fast water
lake|by|out water|forest|quiet water
pond|by|out water|garden|water lilies
beach|on|out water play|harbor|white shells
harbor|at|out water|lighthouse|fishing boats
lighthouse|at|high|beach|a bright lamp
forest|in|out trees wild|hill|tall pines
hill|on|out play high wild|meadow|grazing sheep
cave|in|dark wild|waterfall|bats on the ceiling
waterfall|by|out water wild|cave|a small rainbow
bridge|on|out|mill|wooden planks
well|by|out|square|a rope with a pail
square|on|out play|market|an old fountain
barn|in|in dark|farm|bales of hay
station|at|in|square|a big clock
playground|at|out play|park|swings and slides
tower|in|in high dark|station|narrow stairs
valley|in|out wild|waterfall|a hidden path
"""

# trade | workplace | work
_TRADES = """
baker|bakery|bake bread
gardener|garden|water the flowers
miller|mill|grind the flour
teacher|school|teach the children
carpenter|workshop|build tables
doctor|hospital|heal the sick
farmer|farm|plow the fields
grocer|shop|sell fruit
sailor|harbor|steer the ship
librarian|library|lend books
painter|workshop|paint portraits
postman|post office|bring the letters
tailor|tailor shop|sew coats
singer|theater|sing for the crowd
"""

# food (as a general word) | color | taste | origin
_FOODS = """
lemons|yellow|sour|from trees
cherries|red|sweet|from trees
plums|purple|juicy|from trees
strawberries|red|sweet|from the garden
blackberries|black|juicy|from bushes
carrots|orange|crunchy|from the garden
peas|green|tender|from the garden
onions|brown|sharp|from the garden
pumpkins|orange|mild|from the field
potatoes|brown|plain|from the field
milk|white|creamy|from cows
cheese|yellow|salty|from milk
honey|golden|sweet|from bees
eggs|white|mild|from hens
butter|pale yellow|creamy|from milk
bread|brown|crusty|from flour
corn|yellow|crunchy|from the field
peppers|red|spicy|from the garden
pears|green|juicy|from trees
chestnuts|brown|nutty|from trees
"""

_OPPOSITES = """
hot cold|big small|tall short|fast slow|loud quiet|light heavy|happy sad|old young|wet dry|hard soft|early late|open closed
full empty|clean dirty|near far|rich poor|strong weak|thick thin|deep shallow|rough smooth|high low|dark bright|sick healthy
"""

_DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"

# season | event
_SEASONS = """
spring|the birds build nests
spring|the trees begin to bloom
summer|the days are long
summer|the corn grows ripe
autumn|the leaves turn yellow
autumn|the apples are picked
winter|the snow covers the roofs
winter|the lake freezes
"""

# tool | use
_TOOLS = """
saw|cut wood
needle|sew clothes
broom|sweep the floor
ladder|reach high places
kettle|boil water
oven|bake cakes
pencil|draw pictures
thermometer|measure heat
rake|gather leaves
net|catch fish
key|open locks
towel|dry wet hands
ax|chop logs
oar|row a boat
comb|tidy hair
lamp|light a room
rope|tie knots
scale|weigh apples
"""


@dataclass(frozen=True)
class Character:
    """A person or an animal; `kind` is girl, boy, a trade or a species."""

    name: str
    kind: str
    sex: str
    home: str
    food: str
    friend: str
    thing: str
    hobby: str
    fear: str
    look: str
    trait: str


@dataclass(frozen=True)
class Thing:
    """The only thing that its owner has; no other thing has its noun."""

    noun: str
    owner: str
    color: str
    material: str
    kept: str


@dataclass(frozen=True)
class Place:
    """A unique place; `kinds` are the types of role it can fill in a plot, `at` is its preposition."""

    name: str
    at: str
    kinds: frozenset[str]
    near: str
    sight: str


def _rows(table: str) -> list[list[str]]:
    return [line.split("|") for line in table.strip().splitlines()]


CHARACTERS: dict[str, Character] = {}
THINGS: dict[str, Thing] = {}
for _row in _rows(_CHARACTERS):
    _noun, _color, _material, _kept = _row[6].split(":")
    CHARACTERS[_row[0]] = Character(*[*_row[:6], _noun, *_row[7:]])
    THINGS[_noun] = Thing(_noun, _row[0], _color, _material, _kept)
PLACES = {row[0]: Place(row[0], row[1], frozenset(row[2].split()), row[3], row[4]) for row in _rows(_PLACES)}
SOUNDS = {row[0]: row[1] for row in _rows(_SPECIES)}
COVERINGS = {row[0]: row[2] for row in _rows(_SPECIES)}
YOUNG = {row[0]: row[3] for row in _rows(_SPECIES)}
WORKPLACES = {row[0]: row[1] for row in _rows(_TRADES)}
WORK = {row[0]: row[2] for row in _rows(_TRADES)}
FOOD_COLORS = {row[0]: row[1] for row in _rows(_FOODS)}
TASTES = {row[0]: row[2] for row in _rows(_FOODS)}
ORIGINS = {row[0]: row[3] for row in _rows(_FOODS)}
_pairs = [pair.split() for pair in _OPPOSITES.replace("\n", "|").strip("|").split("|")]
OPPOSITES = {pair[0]: pair[1] for pair in _pairs} | {pair[1]: pair[0] for pair in _pairs}
DAYS = _DAYS.split()
DAY_AFTER = {day: DAYS[(i + 1) % 7] for i, day in enumerate(DAYS)}
SEASON_OF = {row[1]: row[0] for row in _rows(_SEASONS)}
TOOL_USES = {row[0]: row[1] for row in _rows(_TOOLS)}

_HEAVY = "tractor armchair cart wheelbarrow wagon raft bicycle"
_THING_CLASSES = {
    "heavy": _HEAVY,
    "portable": " ".join(noun for noun in THINGS if noun not in _HEAVY.split()),
    "small": "button pearl feather whistle compass spoon brush bell ribbon pouch necklace flute mirror",
    "light": "kite hat scarf ribbon feather bonnet flag umbrella",
    "floating": "boat ball hat bonnet stick bucket basket bowl drum",
    "music": "flute drum violin trumpet whistle bell",
    "holder": "basket bucket bag cup bowl sack pouch",
}
THING_CLASSES = {name: tuple(nouns.split()) for name, nouns in _THING_CLASSES.items()} | {"thing": tuple(THINGS)}
