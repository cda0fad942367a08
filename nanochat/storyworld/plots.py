"""The plots: what happens, to whom, and why. How it is worded is the business of the grammar.

    = name                a plot; then its roles, its weather (`% windy`), its beats
    : H=child F=any T=portable@H P=water x=fruit
    /                     a new paragraph
    beat || beat          alternatives
    a ; b                 b follows a          a <- b   a because b        a ~ b   a, but b
    a & b                 a while b            a => vp  a in order to vp
    H>F plan *vp          speech: plan, did, past, will, can, or "words" "more words"
    ! beat   $ beat   ? beat    sudden, final, left out at times; `-*lose` is not done on purpose
"""

PLOTS = """
= lost
: H=walker F=walker T=portable@H P=out Q=place
H *take {T} to {P} ; H *play/wander about until noon || H *carry {T} to {P} => *show it to {F} || H *walk/stroll to {P} with {T} ; H *meet some friends there
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
! F *see something [small] in the grass || F *find {T} under a pile of leaves || F *spot {T} behind an old stump
F>H "is this yours?" "it is {T.color}." || F>H "[wow]!" "here it is!" || F>H "[wow]!" "i have found {T}!"
$ H -*be so [happy] that H -*hug {F} || H *hug {F} ; H *hold {T} tight || H *jump for joy <- {T} *be safe
H>F "[thanks]!" || H>F "[thanks]." "you are a true friend." || H>F "i will never leave it alone again!"
= wind
: H=walker F=bird T=light@H P=out
% windy
H *run across the grass with {T} || H *stand at the edge of the field with {T} ; H *look up at the clouds || H *play with {T} near {P}
! a strong wind *blow {T} into a tall tree || the wind *tear {T} out of {H.his} hands ; the wind *carry it up into a tree || a gust *lift {T} high into the air
H *try to climb the tree ~ the branches -*bepl too high || H *jump as high as possible ~ H *can't reach it || H *throw a stick at it ~ the stick -*get stuck too
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
H+F *play [together] until [evening] || H -*hold on to {T} very tight after that
= bake
: H=walker F=walker x=baked y=fruit
H *want to bake {x} <- it -*be {F}'s birthday || H *invite {F} to the kitchen => *bake {x} || H *wake up early => *make {x} for {F}
H *mix flour with butter & F *wash {y} || H *stir the dough [care] ; H *add {y} || H+F *put on aprons ; H+F *weigh the flour
H *put {x.the} into the oven ; H *go outside for a moment || H *push the tin into the oven ; H *lie down on the sofa
! H -*fall asleep <- the kitchen -*be warm || H -*forget the time <- the sun -*be shining || H -*hear a strange noise ; H *run to the window
/
black smoke -*come out of the oven || the kitchen -*smell of smoke || a cloud of smoke -*fill the room
H *open the oven door ~ {x.the} -*be black || H *pull {x.the} out of the oven ; H -*burn {H.his} fingers || H *cough/sneeze ; H *open all the windows
H>F "[oh]!" "it is burnt!" || H>F past -*burn {x.the} || H>F "[oh], what have i done?"
F *laugh [kindly] ; F *shake {F.his} head || F *put an arm around {H} || F *taste a crumb ; F *make a face
F>H "everyone burns something at first." || F>H plan *try again || F>H "it is not so bad." "next time we will watch the clock."
/
H+F *begin again from the start || H+F *clean the kitchen ; H+F *fetch more flour || H *count the minutes & F *sweep the floor
? H *sit in front of the oven the whole time || nobody *leave the kitchen this time
$ {x.the} -*be golden and soft || the second one -*taste [great] || the whole house -*smell of sugar
H+F *eat every crumb || H+F *carry {x.the} to the neighbors || H *give {F} the biggest piece <- F -*be so patient
= rain
: H=walker F=walker P=out Q=in
% cloudy
H+F *walk/stroll/wander to {P} || H+F *set off for {P} ; H+F *sing on the way || H *meet {F} on the way to {P}
F>H "look at those clouds." || F>H "i think it will rain soon." || F>H "the sky is very dark."
H>F "do not worry." "it is only a cloud." || H>F "i do not mind a little rain." || H>F "we will be back in time."
! big drops -*begin to fall || it -*begin to rain very hard || the rain -*pour down like a river
H+F *run/dash/hurry to {Q} <- it -*be raining || H+F *race through the puddles ; H+F *reach {Q} just in time || H+F *hide under a tree ~ the rain -*come through the leaves
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
{x.the} -*break into many pieces || there -*be pieces all over the floor || {x.the} -*have a long crack
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
"""
