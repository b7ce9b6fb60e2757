"""English words and sentences of our own, for haystacks and lists.

The lists are part of the package, so the prompts of a seed need no other package and change with no release of one.
"""

from collections.abc import Iterator

from pressgauge.tasks.draw import Draw

NOUNS = tuple(
    (
        "actor anchor angle animal apple apron arch arrow artist attic author award axle baker balcony ball banana "
        "band banker barn barrel basin basket battery beach beacon bean bear beard bell bench berry bicycle bishop "
        "blanket blossom boat bolt bone book boot bottle boulder bowl box branch brass bread brick bridge broom "
        "brother bucket builder bundle butcher butter button cabin cabinet cable camel camera canal candle canoe "
        "canvas captain card carpet carriage carrot castle cave ceiling cellar chain chair chalk chapel cherry "
        "chest chimney circle clerk cliff clock cloth cloud clover coach coal coast coat coin collar column compass "
        "cook copper cord cork corn corner cottage cotton couch cousin crane crate crayon creek crown cup cupboard "
        "curtain cushion dancer daisy deck desert desk diamond dinner dish doctor dog doll dolphin donkey door "
        "dragon drawer dress driver drum duck eagle easel editor elbow engine envelope fabric factory falcon farmer "
        "father feather fence fern ferry fiddle field finger fish flag flame flask flower flute forest fork "
        "fountain fox frame frog fruit furnace galaxy garage garden garlic gate giant ginger girl glass glove goat "
        "goose grain grandmother grape gravel guard guest guitar hammer handle harbor hawk hedge helmet hen herd "
        "hermit hill hinge honey hook horn horse hotel hunter island jacket jar jewel judge jug juice kettle key "
        "king kitchen kite kitten knife knot ladder lake lamp lantern lawyer leaf leather lemon letter lid "
        "lighthouse lily lion lizard lobster lock log lumber machine magnet mailbox mantle map maple marble market "
        "mask mast mattress meadow medal melon mill miner mirror mitten monkey moon mountain mouse museum mushroom "
        "musician nail napkin needle neighbor nephew nest net nurse oak oar ocean office olive onion orange orchard "
        "organ otter oven owl ox paddle page pail painter palace pan paper parade parrot path peach peacock pear "
        "pearl pebble pen pencil pepper piano picture pie pigeon pillow pilot pine pipe pirate planet plate plow "
        "plum pocket poet pond pony porch post pot potato prince printer pumpkin puppet puzzle quarry queen quilt "
        "rabbit radio raft railway rake ribbon rice ring river road robe robin rocket roof room rooster rope rose "
        "rug ruler saddle sail sailor salad salmon salt sand sandal saucer scarf school scissors seed shawl sheep "
        "shelf shell shepherd ship shirt shoe shop shovel shower signal silk singer sister skirt slipper snail soap "
        "soldier spade sparrow spider spoon spring squirrel stable stair stamp statue stick stone stool stove straw "
        "stream student sugar surgeon swan table tailor teacher temple tent theater thread throne tiger tile timber "
        "toast tool tower town toy trader train tray treasure tree trumpet trunk tunnel turkey turtle umbrella "
        "uncle valley vase velvet village vine violin wagon waiter wall walnut watch water weaver well whale wheat "
        "wheel whistle widow willow window wing wizard wolf wood wool worker yard zebra"
    ).split()
)
ADJECTIVES = tuple(
    (
        "ancient angry bitter bold brave brief bright broad broken busy calm careful charming cheap cheerful clean "
        "clear clever clumsy cold common cool costly crooked cruel curious curly damp dark deep delicate distant "
        "dizzy double dry dull dusty eager early empty famous fancy fast fierce final fine flat foolish fragile "
        "free fresh friendly frozen funny gentle giddy glad golden graceful grand grave great greedy grumpy "
        "handsome happy hard harsh heavy hidden high hollow honest huge humble hungry icy idle jolly keen kind "
        "large late lazy light little lively local lonely long loud lovely loyal lucky merry mighty mild modern "
        "muddy narrow neat noble noisy odd old open pale patient plain pleasant polite poor proud pure quick quiet "
        "rapid rare ready rich ripe rough round royal rusty sad scarce secure serious shallow sharp shiny short shy "
        "silent silver simple sleepy slender slim slow small smart smooth soft solid sour spare steady steep sticky "
        "stiff strange strict strong sturdy sudden sunny sweet swift tall tame tender thick thin tidy tiny tired "
        "tough tropical ugly usual vast warm weak wealthy weary wide wild wise witty wooden worn young"
    ).split()
)
VERBS = tuple(
    (
        "admired borrowed bought broke brought built buried carried caught chased chose cleaned collected copied "
        "counted covered decorated defended delivered described drew dropped examined exchanged fetched followed "
        "found gathered guarded heard held hid imagined inspected invented kept kicked left lifted loaded lost "
        "loved measured mended missed moved needed noticed opened owned packed painted passed photographed planted "
        "polished praised promised pulled pushed reached received remembered repaired replaced rescued returned "
        "sold sought stole studied threw touched traded visited wanted washed watched weighed wrapped"
    ).split()
)
WORDS = NOUNS + ADJECTIVES + VERBS
"""All words, each once."""
_PLACES = ("behind", "beside", "near", "under", "above", "inside", "beyond", "below")
NOISE = (
    "The clouds drift over the hills.",
    "A cart rolls down the lane.",
    "Rain taps on the tin roof.",
    "Someone hums a tune and walks on.",
)
"""Sentences that a repetitive haystack consists of."""


def sentences(draw: Draw) -> Iterator[str]:
    """Sentences without end, of words only."""
    while True:
        subject, thing, where = (f"{draw.choose(ADJECTIVES)} {draw.choose(NOUNS)}" for _ in range(3))
        place = draw.choose(_PLACES)
        verb = draw.choose(VERBS)
        yield draw.choose(
            (
                f"The {subject} {verb} the {thing} {place} the {where}.",
                f"Nobody {verb} the {thing} {place} the {where}.",
                f"On {draw.choose(_DAYS)} the {subject} {verb} the {thing}.",
                f"After a while the {subject} {verb} the {thing} again.",
            )
        )


_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
