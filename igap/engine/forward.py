"""The engine: the metric F as a function of one site's activation.

Everything before the site stays at the run it belongs to, everything after it is recomputed. What is recomputed, when
a site of block L changes from position f on:

    position      0 .. f-1              f .. S-1
    block < L     -                     -
    block L       -                     from the site on: W_O, MLP (heads), W_out (neurons), attention (q, k, v), ...
    block > L     keys, values: shared  whole block, one row a patch
    last block    keys, values: shared  keys, values; query, MLP and metric of S-1 only

(Where F is read at several positions, `Readout.n_read`, of those in place of S-1; f is never behind the first of them.)
`-` is read from the run. Positions before f are equal in all rows, so that attention reads their keys and values from
one copy. For a logit difference W_U[answer] - W_U[distractor], or the difference of their means, is all that is needed
of W_U. A patch of one component changes what its site writes to the residual stream by (a'_c - a_c) W_c, so it needs no
product with the other components' weights.

Rows are `[pair, row, pos, ...]`: pairs of equal length and equal f share a pass. Two routes give the same numbers:
`suffix` does the above with the model's weights, `hooks` runs the whole model with the site replaced.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from igap.components import PLACES, SITES, Site
from igap.engine.activations import ForwardPass, hold
from igap.engine.attention import attend, visible
from igap.engine.batching import stage
from igap.engine.decoder import Block, Decoder, Edit, keep
from igap.engine.hooks import (
    EmbeddingFunction,
    Gradients,
    PatchFunction,
    RowGradients,
    SiteChanges,
    SiteFunction,
    one_of,
    pad_front,
    slopes_of,
    swap_components,
)
from igap.engine.metrics import Readout, by_question
from igap.engine.unembedding import unembed

_UNCHANGED: Mapping[Site, Edit] = MappingProxyType({})
_UP_TO_HEADS = ("resid_pre", "q", "k", "v", "heads")
"""Sites of a block before W_O."""


class Suffix:
    """What comes after the site and from position `first` on, with the model's weights."""

    def __init__(self, decoder: Decoder, readout: Readout, base: ForwardPass, first: int) -> None:
        """As Hooks; the keys and values that all rows share are computed here."""
        self._decoder, self._blocks = decoder, decoder.blocks
        self._base, self._first, self._n_read = base, first, readout.n_read
        assert first <= base.tokens.shape[1] - self._n_read
        self._metric, self._n = unembed(decoder, readout), len(readout.metrics)
        positions = torch.arange(base.tokens.shape[1], device=base.tokens.device)
        behind = positions[first:, None] - positions  # [query, key]
        self._seen = {  # by how far back a block sees
            window: visible(behind, window) for window in {block.window for block in self._blocks}
        }
        with torch.no_grad():
            self._turns = {
                rotary: rotary.tables(base.residual[0], positions)
                for rotary in {block.rotary for block in self._blocks}
                if rotary is not None
            }
            self._shared = [self._prefix(block, run) for block, run in zip(self._blocks, base.residual, strict=True)]

    def function(self, site: Site, layer: int) -> SiteFunction:
        """As Hooks."""
        if self._is_short(site, layer):
            write, after = self._write(site, layer), self._after(site, layer)
            return lambda rows: after(write(rows))
        before = self._base.residual[layer][:, None, self._first :]

        def metric(rows: Tensor) -> Tensor:
            # What comes before the site has one row.
            stream = self._through(layer, before, {site: lambda own: rows[:, :, -own.shape[2] :]})
            return self._from(layer + 1, stream)

        return metric

    def patches(self, site: Site, layer: int, start: Tensor, end: Tensor) -> PatchFunction:
        """As Hooks."""
        if not self._is_short(site, layer):
            function = self.function(site, layer)
            return lambda components: function(swap_components(start, end, components))
        after = self._after(site, layer)
        unpatched = self._write(site, layer)(start[:, None])
        moved = self._writer(site, layer, (end - start)[:, -unpatched.shape[2] :])
        return lambda components: after(unpatched + moved(components))

    def direct(self, site: Site, layer: int, start: Tensor, end: Tensor) -> PatchFunction:
        """How F changes when what single components write moves, and all attention and MLPs after them stay.

        Of `heads`, `neurons`, `attn_out` and `mlp_out`. Norms of what a layer writes, and the final norm, are computed.
        """
        block, here = self._blocks[layer], (start[:, -self._n_read :], end[:, -self._n_read :])
        final = self._through(len(self._blocks) - 1, self._base.residual[-1][:, None, self._first :])
        unmoved = self._read(final)
        if site not in SITES:
            shift = self._read(final + (here[1] - here[0])[:, None, :, 0]) - unmoved
            return lambda components: shift[:, components]
        adds = block.attention_adds if site == "heads" else block.mlp_adds
        unpatched = self._write(site, layer)(here[0][:, None])
        moved, before = self._writer(site, layer, here[1] - here[0]), adds(unpatched)

        def metric(components: Tensor) -> Tensor:
            return self._read(final + (adds(unpatched + moved(components)) - before)) - unmoved

        return metric

    def _read(self, stream: Tensor) -> Tensor:
        """The residual stream after the last block to F."""
        return self._metric(self._decoder.norm(stream[:, :, -self._n_read :]))

    def _still_read(self, layer: int, first: int | None = None) -> slice:
        """The positions, from `first` on, that are read after the site of a layer: of the last one those of F alone."""
        return slice(-self._n_read if layer == len(self._blocks) - 1 else first, None)

    def _writer(self, site: Site, layer: int, moved: Tensor) -> Callable[[Tensor], Tensor]:
        """Components to what each of them, moved by so much, changes in what its layer writes."""
        block = self._blocks[layer]
        # One matrix a component: [component, d_head, d_model], for neurons with d_head = 1.
        weights = (
            (block.out if site == "heads" else block.down).weight.T.unflatten(0, (moved.shape[2], -1)).contiguous()
        )
        moved = moved.flatten(2).unflatten(2, weights.shape[:2])

        def write_components(components: Tensor) -> Tensor:
            # Of an outer product, matmul makes a slow loop; a broadcast product is one pass over the result.
            rows, by = moved[:, :, components].transpose(1, 2), weights[components]
            change: Tensor = rows * by if by.shape[1] == 1 else rows @ by
            return change

        return write_components

    def single(self, site: Site, layer: int, index: int) -> SiteFunction:
        """As Hooks."""
        if not self._is_short(site, layer):
            start = self._base.activations[site][layer][:, None, self._first :]
            return one_of(self.function(site, layer), start, index)
        block, after = self._blocks[layer], self._after(site, layer)
        late = self._still_read(layer)
        start = self._base.activations[site][layer][:, None, self._first :]
        unpatched = self._write(site, layer)(start)
        own = start[:, :, late, index]
        columns = (block.out if site == "heads" else block.down).weight.T.unflatten(0, (start.shape[3], -1))[index]

        def metric(rows: Tensor) -> Tensor:
            moved = rows[:, :, late] - own
            return after(unpatched + (moved if site == "heads" else moved[..., None]) @ columns)

        return metric

    def embedding_function(self, places: Sequence[tuple[Site, int]]) -> EmbeddingFunction:
        """As Hooks."""
        return lambda changes: self._record(places, self._base.residual[0][:, None, self._first :] + changes)

    def _record(self, places: Sequence[tuple[Site, int]], stream: Tensor) -> dict[tuple[Site, int], Tensor]:
        """The activations of these places, from what block 0 gets."""
        deepest = max(layer for _, layer in places)
        ends_early = all(layer < deepest or site in _UP_TO_HEADS for site, layer in places)
        made: dict[tuple[Site, int], Tensor] = {}

        def note(place: tuple[Site, int], activation: Tensor) -> Tensor:
            made[place] = activation
            return activation

        for layer in range(deepest + 1):
            noting = {site: partial(note, (site, of)) for site, of in places if of == layer}
            stream, z = self._to_heads(layer, stream, noting)
            if layer < deepest or not ends_early:
                stream = self._from_heads(layer, stream, z, noting)
        return made

    def with_changes(self, changes: SiteChanges, n_rows: int) -> Float[Tensor, "question row"]:
        """As Hooks, from the earliest of these layers on."""
        earliest = min(layer for _, layer in changes)
        stream = self._base.residual[earliest][:, None, self._first :].expand(-1, n_rows, -1, -1)
        for layer in range(earliest, len(self._blocks)):
            here = {site: change for (site, of), change in changes.items() if of == layer}
            stream = stage(self._through, layer, stream, here)
        return self._read(stream)

    def gradients(self, site: Site, *, dropping: bool = False) -> Gradients:
        """As Hooks: block by block from the last, so that one block's activations are held at a time."""
        streams = [stream[:, None, self._first :] for stream in self._base.residual]
        backward = self._backward(site, streams, dropping=dropping)
        return ((layer, dropped, slope[:, 0]) for layer, dropped, _, slope in backward)

    def along(self, site: Site, inputs: Tensor) -> RowGradients:
        """As Hooks, of which every block's input is held, and one block's activations at a time."""
        streams = [inputs]
        with torch.no_grad():
            for layer in range(len(self._blocks) - 1):
                streams.append(self._through(layer, streams[-1]))
        return ((layer, activation, slope) for layer, _, activation, slope in self._backward(site, streams))

    def _backward(
        self, site: Site, streams: Sequence[Tensor], *, dropping: bool = False
    ) -> Iterator[tuple[int, int | None, Tensor, Tensor]]:
        """By layer, from the last, and what is dropped: the site's activation and dF/da, from each block's input."""
        assert not (dropping and any(PLACES[place].is_vector for place, _ in self._base.held))
        last = len(self._blocks) - 1
        with torch.no_grad():
            top = self._through(last, streams[last])
        with torch.enable_grad():
            values = self._read(top.requires_grad_())
        # By what is dropped, the slope of each metric.
        slopes: dict[int | None, list[Tensor]] = {None: [slope for (slope,) in slopes_of(values, self._n, [top])]}
        for layer in range(last, -1, -1):
            stream = streams[layer].detach().requires_grad_()
            made: list[Tensor] = []

            def add_zeros(activation: Tensor, made: list[Tensor] = made) -> Tensor:
                made.extend([torch.zeros_like(activation).requires_grad_(), activation.detach()])
                return activation + made[0]

            with torch.enable_grad():
                after = self._through(layer, stream, {site: add_zeros})
            leaf, activation = made[0], pad_front(made[1], stream.shape[2])
            below: dict[int | None, list[Tensor]] = {}
            for dropped, by_metric in slopes.items():
                each = [torch.autograd.grad(after, [stream, leaf], slope, retain_graph=True) for slope in by_metric]
                below[dropped] = [passed_on for passed_on, _ in each]
                yield layer, dropped, activation, pad_front(by_question([here for _, here in each]), stream.shape[2])
            if dropping:
                below[layer] = [pad_front(slope, stream.shape[2]) for slope in slopes[None]]
            slopes = below

    def _is_short(self, site: Site, layer: int) -> bool:
        """Whether nothing that the run holds lies between heads or neurons and what their block gives."""
        return site in SITES and not any(PLACES[held].is_vector and of == layer for held, of in self._base.held)

    def _write(self, site: Site, layer: int) -> Callable[[Tensor], Tensor]:
        """Activations of the site to what its layer writes, at the positions that are read later."""
        linear = self._blocks[layer].out if site == "heads" else self._blocks[layer].down
        late = self._still_read(layer)
        return lambda rows: linear(rows[:, :, late].flatten(3) if site == "heads" else rows[:, :, late])

    def _after(self, site: Site, layer: int) -> Callable[[Tensor], Tensor]:
        """What the site's layer writes, before a norm that may follow, to F."""
        block = self._blocks[layer]
        late = self._still_read(layer, self._first)
        with torch.no_grad():
            carrier = self._base.residual[layer][:, None, late]
            if site == "neurons":
                z = self._base.activations["heads"][layer][:, None, late]
                carrier = carrier + block.attention_adds(block.out(z.flatten(3)))
            elif block.parallel:
                carrier = carrier + self._mlp(layer, carrier)

        def metric(written: Tensor) -> Tensor:
            stream = carrier + (block.attention_adds if site == "heads" else block.mlp_adds)(written)
            if site == "heads" and not block.parallel:
                stream = stream + self._mlp(layer, stream)
            return self._from(layer + 1, stream)

        return metric

    def _mlp(self, layer: int, residual: Tensor) -> Tensor:
        """What a block's MLP adds to the residual stream that it reads."""
        block = self._blocks[layer]
        return block.mlp_adds(block.down(hold(self._base, "neurons", layer, block.neurons(residual))))

    def _from(self, layer: int, stream: Tensor) -> Tensor:
        """F from the residual stream before a block, or after the last one."""
        for later in range(layer, len(self._blocks)):
            stream = stage(self._through, later, stream)
        return self._read(stream)

    def _through(self, layer: int, stream: Tensor, changes: Mapping[Site, Edit] = _UNCHANGED) -> Tensor:
        """The residual stream `[pair, row, pos, d_model]` after a block: of the last one, where F is read only.

        A change is one of a site's activations, at all positions that the block still has there.
        """
        last = layer == len(self._blocks) - 1
        stream, z = self._to_heads(layer, stream, changes, n_queries=self._n_read if last else None)
        return self._from_heads(layer, stream, z, changes)

    def _to_heads(
        self, layer: int, stream: Tensor, changes: Mapping[Site, Edit], n_queries: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """A block's input and z, changed, for the last `n_queries` positions."""
        stream = self._change_vector(changes, layer, "resid_pre", stream)
        at = partial(self._change, changes, layer)
        z = at("heads", self._attention(layer, self._blocks[layer].norm1(stream), n_queries=n_queries, at=at))
        return stream, z

    def _from_heads(self, layer: int, stream: Tensor, z: Tensor, changes: Mapping[Site, Edit]) -> Tensor:
        """The residual stream after a block, at the positions of z."""
        block = self._blocks[layer]
        stream = stream[:, :, -z.shape[2] :]
        at, at_vector = (partial(change, changes, layer) for change in (self._change, self._change_vector))
        attended = at_vector("resid_mid", stream + at_vector("attn_out", block.attention_adds(block.out(z.flatten(3)))))
        neurons = at("neurons", block.neurons(stream if block.parallel else attended))
        return at_vector("resid_post", attended + at_vector("mlp_out", block.mlp_adds(block.down(neurons))))

    def _change(self, changes: Mapping[Site, Edit], layer: int, site: Site, activation: Tensor) -> Tensor:
        """A site's activation, changed, with what the run holds."""
        return hold(self._base, site, layer, changes.get(site, keep)(activation))

    def _change_vector(self, changes: Mapping[Site, Edit], layer: int, site: Site, vectors: Tensor) -> Tensor:
        """The same of a site of one vector a layer."""
        if site not in changes and (site, layer) not in self._base.held:
            return vectors
        return self._change(changes, layer, site, vectors.unsqueeze(3)).squeeze(3)

    def _attention(
        self,
        layer: int,
        normed: Tensor,
        n_queries: int | None = None,
        at: Callable[[Site, Tensor], Tensor] = lambda _, activation: activation,
    ) -> Float[Tensor, "pair row query head d_head"]:
        """z of every head, for the last `n_queries` positions."""
        block = self._blocks[layer]
        asked = normed if n_queries is None else normed[:, :, -n_queries:]
        seen = self._seen[block.window][-asked.shape[2] :]
        k, v = block.keys_values(normed, partial(at, "k"), partial(at, "v"))
        q = block.queries(asked, partial(at, "q"))
        n_rows = max(x.shape[1] for x in (q, k, v))
        q, k, v = (x.expand(-1, n_rows, -1, -1, -1) for x in (q, k, v))
        q, k = (self._rotate(block, x).transpose(2, 3) for x in (q, k))
        z = attend(block, q, self._shared[layer], (k, v.transpose(2, 3)), seen)
        return z.transpose(2, 3)

    def _prefix(self, block: Block, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values before the first change, each `[pair, 1, head, pos, d_head]`."""
        k, v = block.keys_values(block.norm1(residual[:, None, : self._first]))
        return self._rotate(block, k, slice(self._first)).transpose(2, 3), v.transpose(2, 3)

    def _rotate(self, block: Block, x: Tensor, where: slice | None = None) -> Tensor:
        """Queries or keys `[pair, row, pos, head, d_head]`, at the last positions unless told `where`, rotated."""
        if block.rotary is None:
            return x
        cos, sin = (part[where or slice(len(part) - x.shape[2], None)] for part in self._turns[block.rotary])
        return block.rotary.rotate(x, cos, sin)
