"""Closed lists of English words: function words, pronouns, verbs of speech, common verbs, persons and animals."""

from __future__ import annotations

ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof st sr jr vs etc e.g i.e eg ie cf fig figs no nos vol pp approx dept est inc ltd co corp gen col "
    "capt lt sgt rev hon gov sen rep u.s u.k u.n a.m p.m ph.d m.d b.c a.d jan feb mar apr jun jul aug sept sep oct nov "
    "dec al ca op ed eds chap sec eq eqs min max mt ave".split()
)
DETERMINERS = frozenset(
    "the a an one two three four five six seven eight nine ten every each many most some all several few both no "
    "any another other".split()
)
PREPOSITIONS = frozenset(
    "about above across after against along among around as at before behind below beneath beside between beyond by "
    "despite down during except for from in inside into like near of off on onto out outside over past since through "
    "throughout till to toward towards under until up upon via with within without".split()
)
PRONOUNS = frozenset(
    "he she it they him her them his hers its their theirs himself herself itself themselves this that these those "
    "such one ones there here".split()
)
POINTERS = frozenset(  # first words that point to other places, or ask the reader to do something with them
    "former latter above below following previous next figure table example note similar consider imagine suppose "
    "calculate recall notice let look see assume sketch find pump compare take examine "
    "explore wiggle".split()
)
FIRST_PERSON = frozenset(
    "i me my mine myself we us our ours ourselves i'm i'll i've i'd we're we'll we've we'd let's".split()
)
SECOND_PERSON = frozenset("you your yours yourself yourselves you're you'll you've you'd".split())
CONNECTIVES = frozenset(
    "and but or so yet nor then also however therefore thus hence moreover furthermore nevertheless nonetheless "
    "meanwhile instead otherwise still besides consequently accordingly additionally likewise similarly finally "
    "first firstly second secondly third thirdly lastly next again even indeed rather perhaps maybe suddenly "
    "now later soon afterwards afterward conversely specifically alternatively overall clearly of-course for-example "
    "yes no well oh ah ok okay too because although though while whereas unlike either neither once another other "
    "others together both".split()
)
AUXILIARIES = frozenset(
    "is are was were be been being has have had do does did can could will would shall should may might must".split()
)
QUESTION_WORDS = frozenset("what who whom whose which when where why how".split())
FUNCTION_WORDS = (
    DETERMINERS
    | PREPOSITIONS
    | PRONOUNS
    | FIRST_PERSON
    | SECOND_PERSON
    | AUXILIARIES
    | QUESTION_WORDS
    | frozenset(
        "and but or so if than then not very too just only own same more much can't don't didn't isn't wasn't also "
        "however because while although though yet am i'm it's that's there's let get got go goes went".split()
    )
)
SPEECH_VERBS = frozenset(
    "said says asked asks replied answered cried shouted called whispered exclaimed screamed yelled sang begged "
    "laughed told thought wondered announced declared explained warned ordered suggested added agreed".split()
)
# What can follow the verb of a statement, so that a noun of the same spelling is not taken for a verb.
AFTER_A_VERB = (
    (DETERMINERS - {"no"})
    | (PREPOSITIONS - {"of"})
    | frozenset("his her their its my our your him them it us me himself herself themselves itself and".split())
)
PAST_VERBS = frozenset(
    "became began bought broke brought built came caught chose cut did drank drew drove ate fell felt fought found "
    "flew forgot forgave froze gave went grew heard held hid hit kept knew led left lent let lay lost made met paid "
    "put "
    "ran rang read rode rose sang sat saw sold sent set shook shone shot showed shut slept spoke spent stood stole "
    "stuck swam swept swung taught took thought threw told tore understood wore woke won wrote bit blew dug got said "
    "hung sank sprang struck swore wept wove".split()
)
PRESENT_VERBS = frozenset(
    "allows appears applies argues asks becomes begins believes belongs brings builds carries causes changes "
    "checks combines comes compares computes connects consists contains controls converts covers creates defines "
    "depends describes describe determines develops does eats ends enables ensures examines exists explains extends "
    "falls feels finds flows follows forms gives goes grows happens helps holds identifies includes increases "
    "indicates "
    "involves keeps knows lacks lays leads learns leaves lets lies likes lives loads looks loves makes manages means "
    "measures moves needs occurs offers opens owns passes performs plays predicts prevents prints produces protects "
    "provides pulls pumps reads receives reduces reflects refers regulates removes represents requires returns rises "
    "runs says seeks sees selects sends serves shows sleeps solves stands starts states stops stores studies suggests "
    "supports takes tells tends thinks tries turns uses wants wears works writes".split()
)
PERSONS = frozenset(
    "man woman boy girl child baby mother father mama papa mum dad mom grandmother grandfather granny grandma grandpa "
    "aunt uncle sister brother daughter son wife husband king queen prince princess chief teacher doctor nurse farmer "
    "hunter driver shopkeeper tailor friend neighbour neighbor people children women men boys girls parents villagers "
    "lion elephant hen rooster cock hare rabbit tortoise turtle monkey hyena snake crocodile hippo dog cat goat cow "
    "sheep donkey horse bird eagle crow owl frog fish mouse rat ant bee spider fly leopard cheetah zebra giraffe rhino "
    "baboon gorilla chameleon fox wolf bear pig duck chicken philosopher scientist theorist sociologist psychologist "
    "economist president leader author writer artist researcher judge lawyer officer soldier policeman pupil student "
    "witch giant wizard ogre magician old elder villager thief robber merchant trader lady gentleman voter "
    "entrepreneur "
    "manager worker employee user customer consumer buyer seller employer patient scholar critic citizen visitor "
    "reader "
    "player member owner partner follower singer dancer painter engineer explorer settler immigrant american european "
    "couple police crowd nun priest sangoma village tribe family team army".split()
)
# Headings that say nothing by themselves.
EMPTY_HEADINGS = frozenset(
    "introduction summary overview contents table-of-contents key-terms license licence references bibliography index "
    "appendix notes note acknowledgements acknowledgments credits about-this-book further-reading see-also exercises "
    "review-questions critical-thinking-questions problems solutions answers examples example conclusion preface "
    "foreword links resources learning-objectives glossary chapter section part background discussion review "
    "key-concepts chapter-summary section-summary quiz practice homework todo changelog authors navigation menu "
    "think-it-over try-it self-check-questions chapter-review "
    "learning-outcomes guideline solution strategy significance check-your-understanding key-takeaways objectives "
    "section-learning-objectives short-answer chapter-objectives key-equations further-research "
    "making-connections".split()
)
