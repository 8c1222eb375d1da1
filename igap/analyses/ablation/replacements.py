"""What takes an ablated component's place, at all positions of every prompt.

0 (`zero`), its mean over reference prompts and positions (`mean`) or per position (`mean_positional`), or what it is on
another prompt of the same length (`resample`).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.analyses.ablation.accuracy import Batch
from igap.components import Site, parse_component
from igap.engine.activations import from_cache, read_hooks
from igap.engine.batching import AdaptiveBatch
from igap.errors import InputError
from igap.vocabulary import AblationKind

Place = tuple[Site, int]
"""Site and layer."""
Places = Mapping[Place, tuple[int, ...]]
"""Components by site and layer."""

Values = Callable[[Int[Tensor, "prompt new"], Places], Mapping[Place, Tensor]]
"""Tokens that were added to a batch's prompts, and components, to what replaces these, by place.

`[prompt, pos, component, ...]`, or what expands to that: at the positions of the added tokens, or, where there is none,
at those of the prompts.
"""

Record = Callable[[Int[Tensor, "prompt pos"], Places], Values]
"""Prompts, one a row, and components to the activations that the unchanged model has there."""

Replacement = Callable[[Batch, Record], Values]
"""A batch to what replaces components on its prompts."""


def by_place(names: Iterable[str]) -> Places:
    """Components by site and layer, each once, in order."""
    places: dict[Place, set[int]] = {}
    for name in names:
        site, layer, index = parse_component(name)
        places.setdefault((site, layer), set()).add(index)
    return {place: tuple(sorted(indices)) for place, indices in sorted(places.items())}


def replacement(
    model: TransformerBridge,
    batches: Sequence[Batch],
    kind: AblationKind,
    places: Places,
    *,
    reference_n: int,
    rng: np.random.Generator,
    rows: AdaptiveBatch,
) -> Replacement:
    """What this kind of ablation puts in the place of components, all of which are among `places`."""
    if kind == "zero":
        return lambda _batch, _record: lambda _added, asked: dict.fromkeys(asked, torch.zeros(1, 1, 1))
    if kind == "resample":
        donors = _donors(batches, rng)
        return lambda batch, record: record(torch.stack([donors[i] for i in batch.indices]), places)
    means = _means(model, batches, places, reference_n=reference_n, rng=rng, rows=rows)
    if kind == "mean":
        overall = {place: total.sum(0) / count.sum() for place, (total, count) in means.items()}
        return lambda _batch, _record: (
            lambda _added, asked: {place: overall[place][None, None, list(indices)] for place, indices in asked.items()}
        )
    _, count = next(iter(means.values()))
    if bool((count == 0).any()):
        first = int((count == 0).nonzero()[0])
        raise InputError(
            f"ablation.reference_n: got {reference_n} reference prompts, none of which reaches position {first} of the "
            f"longest prompt ({len(count)} tokens), wanted one at every position. Use more, or ablation=mean."
        )
    positional = {place: total / count.view(-1, *[1] * (total.ndim - 1)) for place, (total, _) in means.items()}

    def on(batch: Batch, _record: Record) -> Values:
        n_tokens = batch.tokens.shape[1]

        def values(added: Tensor, asked: Places) -> Mapping[Place, Tensor]:
            n_added = added.shape[1]
            at = torch.arange(n_tokens, n_tokens + n_added) if n_added else torch.arange(n_tokens)
            # A continuation that outgrows the reference prompts keeps the mean of their last position.
            at = at.clamp(max=len(count) - 1).to(count.device)
            return {place: positional[place][at][None, :, list(indices)] for place, indices in asked.items()}

        return values

    return on


def _means(
    model: TransformerBridge,
    batches: Sequence[Batch],
    places: Places,
    *,
    reference_n: int,
    rng: np.random.Generator,
    rows: AdaptiveBatch,
) -> dict[Place, tuple[Tensor, Tensor]]:
    """Activations of reference prompts by place: their sum `[pos, component, ...]`, and how many there are `[pos]`."""
    n = sum(len(batch.indices) for batch in batches)
    if reference_n > n:
        raise too_few_references(reference_n, n)
    chosen = set(rng.permutation(n)[:reference_n].tolist())
    longest = max(batch.tokens.shape[1] for batch in batches)
    totals: dict[Place, Tensor] = {}
    counts = torch.zeros(longest, dtype=torch.int64)

    def add(tokens: Tensor, members: Tensor) -> Tensor:
        sums = [activation.sum(0) for activation in record_places(model, tokens[members], places).values()]
        # Only once nothing can run out of memory any more.
        for place, of_positions in zip(places, sums, strict=True):
            total = totals.setdefault(place, of_positions.new_zeros(longest, *of_positions.shape[1:]))
            total[: len(of_positions)] += of_positions
        counts[: tokens.shape[1]] += len(members)
        return members

    for batch in batches:
        references = torch.tensor([row for row, index in enumerate(batch.indices) if index in chosen])
        for _ in rows.each(partial(add, batch.tokens), references):
            pass
    return {place: (total, counts.to(total)) for place, total in totals.items()}


def _donors(batches: Sequence[Batch], rng: np.random.Generator) -> dict[int, Int[Tensor, " pos"]]:
    """For each prompt, by its index, the tokens of another one of its length; each prompt serves once."""
    donors: dict[int, Tensor] = {}
    check_donors(batch.tokens.shape[1] for batch in batches for _ in batch.indices)
    for batch in batches:
        order = rng.permutation(len(batch.indices))
        # A cycle: no prompt is its own donor.
        for row, donor in zip(order, np.roll(order, 1), strict=True):
            donors[batch.indices[row]] = batch.tokens[donor]
    return donors


def record_places(
    model: TransformerBridge, tokens: Int[Tensor, "prompt pos"], places: Iterable[Place]
) -> dict[Place, Tensor]:
    """Activations of the unchanged model at these places, of all components, and positions."""
    places = list(places)
    _, cache = model.run_with_cache(tokens, names_filter=read_hooks(places), logits_to_keep=1)
    return {place: from_cache(cache.cache_dict, *place) for place in places}


def check_donors(lengths: Iterable[int]) -> None:
    """Raises InputError where a prompt has a token length of its own, so that nothing can be taken from another."""
    alone = sorted(length for length, count in Counter(lengths).items() if count == 1)
    if alone:
        raise InputError(
            f"ablation: got resample, but only one of the prompts has {alone[0]} tokens, wanted another of that length "
            "to take activations from. Remove it, use more prompts, or ablation=mean."
        )


def too_few_references(asked: int, n: int) -> InputError:
    """The error of a reference set that `n` prompts cannot give."""
    return InputError(
        f"ablation.reference_n: got {asked}, but there are only {n} prompts to take reference prompts from. Use fewer, "
        "or more prompts (ablation.n)."
    )
