"""F as a function of a set of components, of any layers and sites, that are changed together.

What is changed is held at its new value whatever comes before it; every other activation is what the changes before it
give. One pass from the earliest of the layers on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from igap.components import Site
from igap.engine.contrast import Contrast
from igap.engine.decoder import keep


@dataclass(frozen=True)
class _Place:
    """The set's members in one site of one layer."""

    indices: Int[Tensor, " member"]
    columns: slice
    """Theirs on the set's axis of dimensions."""


@dataclass(frozen=True, eq=False)
class ComponentSet:
    """Components of a contrast as one activation: their dimensions side by side, of a neuron one."""

    contrast: Contrast
    members: tuple[tuple[Site, int, int], ...]
    """Site, layer and index of each, none twice."""

    def ends(self) -> tuple[Float[Tensor, "pair pos d"], Float[Tensor, "pair pos d"]]:
        """The activations a (in the run) and a' (their replacement), from the contrast's first position on."""
        both = {at: torch.stack(self.contrast.ends(*at)) for at in self._places}
        start, end = self.beside(both)
        return start, end

    def beside(self, activations: Mapping[tuple[Site, int], Tensor]) -> Float[Tensor, "outer inner pos d"]:
        """The members' dimensions side by side, from activations `[outer, inner, pos, component, ...]` by place."""
        parts = [activations[at].index_select(3, place.indices).flatten(3) for at, place in self._places.items()]
        return torch.cat(parts, 3)

    def function(
        self, rows: Float[Tensor, "pair row pos d"], where: Bool[Tensor, "pair _row pos 1"] | None = None
    ) -> Float[Tensor, "pair row"]:
        """F with all members held at these activations, at the contrast's positions or at others. Differentiable."""
        return self._with_changes(rows, self._where if where is None else where, rows.shape[1])

    def patch(self, chosen: Bool[Tensor, "row member"]) -> Float[Tensor, "pair row"]:
        """F with the chosen members held at a', the others being what these give."""
        where = self._where & chosen[:, self.owner][None, :, None]
        return self._with_changes(self.ends()[1][:, None], where, len(chosen))

    def streams(
        self, rows: Float[Tensor, "pair row pos d"], where: Bool[Tensor, "pair _row pos 1"] | None = None
    ) -> Float[Tensor, "pair row layer d_model"]:
        """The residual stream at the last position, after each block from the first member's on."""
        where = self._where if where is None else where
        made: list[Tensor] = []

        def note(change: Callable[[Tensor], Tensor], activation: Tensor) -> Tensor:
            changed = change(activation)
            made.append(changed[:, :, -1, 0])
            return changed

        changes = self.changes(rows, where)
        after: list[tuple[Site, int]] = [
            ("resid_post", layer) for layer in range(next(iter(self._places))[1], self.contrast.n_layers)
        ]
        changes |= {at: partial(note, changes.get(at, keep)) for at in after}
        self.contrast.engine.with_changes(changes, rows.shape[1])
        return torch.stack(made, 2)

    def by_member(self, values: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows member"]:
        """The sums of each member's dimensions."""
        return values.new_zeros(*values.shape[:-1], len(self.members)).index_add(-1, self.owner, values)

    @cached_property
    def owner(self) -> Int[Tensor, " d"]:
        """The member, by its place in `members`, that each dimension is of."""
        device = self.contrast.base.tokens.device
        order = [i for at in self._places for i, member in enumerate(self.members) if member[:2] == at]
        sizes = [self._size(self.members[i][0]) for i in order]
        return torch.tensor(order, device=device).repeat_interleave(torch.tensor(sizes, device=device))

    @cached_property
    def _places(self) -> dict[tuple[Site, int], _Place]:
        """By site and layer, in the order of their layers."""
        places, before = {}, 0
        for site, layer in sorted({member[:2] for member in self.members}, key=lambda at: (at[1], at[0])):
            indices = [index for *at, index in self.members if at == [site, layer]]
            columns = slice(before, before + len(indices) * self._size(site))
            places[site, layer] = _Place(torch.tensor(indices, device=self.contrast.base.tokens.device), columns)
            before = columns.stop
        return places

    @property
    def _where(self) -> Bool[Tensor, "pair 1 pos 1"]:
        """The positions at which members are changed, from the first one on."""
        where = self.contrast.where
        where = torch.ones_like(self.contrast.base.tokens, dtype=torch.bool) if where is None else where
        return where[:, None, self.contrast.first :, None]

    def _size(self, site: Site) -> int:
        """Dimensions of a component."""
        return self.contrast.base.activations[site][0].shape[3:].numel()

    def _with_changes(self, values: Tensor, where: Tensor, n_rows: int) -> Tensor:
        return self.contrast.engine.with_changes(self.changes(values, where), n_rows)

    def changes(
        self, values: Float[Tensor, "pair row pos d"], where: Bool[Tensor, "pair _row pos _d"]
    ) -> dict[tuple[Site, int], Callable[[Tensor], Tensor]]:
        """By site and layer, what becomes of its activations with the members at these values where told."""
        where = where.expand(*where.shape[:3], values.shape[3])
        return {
            at: partial(_put, place.indices, values[..., place.columns], where[..., place.columns])
            for at, place in self._places.items()
        }


def _put(indices: Tensor, values: Tensor, where: Tensor, own: Tensor) -> Tensor:
    """The activation `[pair, row, pos, component, ...]`, some components of it replaced where told."""
    late = slice(-own.shape[2], None)
    kept = own.index_select(3, indices)
    changed = torch.where(where[:, :, late], values[:, :, late], kept.flatten(3))
    return own.index_copy(3, indices, changed.view_as(kept).to(own))
