# ruff: noqa: E501  (a beat is one line)
"""Plots of things done together. The notation is explained in troubles.py."""

ADVENTURES = """
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
= birthday
: H=walker F=walker P=out x=gift
H *want to make {F} [happy] <- it *be {F}'s birthday || H -*remember that it *be {F}'s birthday || it *be {F}'s birthday ~ H -*have no present yet
H *think about it [long] ; H *go/walk/hurry to {P} || H *empty {H.his} money box ~ there *be only one coin || H *walk to {P} => *look for a present
H>F "what would you like most of all?" || F>H "you look so busy today." || F>H "why are you in such a hurry?"
! H *find {x} beside the [path] || H *see {x} behind a stone || H *discover {x} under the leaves
H *wash {x.the} ; H *wrap it in yellow paper || H *clean {x.the} [care] ; H *put it in a box || H *carry {x.the} home ; H *paint a card
/
H *knock at the door ; F *open it || H *hide behind the door & F *light the candles || H *visit {F} ; H *sing a birthday song
H>F "happy birthday, dear friend!" || H>F "this is for you." "happy birthday!" || H>F "close your eyes and hold out your hands."
F *tear off the paper ; F *laugh with joy || F *open the present [care] || F -*be [surprised] <- F -*expect nothing at all
F>H "[wow]!" "how did you know?" || F>H "[thanks]." "it is the best present of all." || F>H "i will keep it as long as i live."
$ H+F *eat cake until [dusk] || H+F *dance to the music || F *put {x.the} on the shelf above {F.his} bed || F *show {x.the} to all the guests
= garden
: H=walker F=walker x=flower
H *want to grow flowers ; H *buy a bag of seeds || H *get some seeds from {F} || H *dig a small bed behind the house
F>H "put them into soft earth." || F>H "seeds need sun and water." || F>H "you must be patient."
H *plant the seeds in rows ; H *water them every day || H *cover the seeds with earth || H *pull out the weeds & F *carry the water
H *look every morning ~ nothing *grow || H *wait [long] ~ the bed *stay empty || H *grow impatient <- nothing *happen
H>F "my seeds are bad." || H>F "why does nothing happen?" || H>F plan *dig them up and look
F>H "[no]!" "give them time." || F>H "good things take time." || F>H "wait one more week."
/
H *listen to {F} ; H *wait || a warm rain *fall for two days || the sun *shine on the earth day after day
! a tiny green leaf -*appear || {x} -*open its petals || there *be {x} in the middle of the bed
H *jump for joy ; H *call {F} || H *clap {H.his} hands ; H *dance around the bed || H *kneel down => *smell {x.the}
H>F "look, it is growing!" || H>F "you were right." "waiting was worth it." || H>F "it is the prettiest flower in the [village]!"
$ H *give {x.the} to {F} || H *share the seeds with all the neighbors || bees and butterflies *visit the garden every day
= race
: H=walker F=walker P=out
H *be [very] [proud] of {H.his} speed || H *laugh at {F} <- F -*walk so slowly || H+F *stand at the gate ; H+F *argue
H>F "nobody can run as fast as i can." || H>F "you are much too slow." || F>H plan *race to {P}
F>H "then let us have a race." || F>H "we shall see." || F>H "fast legs are not everything."
H+F *line up behind a stick || H+F *start at the same moment || a whistle *blow ; the race *begin
H *rush ahead & F *run at an even pace || H -*be far ahead after a minute || H *fly over the stones like the wind
! H -*trip over a root || H *stop for a nap <- H -*be so far ahead || H *take the wrong turn
/
F *pass {H} ~ F *stop || F *hear a cry ; F *turn back || F *come nearer and nearer & H *sit on the ground
F>H "are you hurt?" || F>H "lean on me." || F>H "the race can wait."
H>F "why do you help me?" || H>F past -*hurt my foot || H>F "you could have won."
F *help {H} to stand up || H+F *walk to the finish arm in arm || F *tie a cloth around {H}'s foot
$ H+F *cross the line [together] || everyone *cheer for both of them || nobody *win ~ everyone *clap
H *be sorry for the proud words || H *say sorry ; F *nod || H -*be kind to slow walkers after that
= letter
: H=walker F=walker P=out x=paper
someone *bring {x} for {H} || H *find {x} under the door || {x} *lie on the doorstep
H *open it [care] ; H *read every word || H *tear open the envelope || H *sit down on the stairs => *read {x.the}
the handwriting *be strange || there *be no name on {x.the} || it *say only three words : come to {P}
H *wonder about it [long] || H *turn {x.the} over and over || H *put on {H.his} shoes ; H *leave
/
H *go/walk/hurry to {P} ~ nobody *be there || H *wait at {P} [long] || H *reach {P} ; H *look around
! F *jump out from behind a tree || twenty voices *shout a greeting || music *begin to play
F>H "surprise!" || F>H "did you like my letter?" || F>H "you came!" "i am so [happy]."
H>F "so it was you!" || H>F "i did not know your handwriting." || H>F "you can really keep a secret."
there *be a table with cakes and candles || paper lanterns *hang/swing from every branch || all the neighbors *bepl there
H+F *dance until midnight || H+F *eat cake ; H+F *drink {y:drink} || H+F *play games with the guests
$ H *keep {x.the} in a drawer || H *write an answer on the next day || H *go home with a full heart
= snow
: H=walker F=walker P=out
% snowy
the snow *fall all night || thick snow *cover the roofs || H *look out of the window ; H *cheer
H *put on warm boots ; H *call {F} || H *run outside <- H *want to touch the snow || H *write {H.his} name in the snow
H>F plan *build a snow castle || H>F plan *slide down the hill || H>F "look how white everything is!"
H+F *roll three big balls || H+F *pile the snow higher and higher || H+F *pull the sled to the top of the hill
H *bring two stones for the eyes & F *look for a stick || F *throw a snowball at {H} || H *draw a face with a carrot
! the top *fall off || the sled *turn over || a heap of snow *slide from a branch ; it *land on {F}
F *laugh so loudly that the birds *fly up || F *shake the snow from {F.his} ears || H *help {F} to get up
/
H>F "my toes are cold." || F>H "my nose is frozen." || F>H plan *go in and get warm
H+F *sit by the stove ; H+F *drink {x:drink} || H *rub {H.his} hands & F *heat the milk || H+F *hang the wet clothes near the fire
$ the snow castle *stand for three weeks || H+F *watch the snowflakes through the window || H+F *go out again on the next morning
F>H "winter is the best time of the year." || H>F "i hope it snows again tomorrow." || H>F did *see how it *shine in the moonlight
= picnic
: H=walker F=walker P=out x=baked y=fruit z=insect
H+F *plan a picnic || H *pack {x} and {y} into a hamper || H *invite {F} to a picnic {P.at}
H+F *spread a cloth on the grass || H+F *find a shady spot under a tree || H+F *walk/hurry to {P} ; H+F *sit down
H *cut {x.the} & F *pour the juice || F *taste {y} ; F *hum a tune || H *lie down ; H *look at the clouds
! {z} *land on {x.the} || {z} *crawl across the cloth || a crowd of ants *march over the plates
F *jump up ; F *scream/shout || F *drop {F.his} cup <- F -*be so [surprised] || F *wave {F.his} arms
H>F "it is only [small]." "it is hungry, too." || H>F "do not hurt it!" || H>F plan *give it a crumb
/
H *put a crumb on a leaf || H *lift it [care] ; H *carry it to a bush || H+F *watch it [long]
F>H "it is rather pretty." || F>H "i was silly." || F>H "now it has a picnic of its own."
{z.the} *carry the crumb away || {z.the} *sit on {F}'s nose || {z.the} *stay with them all afternoon
$ H+F *eat the rest ; H+F *tell jokes || H+F *pack everything up [evening] || there *be not one crumb left
H>F "that was a picnic for three." || F>H "next time we will bring more." || F>H plan *come here again soon
= concert
: H=walker F=walker T=music@H P=out
H *practice with {T} every evening || H *love to make music with {T} || H *get up early => *practice with {T}
the neighbors *complain about the noise || F *close the window <- the music *be so loud || nobody *want to listen
F>H "it sounds like a sick goose." || F>H "please stop, i cannot sleep." || F>H "you need more practice."
H -*be [sad] ~ H *go on || H *take {T} to {P} <- H *want to be alone || H *hide {T} in a dark corner
/
H *play the same tune a hundred times || H *listen to the birds ; H *learn from them || H *practice for many weeks
! F *walk past {P} ; F *stop || a sweet sound *come from far away || F *hear a beautiful song
F>H "is that really you?" || F>H "that was [nice]!" || F>H can *play it once more
H *smile ; H *play the song again || H *close {H.his} eyes ; H *begin || H *take a deep breath ; H *play louder
F *begin to dance || F *call all the neighbors || F *wipe away a tear & the music *fill the air
F>H "i am sorry for my words." || F>H plan *give a concert on the square || F>H "you never gave up."
$ the whole [village] *clap for {H} || H *give a concert on the next Sunday || people *dance in the streets
= carpentry
: H=walker F=walker x=furniture
H *want to build {x} <- the old one *be broken || H *fetch some boards and nails || H *promise to make {x} for {F}
H *measure the wood & F *hold the lamp || H *saw the boards ; H *smooth the edges || H *draw a plan on paper
H *hammer all morning || H *hit {H.his} own thumb ; H *yell || H *nail the legs to the top
! {x.the} *fall over || one leg *be too short || a nail *bend ; everything *come apart
H *kick a bucket <- H -*be [angry] || H *throw down the tools ; H *sit down || H *scratch {H.his} head
F>H "what is wrong?" || F>H "may i have a look?" || F>H "you forgot the glue."
/
F *show {H} how to do it || F *hold the board & H *drive in the nail || F *measure twice ; F *cut once
F>H "measure twice and cut once." || F>H "nobody learns it in a day." || F>H plan *do it [slowly] this time
H+F *work side by side until noon || H *sand the wood [care] ; F *paint it green || H *follow every word of {F}
$ {x.the} *stand as firm as a rock || H *sit down on the floor ; H *admire {x.the} || {x.the} *be finished before supper
H>F "we make a good team." || F>H "you have learned it well." || H>F "it does not even shake!"
= treasure
: H=walker F=walker P=out Q=place x=find
H *find an old map in a bottle || F *discover an old map in the attic || H *buy an old book ; a map *fall out of it
the map *show the way to {P} || there *be a red cross on the map || someone *draw a path from {Q} to {P}
H>F plan *look for the treasure || H>F "maybe it is a treasure!" || F>H "look, here is a red cross."
H+F *take a lamp and a shovel || H+F *pack bread and water || H+F *leave before sunrise
H+F *pass {Q} ; H+F *turn right || H+F *count their steps [care] || H+F *climb over a wall
/
H *dig a deep hole & F *hold the lamp || F *push away a heavy stone || H+F *dig until their arms *hurt
! the shovel *hit something hard || F *pull out a rusty box || there *be a chest under the roots
H *break the lock ; H *lift the lid || F *blow away the dust || H+F *hold their breath
H+F *find {x} and a note || there *be only {x} in it || the box *be empty except for {x}
F>H "is that all?" || H>F "it is not gold." || F>H "who wanted it so badly?"
the note *say that the real treasure *be a friend || H *read the note aloud ; F *laugh || H+F *look at each other ; H+F *giggle
$ H+F *share {x.the} ; H+F *walk home || H *keep the map above {H.his} bed || they *hide the box again for someone else
= stars
: H=walker F=walker P=high
% sunny
H *want to see the stars ; H *ask {F} to come || H+F *climb to the top of the hill at dusk || H *take a blanket ; H *meet {F} near {P}
H+F *lie down on their backs || H+F *wait until it *get dark || F *point at the first star
F>H "there is the first one." || F>H "that bright one shows the way north." || F>H "nobody knows all their names."
H>F "how many are there?" || H>F "are they far away?" || H>F "they look like spilled salt."
F>H "nobody has ever counted them." || F>H "they are farther than any ship can sail." || F>H "more than all the leaves in the forest."
! a falling star *cross the sky || something bright *shoot across the dark || a long line of light *appear
H>F "make a wish!" || F>H did *see it || F>H "quick, wish for something!"
H *close {H.his} eyes ; H *make a wish || F *send a wish into the wind || H+F *be silent for a while
/
F>H "what did you wish for?" || F>H "will you tell me your wish?" || F>H "i wished for nothing."
H>F "i must not tell you." || H>F "i wished for another night like this." || H>F "if i tell you, it will not come true."
H -*grow [tired] ; F *put the blanket around {H} || the moon *rise behind the trees || an owl *call from the forest
$ H+F *walk home through the wet grass || H *carry the lamp & F *sing [softly] || they *fall asleep under the sky
= teach
: H=walker F=walker P=out
H *watch {F} ; H *want to learn it, too || H *dream of a new skill || H *ask {F} for help
H>F can *teach me || H>F "i wish i could do it, too." || H>F "is it hard to learn?"
F>H "it is easy if you practice." || F>H "[yes]." "come with me." || F>H "i learned it from my father."
H+F *go/walk to {P} ; H+F *begin || F *show every step [care] & H *watch || F *explain it twice ; H *nod
H *try it ~ it *go wrong || H -*fall on {H.his} back ; F *laugh || H *do everything in the wrong order
H>F "i will never learn it." || H>F past *try everything || H>F "my hands do not obey me."
F>H "try again." || F>H "nobody is born a master." || F>H "you are better than yesterday."
/
H *practice every day for a week || H *try again and again || H *get up early => *practice alone
! it *work || H *do it without a mistake || H *know how to do it
F *clap/cheer ; F *throw a hat into the air || F -*be [proud] of {H} || F *ask for a second show
H>F "did you see that?" || H>F "i did it!" || H>F "you are the best teacher in the world."
$ H *teach it to all the little ones || H+F *practice [together] every week || H *show it to the whole [village]
= butterfly
: H=young F=walker x=insect P=out
H *see {x} on a leaf {P.at} || H *catch {x} with a small net || H *sit in the grass ; {x} *land on {H.his} knee
H *put {x.the} into a jar || H *want to keep {x.the} forever || H *build a little house for {x.the}
H>F "look what i have caught!" || H>F "it is mine now." || H>F "i will call it Prince."
{x.the} *sit still in a corner || H *give it some leaves ~ it *eat nothing || {x.the} *beat against the glass
F *look through the glass ; F *shake {F.his} head || F *feel sorry for {x.the} || F *bend down ; F *look at it closely
F>H "how would you like to live in a jar?" || F>H "it misses the wind and the grass." || F>H "something wild should be free."
/
H *think about it all night || H -*be silent [long] || H *dream of a door that *be locked
! H *take off the lid || H *carry the jar back to {P} ; H *open it || H *hold {x.the} up to the sky
H>F "goodbye, little one." || H>F "now you can go home." || H>F did *see how fast it *leave
{x.the} *climb onto {H.his} finger for a moment || {x.the} *disappear between the flowers || {x.the} *circle around them twice
$ H -*be [sad] and [happy] at the same time || F *give {H} a picture of {x.the} || {x.the} *come back on the next day
F>H "that was brave of you." || F>H "now it is really your friend." || H>F "i like it better this way."
= noise
: H=walker F=walker P=in
there *be a strange noise in {P} every night || people *say that a ghost *live in {P} || H *hear a strange noise from {P}
nobody *dare to go in || even the bravest *stay away || the children *whisper about it at school
H>F plan *find out what it *be || H>F "i do not believe in ghosts." || H>F can *come with me tonight
F>H "i would rather stay in bed." || F>H "what if it bites?" || F>H "[yes], but you go first."
H+F *wait until midnight ; H+F *creep to the door || H *light a lamp & F *hold on to {H}'s arm || H+F *walk on tiptoe
the floor *creak/groan under their feet || the wind *howl around the corners || it *be so dark that they *see nothing
! something soft *touch {F}'s leg || two yellow eyes *shine in the dark || a pile of boxes *crash to the floor
F *scream ; F *hide behind {H} || F *want to run away ~ H *stay || H *lift the lamp with a shaking hand
/
H>F "look, it is only a little cat!" || H>F "there are kittens behind the boxes!" || H>F "the ghost has a loose hinge."
F *sigh ; F *sit down on a box || F *laugh until it *hurt || H *kneel down ; H *hold out a hand
F>H "and i was so scared!" || F>H plan *bring some milk || F>H "do not tell anyone that i screamed."
$ everyone in the [village] *come to see the ghost || H+F *oil the hinge ; the noise *stop || H+F *bring milk every evening
= boatride
: H=walker F=walker P=water Q=out
% sunny
H *borrow a rowing boat ; H *invite {F} || H+F *want to row across the lake || F *build a raft from old barrels
H *row & F *sit in the front || H+F *glide over the smooth water || the boat *drift slowly past the reeds
F>H "how quiet it is out here!" || F>H "i can see {Q} from here." || F>H did *check the boat
H>F "i could stay here forever." || H>F "look, the fish are jumping." || H>F plan *rest for a moment
! F *feel water at {F.his} feet || H -*lose an oar || there *be a hole in the bottom
F>H "[oh]!" "we are sinking!" || F>H "the water is coming in!" || F>H "[please], do something!"
/
H *stop the hole with a sock || H *scoop the water out with a bucket & F *paddle with both hands || F *push a cloth into the hole
H>F "keep calm." "it is not far." || H>F "faster!" "we are almost there." || H>F "do not stand up!"
H+F *reach the bank in the last minute || the wind *push them to the shore || an old fisherman *pull them to the shore
$ H+F *lie in the grass ; H+F *laugh || H+F *dry their clothes on a bush || H *promise to mend the boat first
F>H "next time we will walk." || F>H "it was a real adventure." || H>F "i told you it was not far."
"""
