"""The words of generated prompts, one list a role.

Common words only: all but SEVERAL_TOKENS are single tokens of GPT-2 after a space, and all are in the embedded model's
vocabulary. Neither is said of VERB_FORMS, which no generated prompt has.
"""

NAMES: tuple[str, ...] = tuple(
    """
    John Mary Tom Anna James Sarah Michael Emily David Laura Robert Alice Peter Emma Daniel Lisa Paul Kate Mark Susan
    George Helen Steven Rachel Brian Julia Kevin Nancy Jason Karen Eric Linda Adam Amy Scott Sandra Andrew Angela
    Justin Melissa Ryan Michelle Jacob Kelly Alex Crystal Aaron Jessica Nathan Amanda Henry Nicole Carl Diana Simon
    Grace Oliver Victoria Leonard Claire Arthur Jane Martin Rose Philip Ruth Edward Ellen Frank Martha Walter Alison
    Samuel Fiona Harry Erin Jack Molly Luke Sophie Charles Lucy Richard Maria Joseph Teresa Thomas Katherine William
    Elizabeth Patrick Catherine Dennis Monica Gregory Vanessa Sean Rebecca Keith Holly Connor Heather Jeremy April
    Russell Sara Kyle Joan Vincent Lauren Roger Megan Louis Tracy
    """.split()
)

PLACES: tuple[str, ...] = tuple(
    """
    store school park hospital office station museum library restaurant garden house beach zoo theater market church
    airport cafe gym farm hotel bank bakery bar club gallery stadium university college factory harbor castle palace
    temple tower bridge river lake forest mountain valley island village town city square street corner mall shop
    kitchen cellar attic barn stable dock pier port camp cabin lodge inn pub diner canteen arena court field track
    playground pool rink studio theatre cinema opera circus fair festival carnival parade concert party wedding dinner
    meeting conference seminar lecture workshop lab clinic pharmacy laundry garage depot warehouse mill mine quarry
    quay marina lighthouse observatory planetarium aquarium vineyard orchard meadow
    """.split()
)

OBJECTS: tuple[str, ...] = (
    "bottle of milk",
    "cup of tea",
    "glass of water",
    "piece of cake",
    "bag of rice",
    "box of chocolate",
    "loaf of bread",
    "pair of gloves",
    "bowl of soup",
    "bunch of flowers",
    "jar of honey",
    "pot of coffee",
    *"""
    book ring kiss drink snack letter computer necklace bone ball basket card hat coat scarf key lamp map pen pencil
    phone photo picture plate ticket toy watch wallet camera candle carpet chair clock coin cookie crown doll dress drum
    fan flag flute fork guitar hammer helmet jacket kite knife ladder lemon mask medal mirror mug newspaper notebook
    bell painting pillow present puzzle radio ribbon rope rug sandwich shirt shovel spoon stamp statue stick stone
    suitcase sweater sword table teapot tent towel trophy trumpet broom vase violin whistle blanket bracelet brush
    bucket button magazine
    """.split(),
)

VERBS: tuple[str, ...] = tuple(
    """
    gave handed passed sent offered brought sold lent threw showed mailed delivered donated returned carried
    shipped tossed slid presented awarded granted loaned posted forwarded recommended described explained
    demonstrated dedicated entrusted conveyed transferred surrendered yielded assigned allotted bequeathed promised
    supplied served fed pitched rolled kicked hurled flung lobbed flipped pushed dragged hauled rushed slipped
    smuggled ferried relayed rented leased auctioned pledged contributed restored released submitted introduced
    revealed displayed swung bounced lowered raised lifted dropped moved dispatched directed addressed extended
    gifted exported dispensed distributed administered issued furnished batted chucked shoved nudged wheeled drove
    flew read sang wrote owed left pulled steered guided led
    """.split()
)

ANIMALS: tuple[str, ...] = tuple(
    """
    cat dog horse cow pig sheep goat fox wolf bear lion tiger mouse rabbit duck goose hen frog owl crow monkey donkey
    """.split()
)
"""Subjects that are no names: "the cat and the dog"."""

VERB_FORMS: tuple[tuple[str, str], ...] = (
    *(("is", "are"), ("was", "were"), ("has", "have"), ("does", "do"), ("goes", "go"), ("tries", "try")),
    *(("carries", "carry"), ("watches", "watch"), ("teaches", "teach"), ("reaches", "reach"), ("catches", "catch")),
    *(("passes", "pass"), ("pushes", "push"), ("wishes", "wish"), ("touches", "touch"), ("misses", "miss")),
    *(
        (f"{verb}s", verb)
        for verb in """
        look see make take give say know think want need come get find tell ask work seem feel leave call keep let begin
        help show hear play run move live believe bring write sit stand lose pay meet include continue set learn lead
        understand follow stop create speak read spend grow open walk win offer remember consider appear buy serve die
        send build stay fall cut kill remain suggest raise sell require report decide pull return explain hope develop
        break receive agree support hit produce eat cover draw choose cause point listen place close involve increase
        turn start put mean become hold provide contain represent love like hate use
        """.split()
    ),
)
"""Verbs in the singular and in the plural: what can follow a subject, whose number they tell."""

SEVERAL_TOKENS = frozenset(
    """
    canteen carnival quay marina observatory planetarium vineyard orchard meadow
    flute kite teapot vase
    loaned bequeathed lobbed ferried auctioned dispensed chucked nudged wheeled
    """.split()
)
"""Words that GPT-2 splits into several tokens. Prompts may hold them; slots of one token leave them out."""
