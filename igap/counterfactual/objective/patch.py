"""A target in the clean runs: F as a function of what its components are moved to, and the positions where they are."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from igap.attribution.integrated_gradients import along_path
from igap.attribution.maps import per_component
from igap.components import Site
from igap.counterfactual.spaces.base import BoundSpace
from igap.counterfactual.target import Target
from igap.engine.batching import AdaptiveBatch
from igap.engine.component_sets import ComponentSet
from igap.engine.contrast import Contrast
from igap.engine.hooks import SiteFunction
from igap.engine.positions import Wording, find_spans
from igap.errors import InputError
from igap.inputs.prompts import PromptPair, TokenPair
from igap.vocabulary import ROLES


def resolve(target: Target, pair: TokenPair) -> Target:
    """The target with the positions that its index, range or words stand for in this clean prompt.

    Raises InputError where the prompt does not have them.
    """
    span = target.span
    if span is None or span in ("last", "diff", *ROLES):
        return target
    try:
        spans = find_spans(target.positions.value, [pair], "noising", wording=_wording(target))
    except InputError:
        last = pair.clean.shape[1] - 1
        if "@" in span:
            why = f"wanted one span after one @, as in {target.component}@{span.partition('@')[0]}. Correct it."
        elif re.fullmatch(r"-\s*\d+", span):
            why = (
                f"wanted a position from 0 to {last}, or last: they are counted from the prompt's start. Write @{last}."
            )
        else:
            raise
        raise InputError(f"head: got {target.name}, {why}") from None
    assert spans is not None
    return replace(target, where=tuple(spans.masks[0][0].nonzero().flatten().tolist()))


def find_positions(target: Target, pairs: Sequence[TokenPair]) -> Bool[Tensor, "pair pos"] | None:
    """The positions at which a resolved target is patched in these pairs; None: all of them.

    Raises InputError on a role that a clean prompt does not have.
    """
    if target.span is None:
        return None
    if target.where is not None:
        mask = torch.zeros_like(pairs[0].clean, dtype=torch.bool)
        mask[:, list(target.where)] = True
        return mask.expand(len(pairs), -1)
    spans = find_spans(target.positions.value, pairs, "noising", wording=_wording(target))
    assert spans is not None
    return spans.masks[spans.names.index(target.span) if spans.has_axis else 0]


def _wording(target: Target) -> Wording:
    """How messages name the target's span."""
    return Wording(f"head: got {target.name}", f"Use {target.component}@last, or another span.")


def check_reach(target: Target, pairs: Sequence[TokenPair], changed: Sequence[int], n_layers: int | None) -> None:
    """Raises InputError where no prompt of the space can change what is patched, or F does not see it.

    Args:
        target: The components and their span, resolved.
        pairs: The clean prompts.
        changed: The positions at which the space's prompts may differ from a clean one, ascending.
        n_layers: Of the model; None: not known.
    """
    mask = None if target.span == "diff" else find_positions(target, pairs)
    if mask is None:
        return
    where = mask.any(0).nonzero().flatten().tolist()
    own_token = all(layer == 0 and site in ("resid_pre", "q", "k", "v") for site, layer, _ in target.members)
    if not any(position in changed if own_token else position >= changed[0] for position in where):
        differ = f"at {', '.join(map(str, changed))}" if own_token else f"from {changed[0]} on"
        raise InputError(
            f"head: got {target.name}, position {', '.join(map(str, where))}, which no prompt of the space changes: "
            f"they differ {differ}. Take a later span, or offer words for earlier slots."
        )
    n_pos, n_read = mask.shape[1], pairs[0].n_read
    unread = n_layers is not None and all(
        layer == n_layers - 1 and site not in ("resid_pre", "k", "v") for site, layer, _ in target.members
    )
    if unread and not any(position >= n_pos - n_read for position in where):
        read = f"position {n_pos - 1} alone is read, wanted that"
        if n_read > 1:
            read = f"positions from {n_pos - n_read} on alone are read, wanted one of those"
        raise InputError(
            f"head: got {target.name}, of the last layer, where {read} among its positions. "
            f"Use {target.component}@last."
        )


def check_reaches(
    target: Target, bound: BoundSpace, tokens_of: Callable[[PromptPair], TokenPair], n_layers: int | None
) -> None:
    """Raises InputError as `check_reach` does, and on positions of the first clean prompt where not all stand alike."""
    groups = [(group, [tokens_of(pair) for pair in group.pairs]) for _, group in bound.groups]
    if target.where is not None and len({(group.space.slots, pairs[0].n_prompt) for group, pairs in groups}) > 1:
        raise InputError(
            f"head: got {target.name}, positions of the first clean prompt, with clean prompts of several lengths, "
            f"where other words stand there. Use {target.component}@last, @diff or a role, or clean.lengths=one."
        )
    for group, pairs in groups:
        check_reach(target, pairs, group.space.positions, n_layers)


_OF_ONE_POSITION: tuple[Site, ...] = ("resid_pre", "q", "k", "v")
"""Sites of block 0 that depend on the token at their position alone."""


