"""Attention: heads that matter by where a later head looks, through its softmax."""

from igap.bench.blueprint import ONE
from igap.bench.circuit import SPOT, Circuit, distractors, sketch, softmax
from igap.bench.truth import At
from igap.inputs.prompts import PromptPair

_OTHERS = (0.0,) * 5
"""The scores of the positions that have none of their own."""


def query() -> Circuit:
    """F = 2 p, where p is head 1.0's attention to "gave": a score of 8 u among 6, with u = z(0.0) in its query.

    With p = 0.998 on the clean run the softmax is saturated, and its slope in u is 0.027: less than distractors have.

    Truth, noising and denoising, in logits:
        0.0      -1.663  +1.663
        1.0      -1.663  +1.663
        0.0+1.0  -1.663  +1.663
    """
    model = sketch()
    model.word("gave", value=1.0)
    model.head("0.0", ({"name": 1.0}, {"asked": 1.0}), matches=model.look_at(SPOT))
    model.head("1.0", ({"value": 1.0}, {"out": 2.0}), matches=[({"asked": 8.0}, {"value": 1.0})])

    def f(x: float, at: At) -> float:
        attention = softmax(8 * at("0.0", x), *_OTHERS)
        return 2 * at("1.0", attention) + distractors(x, at)

    return Circuit(
        "query",
        "A head decides by a later head's query whether that one looks at a word.",
        "On the clean prompt the softmax is saturated, and AtP misses the head; IG goes all the way.",
        model,
        f,
    )


def key() -> Circuit:
    """F = 2 p, where p is head 1.0's attention to "gave": a score of 8 u - 6 among 6, with u = z(0.0) in its key.

    Head 0.0 looks at the word before, so that of all words "gave" alone is marked. The clean score of 2 lies where the
    softmax is steepest, and the corrupted one of -6 far on its floor: the clean slope overstates the way down.

    Truth, noising and denoising, in logits:
        0.0      -1.192  +1.192
        1.0      -1.192  +1.192
        0.0+1.0  -1.192  +1.192
    """
    model = sketch()
    model.word("gave", value=1.0)
    model.head("0.0", ({"name": 1.0}, {"mark": 1.0}), matches=model.look_back(6))
    model.head("1.0", ({"value": 1.0}, {"out": 2.0}), matches=[({ONE: 1.0}, {"mark": 8.0, "value": -6.0})])

    def f(x: float, at: At) -> float:
        attention = softmax(8 * at("0.0", x) - 6, *_OTHERS)
        return 2 * at("1.0", attention) + distractors(x, at)

    return Circuit(
        "key",
        "A head marks a word, by whose key a later head finds it.",
        "AtP takes the slope where the softmax is steep for all of the way, and overstates the head three times.",
        model,
        f,
    )


def induction() -> Circuit:
    """John cat Mary dog John -> cat. F = p(cat) - p(dog), head 1.0's attention, with scores of 8 u and 8 v among 6.

    u and v are what the previous-token head 0.0 holds at cat and at dog: whether John stood before. Head 1.0 asks for
    the word after its own. The corrupted prompt has Mary first: u and v change places.

    Truth, noising and denoising, in logits:
        0.0      -1.996  +1.996
        1.0      -1.996  +1.996
        0.0+1.0  -1.996  +1.996
    """
    model = sketch(spot=1, answer="cat")
    model.word("John", name=1.0, john=1.0)
    model.word("Mary", mary=1.0)
    model.word("cat", cat=1.0)
    model.word("dog", dog=1.0)
    names = ("john", "mary")
    model.head("0.0", *(({name: 1.0}, {f"after_{name}": 1.0}) for name in names), matches=model.look_back(6))
    model.head(
        "1.0",
        ({"cat": 1.0}, {"out": 1.0}),
        ({"dog": 1.0}, {"out": -1.0}),
        matches=[({name: 8.0}, {f"after_{name}": 1.0}) for name in names],
    )

    def f(x: float, at: At) -> float:
        u, v = at("0.0", (x, 1 - x))
        others = _OTHERS[:4]
        cat, dog = at("1.0", (softmax(8 * u, 8 * v, *others), softmax(8 * v, 8 * u, *others)))
        return cat - dog + distractors(x, at)

    return Circuit(
        "induction",
        "A previous-token head and an induction head continue what has been there before.",
        "AtP misses the previous-token head, whose softmax is saturated.",
        model,
        f,
        PromptPair("John cat Mary dog John", "Mary cat John dog John", " cat", " dog"),
    )


def name_mover() -> Circuit:
    """Tom and John, Mary -> John. F = 3/2 (p(John) - p(Mary)), head 1.0's attention; scores are 3 u and 3 v, among 7.

    u and v are what the previous-token head 0.0 holds at the names: whether "and" stood before. A third of F is what
    the name mover 1.0 writes, the rest what head 2.0 makes of it.

    Truth, noising and denoising, in logits:
        0.0      -2.195  +2.195
        1.0      -2.195  +2.195
        2.0      -1.463  +1.463
        0.0+2.0  -2.195  +2.195
    """
    model = sketch(n_layers=4)
    model.word("and", name=1.0)
    model.word("John", john=1.0)
    model.word("Mary", mary=1.0)
    model.head("0.0", ({"name": 1.0}, {"mark": 1.0}), matches=model.look_back(7))
    model.head(
        "1.0",
        ({"john": 1.0}, {"moved": 1.0, "out": 0.5}),
        ({"mary": 1.0}, {"moved": -1.0, "out": -0.5}),
        matches=[({ONE: 3.0}, {"mark": 1.0})],
    )
    model.head("2.0", ({"moved": 1.0}, {"out": 1.0}), matches=model.look_at(6))

    def f(x: float, at: At) -> float:
        u, v = at("0.0", (x, 1 - x))
        john, mary = at("1.0", (softmax(3 * u, 3 * v, *_OTHERS), softmax(3 * v, 3 * u, *_OTHERS)))
        return (john - mary) / 2 + at("2.0", john - mary) + distractors(x, at, n_layers=4)

    return Circuit(
        "name_mover",
        "A previous-token head marks a name, a second moves it to the end, a third reads it there.",
        "AtP has half of the first head's effect, which goes through the softmax of the second.",
        model,
        f,
        PromptPair("Tom and John , Mary gave", "Tom , John and Mary gave", " John", " Mary"),
    )
