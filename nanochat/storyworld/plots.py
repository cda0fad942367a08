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
F>H "i am sorry, too." || F>H "[no], you take it." || F>H plan *share it
$ H+F *shake hands ; H+F *laugh || H+F *use {x.the} in turns || H+F *forget the quarrel within a minute
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
"""
