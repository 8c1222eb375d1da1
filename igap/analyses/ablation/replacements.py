"""What an ablated component is replaced by, at all positions of every prompt; and the model changed so.

0 (`zero`), its mean over reference prompts and positions (`mean`) or per position (`mean_positional`), or what it is on
another prompt of the same length (`resample`).
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.analyses.ablation.accuracy import Batch, Edit
from igap.components import Site, hook_name, parse_component
from igap.engine.hooks import Change, changed
from igap.errors import InputError
from igap.vocabulary import AblationKind

Place = tuple[Site, int]
"""Site and layer."""
Places = Mapping[Place, tuple[int, ...]]
"""Components by site and layer."""


def by_place(names: Sequence[str] | Iterator[str]) -> Places:
    """Components by site and layer, each once, in order."""
    places: dict[Place, set[int]] = {}
    for name in names:
        site, layer, index = parse_component(name)
        places.setdefault((site, layer), set()).add(index)
    return {place: tuple(sorted(indices)) for place, indices in sorted(places.items())}


Replacement = Callable[[Batch, Sequence[Place]], Mapping[Place, Tensor]]
"""A batch and places to what replaces their components: `[prompt, pos, component, ...]`, or what expands to that."""


def replacement(
    model: TransformerBridge,
    made: Sequence[Batch],
    kind: AblationKind,
    places: Places,
    *,
    reference_n: int,
    rng: np.random.Generator,
) -> Replacement:
    """What this kind puts in a component's place."""
    if kind == "zero":
        return lambda _, asked: dict.fromkeys(asked, torch.zeros(()))
    if kind == "resample":
        donors = _donors(made, rng)

        def another(batch: Batch, asked: Sequence[Place]) -> Mapping[Place, Tensor]:
            prompts = donors[batch.indices]
            # Where a continuation has grown, that of the prompt itself.
            return _recorded(model, torch.cat([prompts, batch.tokens[:, prompts.shape[1] :]], 1), asked)

        return another
    means = _means(model, made, places, reference_n=reference_n, rng=rng)
    if kind == "mean":
        overall = {place: total.sum(0) / count.sum() for place, (total, count) in means.items()}
        return lambda _, asked: {place: overall[place][None, None] for place in asked}
    _, count = next(iter(means.values()))
    if bool((count == 0).any()):
        first = int((count == 0).nonzero()[0])
        raise InputError(
            f"ablation.reference_n: got {reference_n} reference prompts, none of which reaches position {first} of the "
            f"longest prompt ({len(count)} tokens), wanted one at every position. Use more, or ablation=mean."
        )
    positional = {place: total / count.view(-1, *[1] * (total.ndim - 1)) for place, (total, _) in means.items()}

    def by_position(batch: Batch, asked: Sequence[Place]) -> Mapping[Place, Tensor]:
        # A continuation that outgrows the reference prompts keeps the mean of their last position.
        at = torch.arange(batch.tokens.shape[1]).clamp(max=len(count) - 1).to(count.device)
        return {place: positional[place][at][None] for place in asked}

    return by_position


def _means(
    model: TransformerBridge, made: Sequence[Batch], places: Places, *, reference_n: int, rng: np.random.Generator
) -> dict[Place, tuple[Tensor, Tensor]]:
    """Of reference prompts, by place: the sum of activations `[pos, component, ...]` and the number of them `[pos]`."""
    n = sum(len(batch.indices) for batch in made)
    if reference_n > n:
        raise too_few_references(reference_n, n)
    chosen = set(rng.permutation(n)[:reference_n].tolist())
    longest = max(batch.tokens.shape[1] for batch in made)
    found: dict[Place, tuple[Tensor, Tensor]] = {}
    for batch in made:
        rows = [row for row, index in enumerate(batch.indices) if index in chosen]
        if not rows:
            continue
        for place, activation in _recorded(model, batch.tokens[rows], list(places)).items():
            if place not in found:
                shape = (longest, *activation.shape[2:])
                found[place] = (activation.new_zeros(shape), activation.new_zeros(longest))
            total, count = found[place]
            total[: activation.shape[1]] += activation.sum(0)
            count[: activation.shape[1]] += len(activation)
    return found


def _donors(made: Sequence[Batch], rng: np.random.Generator) -> dict[tuple[int, ...], Tensor]:
    """For each batch, by its indices, the tokens of other prompts of its length, one for each of its prompts."""
    found: dict[tuple[int, ...], Tensor] = {}
    check_donors(batch.tokens.shape[1] for batch in made for _ in batch.indices)
    for _, group in itertools.groupby(made, key=lambda batch: batch.tokens.shape[1]):
        members = list(group)
        tokens = torch.cat([batch.tokens for batch in members])
        order = torch.from_numpy(rng.permutation(len(tokens))).to(tokens.device)
        donor = torch.empty_like(order)
        donor[order] = order.roll(1)  # a cycle: nobody is his own donor
        for batch, mine in zip(members, donor.split([len(batch.indices) for batch in members]), strict=True):
            found[batch.indices] = tokens[mine]
    return found


def _recorded(model: TransformerBridge, tokens: Tensor, places: Sequence[Place]) -> dict[Place, Tensor]:
    """Activations of the unchanged model at these places."""
    names = {hook_name(*place): place for place in places}
    _, cache = model.run_with_cache(tokens, names_filter=list(names), logits_to_keep=1)
    return {place: cache[name] for name, place in names.items()}


def edit(model: TransformerBridge, places: Places, values: Replacement) -> Edit:
    """The model with these components replaced."""

    @contextmanager
    def changed_on(batch: Batch) -> Iterator[None]:
        # Before any hook is there: resample runs the model.
        given = values(batch, list(places))
        changes = {hook_name(*place): _put(list(indices), given[place]) for place, indices in places.items()}
        with changed(model, changes):
            yield

    return changed_on


def _put(indices: list[int], given: Tensor) -> Change:
    def put(activation: Tensor) -> Tensor:
        ablated = activation.clone()
        ablated[:, :, indices] = given.to(activation).expand_as(activation)[:, :, indices]
        return ablated

    return put


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
