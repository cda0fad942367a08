# ruff: noqa: E501  (a beat is one line)
"""Plots in which something goes wrong and someone helps: events, their participants and their causes. The grammar words them.

    H *take {T} to {P} ; H *play until noon  ->  "Mia took her red kite to the meadow, and then she played until noon."

= name                a plot; then its roles, its weather (`% windy`), its beats, one per line
: H=child T=portable@H   roles with their types; T is a thing that H owns
/                     a new paragraph
beat || beat          alternatives
a ; b                 b follows a          a <- b   a because b        a ~ b   a, but b
a & b                 a while b            a => vp  a in order to vp
H>F plan *vp          speech: plan, did, past, will, can, or "words" "more words"
! beat   $ beat   ? beat    sudden, final, omitted in half of the stories; `-*lose` is not deliberate
"""

TROUBLES = """
= lost
: H=walker F=walker T=portable@H P=out Q=place
H *take {T} to {P} ; H *play until noon || H *carry {T} to {P} => *show it to {F} || H *walk to {P} with {T} ; H *meet some friends there
! H -*notice that {T} *be gone || H -*look/reach for {T} ; {T} -*be gone || {T} -*be nowhere to be seen
H -*be [very] [sad] <- H -*love {T} more than anything || H *begin to cry <- {T} *be gone || H *sit down on the ground ; H *hide {H.his} face
/
H *ask everyone at {Q} ~ nobody -*know where it *be || H *look [everywhere] ~ H -*find nothing but {x:find} || H *search [everywhere] ; H *call for help
F *hear/notice {H} ; F *come/run/hurry over || F *walk by ; F *stop || F *see the tears ; F *sit down beside {H}
F>H "what is the matter?" || F>H "why are you so [sad]?" || F>H "you look [sad] today." "what has happened?"
H>F past *lose {T} || H>F "i cannot find {T}!" || H>F "{T} is gone, and i do not know where it is!"
F>H plan *look for it [together] || F>H "do not cry." "we will find it [together]." || F>H did *look under the bench || F>H "where did you see it last?"
/
H+F *go back to {P} ; H+F *look/search under every stone || H+F *walk along the [path] ; H+F *look behind every bush || H+F *search {P} => *find {T}
! F *see something [small] in the grass || F *find {T} under a pile of leaves || F *find {T} behind an old stump
F>H "is this yours?" "it is {T.color}." || F>H "[wow]!" "here it is!" || F>H "[wow]!" "i have found {T}!"
$ H -*be so [happy] that H -*hug {F} || H *hug {F} ; H *hold {T} tight || H *jump for joy <- {T} *be safe
H>F "[thanks]!" || H>F "[thanks]." "you are a true friend." || H>F "i will never leave it alone again!"
= wind
: H=walker F=bird T=light@H P=out
% windy
H *run across the grass with {T} || H *stand at the edge of the field with {T} ; H *look up at the clouds || H *play with {T} near {P}
! a strong wind *blow {T} into a tall tree || the wind *tear {T} out of {H.his} hands ; the wind *carry it up into a tree || a gust *lift {T} high into the air
H *try to climb the tree ~ the branches -*bepl too high || H *jump as high as possible ~ H *be unable to reach it || H *throw a stick at it ~ the stick -*get stuck too
H -*be [angry] <- the tree -*be too tall || H *stamp the ground ; H *begin to cry || H *lean against the trunk ; H *sigh [softly]
/
F *sit on the roof & H *shout/cry || F *watch everything from above || F *fly over the field ; F *hear a sob
F>H "why do you shout at a tree?" || F>H "may i help you?" || F>H "what are you looking for up there?"
H>F "the wind took {T}!" || H>F "{T} is stuck in the tree, and i cannot fly." || H>F can *get {T} down
F>H "[yes]!" "that is easy for me." || F>H will *fly up at once || F>H "[yes]." "wings are good for something."
F *spread {F.his} wings ; F *fly to the top of the tree || F *flap up through the leaves ; F *pull at {T} with {F.his} beak
? {T} -*fall down through the branches || a few leaves -*drift to the ground
$ F *drop {T} into {H.his} arms || F *bring {T} back without a scratch || F *land beside {H} with {T}
H>F "[thanks]!" || H *share {x:baked} with {F} => *say thank you || H>F "you are the best flier in the [village]!"
H+F *play [together] until [dusk] || H *hold {T} very tight on the way home
= rain
: H=walker F=walker P=out Q=in
% cloudy
H+F *walk to {P} || H+F *set off for {P} ; H+F *sing on the way || H *meet {F} on the way to {P}
F>H "look at those clouds." || F>H "i think it will rain soon." || F>H "the sky is very dark."
H>F "do not worry." "it is only a cloud." || H>F "i do not mind a little rain." || H>F "we will be back in time."
! big drops -*begin to fall || it -*begin to rain very hard || the rain -*pour down like a river
H+F *run/hurry to {Q} <- it -*be raining || H+F *race through the puddles ; H+F *reach {Q} just in time || H+F *hide under a tree ~ the rain -*come through the leaves
/
H -*be wet from head to toe ~ F -*be almost dry || F -*shiver/sneeze ; H *wrap a blanket around {F.him} || water -*drip from {H.his} ears ; F -*laugh
H>F "you were right." || F>H "next time you will listen to me." || H>F plan *stay here until it is over || F>H will *light a small fire
H+F *sit by the fire ; H+F *drink {x:drink} || F *tell a long story & H *dry {H.his} feet || H+F *play a game of cards & the rain -*drum on the roof
$ the rain -*stop ; a rainbow -*rise over {P} || the clouds -*drift away ; the sun -*shine again || the sky -*clear ; the birds -*begin to sing
H+F *go out ; H+F *splash in every puddle || H+F *walk [home] under the rainbow || H *point at the rainbow ; F *smile
H>F "it was a good day after all." || F>H "rain is not so bad with a friend." || F>H did *see the rainbow
= broken
: H=walker F=walker x=breakable
H *visit {F} ; H *admire {x} on the table || H *help {F} to clean the house || H *play with a ball in {F}'s kitchen
F>H "please be careful." || F>H "i got it from my grandmother." || F *go out => *fetch some wood
! H -*bump into the table ; {x.the} -*fall to the floor || H -*drop {x.the} <- it -*be slippery || H -*trip over the rug ; H -*knock over {x.the}
{x.the} -*break into many pieces || there -*bepl pieces all over the floor || {x.the} -*have a long crack
H -*be [very] [afraid] <- F -*love {x.the} || H *want to run away ~ H *stay || H *hide the pieces behind the curtain
/
F *come in ; F *look around || F *open the door ; F *stop || F *hear the noise ; F *hurry in
F>H "what was that noise?" || F>H "what happened here?" || F>H "where is {x.the}?"
H *tell {F} the truth ~ it -*be hard || H -*blush/tremble ; H *say nothing || H *look at {H.his} feet
H>F "i am so sorry." || H>F past -*break {x.the} || H>F "it was my fault." "please forgive me."
F -*be silent for a moment ~ F *smile || F -*be [sad] ~ F *nod || F *take a deep breath
F>H "thank you for telling the truth." || F>H "a friend is worth more than {x}." || F>H plan *mend it [together]
/
H+F *glue the pieces [together] || H *save coins for weeks => *buy a new one || H+F *sweep up the pieces ; H+F *fetch the glue
$ {x.the} -*look almost new || nobody -*can see the crack || H -*learn to tell the truth || H+F *laugh about it
F *forgive {H} <- H -*be honest || H -*be more careful after that || F *put {x.the} back in its place
= hungry
: H=walker F=walker P=out x=food
H -*be [very] [hungry] <- the cupboard *be empty || H -*have nothing to eat at home || H *wake up ; {H.his} stomach *growl
H *look in every cupboard ~ there *be only a dry crust || H *search the kitchen ~ H -*find nothing but salt || H *turn over every pot ; H *sigh
H *go/walk to {P} => *look for food || H *leave the house ; H *walk to {P}
F *sit near {P} with {x} & H *come closer || F *rest in the shade ; F *unpack {x} || H *meet {F} ; F *carry {x}
H>F "that smells so good." || H>F "i have not eaten since yesterday." || H>F "is there enough for two?"
? F *look at {x.the} ; F *think for a moment || F -*be hungry too ~ F *smile
/
F *break {x.the} in two ; F *give half to {H} || F *share {x.the} with {H} <- F -*be kind || F *cut {x.the} into slices ; F *offer the biggest one to {H}
F>H "take it." "friends share everything." || F>H plan *eat it [together] || F>H "it tastes better when two eat it."
H *eat slowly ; H *clean {H.his} fingers || H *eat with closed eyes || H *finish the last bite ; H *thank {F}
H>F "i will not forget it." || H>F "[thanks]." "tomorrow you shall be my guest." || H>F will *cook supper for you tomorrow
$ H *invite {F} to supper on the next day || H+F *cook a big pot of soup on the next day || H -*be full and [happy]
= market
: H=walker F=walker x=food
H *need {x} ; H *go/walk/hurry to the market || H *want to cook {y:meal} ; H *take some coins ; H *go to the market || H *go to the market => *buy {x}
the market *be full of people || there *be a long line at the stall || bright flags *hang/swing over the stalls
H *choose {x.the} [care] ; H *put it in a bag || H *look at all the stalls ; H *pick {x.the} || H *ask for the price of {x.the}
H *want to pay ~ {H.his} pocket *be empty || H *reach for the money ~ it *be gone || H -*blush <- there *be a hole in {H.his} pocket
H>F "[oh]!" "i have lost my money!" || H>F past -*forget the money || H>F "i am sorry, i cannot pay."
/
F *stand in the line behind {H} || F *hear everything ; F *come/step closer || F *sell flowers at the next stall
F>H "do not worry." "i will pay for you." || F>H "take two of my coins." || F>H can *carry my bag [home]
H *thank {F} ; H *carry {F}'s heavy bag [home] || H *promise to pay the money back || H *hug/thank {F} ; H *offer some help
F>H "that is what friends are for." || F>H "you helped me last winter." || F>H "some day you will help me, too."
$ H *find the lost coin in {H.his} shoe || H *bring the money back on the next day || H+F *walk [home] ; H+F *eat {x.the} on the way
= water
: H=walker F=swimmer T=floating@H P=water
H *carry {T} to {P} ; H *sit down on the bank || H *play with {T} by {P} || H *throw stones into the water by {P}
H *lean too far over the water || H *step on a wet stone || H *dance on the edge of the bank
! {T} -*fall into the water || H -*slip ; {T} -*roll into the water || the wind *push {T} into the water
{T} -*float/drift away from the bank || the waves *carry {T} farther and farther out || {T} -*be out of reach
H>F "[please], help me!" || H>F "{T} is in the water!" || H>F can *swim after it
/
F *see what -*happen ; F *swim after it || F *jump into the cold water || F *take off in a hurry ; F *swim as fast as an arrow
? the water *be cold ~ F -*be not afraid || a big wave *splash into {F.his} face
F *catch {T} just before the rocks || F *push {T} back to the bank || F *hold {T} above the water ; F *swim back
F>H "here you are." "it is only a little wet." || F>H "hold it with both hands from now on." || F>H did *learn to swim
H>F "no, but i would like to." || H>F "you are a wonderful swimmer." || H>F "[thanks]!"
$ H *dry {T} in the sun || H *rub {F} dry with a towel || H *wrap {F} in a warm blanket
H+F *sit/rest on the warm stones || F *show {H} how to float || H+F *watch the waves until [dusk]
= fright
: H=young F=walker
% cloudy
H -*wake up in the middle of the night || H *lie in bed ~ H -*be unable to sleep || H *sit at the window & the rain *fall
! there *be a loud noise outside || something *scratch at the door || a long shadow *move across the wall
H -*tremble/shiver <- H -*be [very] [afraid] || H *pull the blanket over {H.his} head || H *hold {H.his} breath ; H *listen
H>F "who is there?" || H>F "please go away!" || H>F "is that a ghost?"
/
F *live next door ; F *hear the cry || F *stand at the door with a lamp || F *knock three times ; F *come in
F>H "do not be [afraid]." "it is only me." || F>H "i saw a light in your window." || F>H "it was only the wind in the branches."
F *light a candle ; the shadow -*disappear || F *sit down on the bed ; F *tell a funny story || F *make some warm milk & H *tell everything
F>H "everyone is afraid of something." || F>H "the night is only the day with its eyes closed." || F>H plan *look behind the door [together]
H+F *look under the bed ~ there *be only dust || H+F *open the door ; a small kitten *run in || H *peep out ; H *see an old branch
H>F "so that was my ghost!" || H>F "i feel better now." || H>F "will you stay until i sleep?"
$ H -*fall asleep <- F *hold {H.his} hand || H *laugh ; H *close {H.his} eyes || F *blow out the candle ; F *go home
= ill
: H=walker F=walker x=meal y=flower
F *stay in bed <- F -*be ill || F -*have a bad cold ; F -*sneeze all day || F *miss the dance <- F -*have a fever
H *hear about it ; H *want to help at once || H *wait for {F} ~ nobody *come || H -*be worried <- {F}'s window *stay dark
H *cook {x} ; H *pour it into a pot || H *pick {y} => *cheer {F} up || H *chop some vegetables & the water *boil
H *carry {x.the} through the rain => *visit {F} || H *hurry/run to {F}'s bed || H *knock [softly] ; H *open the door
H>F "how are you today?" || H>F "i have brought you something." || H>F will *stay until you sleep
F>H "my head hurts." || F>H "i feel weak and hot." || F>H "it is kind of you to come."
/
F *eat a few spoons ; F *smile || F *drink the hot broth ; F *feel warm again || H *put a cold cloth on {F}'s forehead
H *read a story aloud & F *rest || H *sweep the room ; H *water the plants || H *sit beside the bed & F *sleep
H>F "you must sleep a lot and drink hot tea." || H>F "the doctor says it is only a cold." || H>F "you will be well in a few days."
$ the fever -*go down || F -*be healthy again after three days || F *jump out of bed ; F *dance around the room
F>H "you are better than any medicine." || F>H "[thanks], my friend." || F>H plan *go for a walk
= lostway
: H=young F=walker
H *walk deep into the forest => *pick mushrooms || H *follow a butterfly into the forest || H *go into the forest alone ~ nobody *know it
H *look at the flowers ; H -*forget the time || H *run after a squirrel ; H *leave the path || H *sing a song & the sun *sink
! H -*notice that the path *be gone || it -*become dark between the trees || a thick fog *cover the forest
H *turn left and right ~ all the trees *look alike || H *sit down under a fir ; H *begin to cry || H *call for help ~ there *be no answer
? H *eat some berries <- H -*be [hungry] || H *make a bed of moss
/
F *hear a voice ; F *come/step out of the bushes || F *carry a lantern through the forest || F *gather wood & H *shout
F>H "what are you doing here all alone?" || F>H "are you lost?" || F>H "it is much too late for a walk."
H>F "i do not know the way home." || H>F past -*lose my way || H>F can *take me home
F>H "i know every tree in this forest." || F>H plan *follow the stream || F>H "take my hand and do not let go."
H+F *follow the stream to the village || F *lead {H} along a hidden path || H+F *walk under the stars ; H+F *talk about home
$ H *see the lights of the village || H *be safe at home again || they *reach the first houses before midnight
H *hug {F} ; H *promise to stay on the path || H *wave [long] & F *walk away || H *tell {F} where the best mushrooms *grow
H>F "i will never go alone again." || H>F "[thanks] for showing me the way." || F>H "sleep well, little friend."
= quarrel
: H=walker F=walker P=out x=carry
H+F *find {x} {P.at} || H+F *see {x} at the same time || H+F *reach for {x} at once
H>F "it is mine!" "i saw it first." || H>F "give it to me!" || H>F "let go!" "it belongs to me."
F>H "no, it is mine!" || F>H "you always want everything." || F>H "i touched it first."
H+F *pull at {x.the} || H+F *shout at each other || F *push {H} ; H *push back
! {x.the} *fall into a puddle || {x.the} *break in two || {x.the} *roll down the hill
H *turn around ; H *stamp away || F *cross {F.his} arms ; F *say nothing || H+F *go home without a word
/
H *sit at the window ; H *feel lonely || F *play alone ~ it *be no fun || H *miss {F}
H *go/walk back ; H *knock at {F}'s door || F *write a short note to {H} || H+F *meet in the middle of the road
H>F "i am sorry." "i was selfish." || F>H "a friend is more important than {x}." || H>F "you can have it."
F>H "i am sorry, too." || F>H "no, you take it." || F>H plan *share it
$ H+F *shake hands ; H+F *laugh || H+F *use {x.the} in turns || H+F *forget the quarrel within a minute
= hill
: H=walker F=walker T=heavy@F P=high
F *push {T} up the steep road ~ it *be too heavy || F *want to bring {T} to {P} || {T} *be stuck in the mud near {P}
F *push and *pull ~ nothing *move || F *stop to rest <- the road *be steep || the sweat *run down {F.his} face
F>H "can anybody help me?" || F>H can *push from behind || F>H "i cannot go on."
H *put down a heavy load ; H *come over || H *roll up {H.his} sleeves || H *hear the groan ; H *run down the hill
H>F plan *pull [together] || H>F "one, two, three, pull!" || H>F "you should have asked before."
H *push from behind & F *pull at the front || H *fetch a long rope || H *put flat stones under it
! {T} *begin to move || {T} *roll back a little || the rope *snap ; H+F *fall into the mud
H+F *laugh at their dirty faces || H *tie a stronger knot || F *count to three once more
/
H+F *reach {P} [evening] || H+F *get to the top before dark || {T} *stand safely {P.at} at last
F>H "i could never have done it alone." || F>H "[thanks]!" || F>H "four hands are better than two."
H>F "next time call me at once." || H>F "my back hurts, but it was fun." || H>F plan *wash our faces in the stream
$ F *share {x:food} with {H} || H+F *enjoy the wide view || F *let {H} ride down the hill
= shoes
: H=walker F=walker x=clothes
H -*be cold <- H -*have nothing warm to wear || H *need {x} for the winter || the nights *bepl cold ~ H -*have no {x.bare}
H *have only a few coins || the shop *be too dear for {H} || H *mend the old one again and again
F *notice it ; F *say nothing || F *see {H} shiver || F *measure {H} with {F.his} eyes
F *buy wool ; F *work in secret every night || F *sell some jam => *buy cloth || F *cut and *sew by the light of a candle
H>F "you look [tired] these days." || H>F "what are you hiding behind your back?" || H>F "why is there light in your house so late?"
F>H "it is a secret." || F>H "be patient and you will see." || F>H "i read too long."
/
! the first frost *come || the first snow *fall || an icy wind *blow through the streets
F *knock at the door with a parcel || F *leave a parcel on the doorstep || F *put {x} around {H.him}
H *open it with cold fingers || H *try it on ; it *fit || H *find a note in the pocket
H>F "did you make it for me?" || H>F "it is so soft and warm." || H>F "i do not know what to say."
F>H "then say nothing and stay warm." || F>H "you would do the same for me." || F>H "it was a pleasure."
$ H *wear {x.the} all winter || H -*be never cold again || H *bake a cake for {F} <- H *want to say thank you
= borrow
: H=walker F=walker T=portable@F
H *want to borrow {T} || H *ask {F} for {T} || H *visit {F} <- H *need {T}
H>F "may i borrow {T}?" || H>F "i need {T} for one day." || H>F can *lend me {T}
F *think for a moment <- F -*love {T} || F *hand over {T} ~ F -*be worried || F *nod ; F *fetch {T}
F>H "please bring it back tonight." || F>H "take good care of it." || F>H "you may have it until sunset."
/
H *use {T} all day || H *carry {T} around proudly || H *show {T} to everyone in the [village]
! H -*drop {T} into the mud || H -*leave {T} on a bench || a dark cloud *cover the sun ; it *get late
H -*be [very] [afraid] of {F}'s anger || H *run back as fast as the wind || H *wash {T} [care] ; H *dry it
H *bring {T} back just before sunset || F *wait at the gate ; F *look at the clock || H *knock at {F}'s door with {T}
H>F "here it is, as i promised." || H>F "i am sorry that it got dirty." || H>F past *clean {T} twice
F>H "it looks better than before." || F>H "i knew that i could trust you." || F>H "you may borrow it again."
$ F *lend {T} to {H} whenever {H.sub} *ask || H+F *use {T} [together] after that || H *thank {F} with {x:baked}
= owner
: H=walker F=walker T=portable@F P=out
H *walk through the grass near {P} || H *rest on a bench {P.at} || H *collect leaves {P.at}
! H *find {T} on the ground || H *see something strange in the grass || H *step on something hard
H *pick it up ; H *clean it || H *look around ~ nobody *be there || H *hold it up to the light
H *want to keep it ~ it *belong to someone else || H *think about the poor owner || H *like it very much ~ H *want to be honest
/
H *ask everyone on the road || H *go from door to door || H *meet {F} ; F *look [sad]
H>F "why are you so [sad]?" || H>F "whose is this?" || H>F did *lose something
F>H past -*lose {T} || F>H "i have looked for {T} all day." || F>H "i was so careless this morning."
H>F "is this what you are looking for?" || H>F "look what i found {P.at}." || H>F "then this must be yours."
F *jump up ; F *hug {H} || F *take {T} with shaking hands || F *laugh and cry at the same time
F>H "[wow]!" "you have found {T}!" || F>H "[thanks]!" || F>H "you could have kept it, but you did not."
$ F *give {H} {x:fruit} as a reward || F *invite {H} to tea || H *walk home with a light heart
"""