@dataclass(frozen=True, eq=False)
class Patch:
    """A target in the clean runs. Activations are those from the contrast's first position on, `[pair, row, pos, d]`;
    of a single neuron without the last axis."""

    contrast: Contrast
    """The contrast of the clean runs; where they would move to is not asked."""
    target: Target
    where: Bool[Tensor, "pair pos"] | None
    """Positions that are patched; None: all, or those at which a candidate differs (`diff`)."""

    def activation(self, sites: Mapping[tuple[Site, int], Tensor]) -> Tensor:
        """The target's part of the activations `[pair, row, pos, component, ...]` of its places."""
        if self.target.single is None:
            return self._set.beside(sites)
        site, layer, index = self.target.single
        return sites[site, layer][:, :, :, index]

    @cached_property
    def start(self) -> Float[Tensor, "pair 1 pos *d"]:
        """Its activation in the clean runs."""
        clean = self.contrast.clean.activations
        return self.activation(
            {(site, layer): clean[site][layer][:, None, self.contrast.first :] for site, layer in self.target.places}
        )

    def mask(self, tokens: Int[Tensor, "corrupted candidate pos"]) -> Bool[Tensor, "pair _candidate _changed"] | None:
        """The positions, from the contrast's first on, at which the target is patched; None: all of them."""
        late = slice(self.contrast.first, None)
        if self.target.span == "diff":
            return (tokens != self.contrast.base.tokens[:, None])[:, :, late]
        return None if self.where is None else self.where[:, None, late]

    def without_unseen(self, tokens: Int[Tensor, "corrupted candidate pos"]) -> Int[Tensor, "corrupted candidate pos"]:
        """The tokens, but the clean prompt's where no activation at a patched position depends on them."""
        if self.where is None:
            return tokens
        patched, positions = self.where.any(0), torch.arange(tokens.shape[2], device=tokens.device)
        unseen = positions > patched.nonzero()[-1]
        if all(layer == 0 and site in _OF_ONE_POSITION for site, layer in self.target.places):
            unseen = ~patched
        return torch.where(unseen, self.contrast.base.tokens[: len(tokens), None], tokens)

    def end(self, activation: Tensor, mask: Tensor | None) -> Tensor:
        """What the target is moved to: this activation at the patched positions, its own elsewhere.

        The activation may be given once for all pairs.
        """
        activation = activation.expand(len(self.contrast.pairs), *activation.shape[1:])
        if mask is None:
            return activation
        return torch.where(mask if activation.ndim == 3 else mask[..., None], activation, self.start)

    def value(self, rows: Tensor, mask: Tensor | None) -> Float[Tensor, "pair row"]:
        """F with the target at these activations, as `end` gives them. Differentiable."""
        if self.target.single is None:
            return self._set.function(rows, None if mask is None else mask[..., None])
        return self._single(rows)

    @property
    def later(self) -> list[tuple[Site, int]]:
        """The places of the residual stream after each block from the target's first on."""
        return [("resid_post", layer) for layer in range(self.target.places[0][1], self.contrast.n_layers)]

    def streams(self, rows: Tensor, mask: Tensor | None) -> Float[Tensor, "pair row layer d_model"]:
        """The residual stream at the read position at `later`, with the target at these activations."""
        return self._set.streams(rows if rows.ndim == 4 else rows[..., None], None if mask is None else mask[..., None])

    def integrate(
        self,
        sites: Mapping[tuple[Site, int], Tensor],
        end: Tensor,
        mask: Tensor | None,
        n_nodes: int,
        batch: AdaptiveBatch,
    ) -> Float[Tensor, "pair candidate"]:
        """The target's integrated gradients from its clean activation to `end`, in F's unit.

        Of a single component the whole layer's site moves, to `sites`. Of a set its members do, alone.
        """
        if self.target.single is None:
            start = self.start.expand_as(end)

            def of_rows(moved: Tensor) -> Tensor:  # the candidates, node after node
                n = 1 if mask is None or mask.shape[1] == 1 else moved.shape[1] // mask.shape[1]
                return self.value(moved, None if mask is None else mask.repeat(1, n, 1))

            return along_path(of_rows, start, end, n_nodes, "gausslegendre", batch).sum((2, 3))
        site, layer, index = self.target.single
        whole = sites[site, layer].expand(len(self.contrast.pairs), *sites[site, layer].shape[1:])
        start = self.contrast.clean.activations[site][layer][:, None, self.contrast.first :].expand_as(whole)
        shares = along_path(self.contrast.function(site, layer), start, whole, n_nodes, "gausslegendre", batch)
        by_position = per_component(shares, site)[..., index]
        return by_position.sum(2) if mask is None else (by_position * mask).sum(2)

    @cached_property
    def members(self) -> "tuple[Patch, ...]":
        """Each member of the target alone."""
        return tuple(
            replace(self, target=replace(self.target, members=(member,), every=False)) for member in self.target.members
        )

    def estimates(self, rows: Sequence[Tensor]) -> Float[Tensor, "pair row member"]:
        """To first order in the clean runs, F with each member alone at its rows less F without: AtP."""
        moved = [
            ((own - member.start) * slope).flatten(2).sum(-1)
            for own, member, slope in zip(rows, self.members, self._slopes, strict=True)
        ]
        return torch.stack(moved, -1)

    @cached_property
    def _slopes(self) -> list[Float[Tensor, "pair 1 pos *d"]]:
        """dF/da of each member in the clean runs."""
        pairs = list(range(len(self.contrast.pairs)))
        with torch.enable_grad():
            by_place = {
                (site, layer): slope[:, None]
                for site in self.target.sites
                for layer, _, slope in self.contrast.gradients(site, pairs)
                if (site, layer) in self.target.places
            }
        return [member.activation(by_place) for member in self.members]

    @cached_property
    def _set(self) -> ComponentSet:
        return ComponentSet(self.contrast, self.target.members)

    @cached_property
    def _single(self) -> SiteFunction:
        assert self.target.single is not None
        return self.contrast.engine.single(*self.target.single)
