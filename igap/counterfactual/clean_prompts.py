"""The prompts that a search is made on, of those that there are: those that the model answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.spaces.base import all_words
from igap.counterfactual.spaces.prepare import MOST_ORDINARY, Prepared
from igap.engine.token_sets import answers, logit_diff
from igap.errors import InputError
from igap.inputs.prompts import PromptPair, TokenPair, tokenize

_AT_ONCE = 2000
"""Prompts in one pass."""


@dataclass(frozen=True, eq=False)
class ChosenPrompts:
    """Clean, held-out and ordinary prompts, with the corrupted prompts of their pairs."""

    clean: tuple[PromptPair, ...]
    heldout: tuple[PromptPair, ...]
    ordinary: tuple[PromptPair, ...] | None
    """None: those that igap makes."""


def choose_prompts(
    model: TransformerBridge, prepared: Prepared, least: float | None, clean_n: int, heldout_n: int
) -> ChosenPrompts:
    """Choose the first pairs whose clean logit difference is at least `least` (None: the first ones).

    A single pair that was given is among them. Held-out pairs are those after the clean ones, or of their own; ordinary
    are all of several pairs that are neither.

    Raises InputError where the single pair is below `least`, or too few are above.
    """
    if prepared.heldout is None:
        both = _enough(model, prepared.pairs, least, clean_n + heldout_n, "clean.n + heldout.n", prepared.is_single)
        clean, heldout = both[:clean_n], both[clean_n:]
    else:
        clean = _enough(model, prepared.pairs, least, clean_n, "clean.n", prepared.is_single)
        heldout = _enough(model, prepared.heldout, least, heldout_n, "heldout.n", False)
    ordinary = prepared.ordinary
    if ordinary is None and not prepared.is_single:
        used = {pair.clean for pair in (*clean, *heldout)}
        ordinary = tuple(pair for pair in prepared.pairs if pair.clean not in used)
    return ChosenPrompts(clean, heldout, ordinary and ordinary[:MOST_ORDINARY])


def check_answers(
    pairs: Sequence[PromptPair], tokens_of: Callable[[PromptPair], TokenPair], objective: Objective
) -> None:
    """Raises InputError on a bound of the logit difference where answers of several tokens have none."""
    asked = objective.constraints.model_dump(include={"min_clean", "min_corrupted", "max_corrupted"}, exclude_none=True)
    for pair in pairs if objective.f.takes_several and asked else ():
        for name, bound in asked.items() if not tokens_of(pair).has_logit_diff else ():
            words = " or ".join(repr(word) for word in all_words(pair))
            raise InputError(
                f"constraints.{name}: got {bound:g}, a bound of the logit difference, but {pair.place}answer and "
                f"distractor ({words}) are not single tokens and have none. Use constraints.{name}=null."
            )


def _logit_diffs(model: TransformerBridge, pairs: Sequence[TokenPair]) -> Float[Tensor, " pair"]:
    """The logit difference after each clean prompt."""
    by_length: dict[int, list[int]] = {}
    for i, pair in enumerate(pairs):
        by_length.setdefault(pair.clean.shape[1], []).append(i)
    differences = torch.empty(len(pairs), dtype=model.W_E.dtype, device=model.W_E.device)
    for where in by_length.values():
        some = [pairs[i] for i in where]
        with torch.no_grad():
            logits = model(torch.cat([pair.clean for pair in some]), logits_to_keep=1)[:, -1]
        right, wrong = answers(some, logits.device)
        assert wrong is not None, "check_answers has seen to it"
        differences[where] = logit_diff(logits, right, wrong)
    return differences


def _enough(
    model: TransformerBridge, pairs: Sequence[PromptPair], least: float | None, n: int, asked: str, first: bool
) -> tuple[PromptPair, ...]:
    """The first `n` pairs above `least`; where the `first` must be, it is prompts.clean."""
    if least is None:
        return tuple(pairs[:n])
    enough: list[PromptPair] = []
    for start in range(0, len(pairs), _AT_ONCE):
        some = pairs[start : start + _AT_ONCE]
        metric = _logit_diffs(model, [tokenize(model, pair) for pair in some])
        if first and start == 0 and not metric[0] >= least:
            raise InputError(
                f"constraints.min_clean: got {least}, but the logit difference after prompts.clean is "
                f"{metric[0].item():.3f} logits: the model "
                "does not prefer the answer there. Use another pair, or constraints.min_clean=null."
            )
        enough += [pair for pair, value in zip(some, metric.tolist(), strict=True) if value >= least]
        if len(enough) >= n:
            return tuple(enough[:n])
    raise InputError(
        f"constraints.min_clean: got {least}, which {len(enough)} of {len(pairs)} clean prompts reach, wanted {n} "
        f"({asked}). Use fewer, or a lower bound."
    )
