"""Measures the embedded model, for its card: python -m igap.models.ioi_mini.evaluate"""

import argparse
import itertools
import logging

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.attribution import activation_patching, integrated_gradients
from igap.components import SITES, component_names
from igap.inputs.ioi import HELD_OUT_TEMPLATE, TEMPLATES, IOIExample, generate_ioi, is_held_out
from igap.inputs.prompts import PromptPair
from igap.models.load import EMBEDDED, load_model
from igap.statistics.comparison import compare

log = logging.getLogger(__name__)

NOTEBOOK_PAIR = PromptPair(
    clean="After John and Mary went to the store, Mary gave a bottle of milk to",
    corrupted="After John and Mary went to the store, John gave a bottle of milk to",
    answer=" John",
    distractor=" Mary",
)


def examples(n: int, seed: int, *, unseen: str) -> list[IOIExample]:
    """`n` examples of `names` (a pair of names never trained together) or `template` (the one never trained on)."""
    chosen = (
        [HELD_OUT_TEMPLATE] if unseen == "template" else [t for t in range(len(TEMPLATES)) if t != HELD_OUT_TEMPLATE]
    )
    candidates = generate_ioi(n if unseen == "template" else 20 * n, seed, templates=chosen)
    unseen_only = (e for e in candidates if unseen == "template" or is_held_out(e.answer.strip(), e.distractor.strip()))
    return list(itertools.islice(unseen_only, n))


def accuracy(model: TransformerBridge, drawn: list[IOIExample]) -> tuple[float, float]:
    """Share of prompts whose most likely next token is the answer, and the mean logit difference in logits."""
    by_length: dict[int, list[tuple[Tensor, int, int]]] = {}
    for example in drawn:
        tokens = model.to_tokens(example.clean)
        row = tokens, model.to_single_token(example.answer), model.to_single_token(example.distractor)
        by_length.setdefault(tokens.shape[1], []).append(row)
    right, difference = 0, 0.0
    for rows in by_length.values():
        answers, distractors = (torch.tensor([row[i] for row in rows]) for i in (1, 2))
        with torch.no_grad():
            logits = model(torch.cat([row[0] for row in rows]))[:, -1]
        right += int((logits.argmax(-1) == answers).sum())
        chosen, other = (logits.gather(1, ids[:, None]) for ids in (answers, distractors))
        difference += float((chosen - other).sum())
    return right / len(drawn), difference / len(drawn)


def main() -> None:
    """Command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", default=EMBEDDED, help="a checkpoint of the same kind; default: the embedded one")
    parser.add_argument("--n", type=int, default=2000, help="prompts a measurement")
    arguments = parser.parse_args()
    model = load_model(arguments.folder)
    for unseen in ("names", "template"):
        share, difference = accuracy(model, examples(arguments.n, 1, unseen=unseen))
        log.info("unseen %s: accuracy %.4f, mean logit difference %.2f", unseen, share, difference)
    for site in SITES:
        ap = activation_patching(model, NOTEBOOK_PAIR, site)
        ig = integrated_gradients(model, NOTEBOOK_PAIR, site)
        comparison = compare(ig, ap)
        scores = ap.score.flatten()
        order = scores.abs().argsort(descending=True)[:8].tolist()
        names = component_names(ap.site, *ap.effect.shape)
        log.info(
            "%s, notebook pair: gap %.2f, Pearson r %.3f, Spearman %.3f, largest share of sum |AP| %.2f, "
            "|AP score| > 0.02: %d",
            site,
            ap.gap,
            comparison.pearson,
            comparison.spearman,
            float(scores.abs().max() / scores.abs().sum()),
            int((scores.abs() > 0.02).sum()),
        )
        log.info(
            "  largest by AP (AP score; IG score): %s",
            ", ".join(f"{names[i]} ({scores[i]:+.3f}; {ig.score.flatten()[i]:+.3f})" for i in order),
        )
    tokens = model.to_tokens(NOTEBOOK_PAIR.clean), model.to_tokens(NOTEBOOK_PAIR.corrupted)
    john, mary = (model.to_single_token(word) for word in ("John", "Mary"))
    with torch.no_grad():
        clean, corrupted = (float(model(t)[0, -1, john] - model(t)[0, -1, mary]) for t in tokens)
    log.info("notebook pair: logit difference John - Mary, clean %+.3f, corrupted %+.3f", clean, corrupted)


if __name__ == "__main__":
    main()
