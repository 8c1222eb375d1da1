"""Edges: what one component writes to the residual stream, as one later component reads it.

A sender is the input of the first block, a head, or an MLP. A reader is the query, key or value of a head (keys and
values of key-value heads), an MLP, or the logits. The stream is a sum, so that along one edge alone the reader sees its
input moved by what the sender's write moves by, and everything else stays. What the reader makes of that replaces its
own site: q, k, v or mlp_out. So patching an edge is patching a site of `forward`, and its gradient is the site's slope
taken back through the reader.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Literal, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from igap.components import Site
from igap.engine.contrast import Contrast
from igap.engine.decoder import Edit, keep
from igap.engine.forward import Suffix
from igap.engine.hooks import pad_front
from igap.errors import InputError

Sender = Literal["resid_pre", "heads", "mlp_out"]
"""The sites whose components write; `resid_pre` is what comes into layer 0."""
Reader = Literal["q", "k", "v", "mlp_out", "logits"]
READERS: tuple[Literal["q", "k", "v", "mlp_out"], ...] = ("q", "k", "v", "mlp_out")
"""The sites whose components read."""

Place = tuple[Sender, int]
Reading = tuple[Reader, int]

PlaceT = TypeVar("PlaceT")


class Edges(Suffix):
    """F as a function of single edges, with the model's weights."""

    def __init__(self, contrast: Contrast) -> None:
        """Raises InputError where F is not computed from the weights."""
        if contrast.backend.decoder is None:
            raise InputError(
                f"model: got {contrast.model.cfg.model_name}, whose edges cannot be computed: "
                f"{contrast.backend.reason}. "
                "Use components instead of edges, or another model."
            )
        super().__init__(contrast.backend.decoder, contrast.readout, contrast.base, contrast.first)
        self._contrast = contrast

    @property
    def n_layers(self) -> int:
        """Blocks of the model."""
        return len(self._blocks)

    @property
    def senders(self) -> list[Place]:
        """All places that write, in the order of the forward pass."""
        by_layer: list[tuple[Place, Place]] = [(("heads", i), ("mlp_out", i)) for i in range(self.n_layers)]
        return [("resid_pre", 0), *(place for pair in by_layer for place in pair)]

    @property
    def readers(self) -> list[Reading]:
        """All places that read, in the order of the forward pass."""
        return [*((site, layer) for layer in range(self.n_layers) for site in READERS), ("logits", self.n_layers)]

    @property
    def adds_up(self) -> bool:
        """Whether what the heads of a layer write is the sum of what each writes: no norm comes after attention."""
        return all(block.post1 is keep for block in self._blocks)

    def width(self, site: Reader) -> int:
        """Components that read there."""
        block = self._blocks[0]
        linear = {"q": block.query, "k": block.key, "v": block.value}.get(site)
        return 1 if linear is None else len(linear.weight) // block.d_head

    @property
    def columns_of_senders(self) -> dict[Place, slice]:
        """Where each place's components are among all that write."""
        return _slices(self.senders, [self.width("q") if site == "heads" else 1 for site, _ in self.senders])

    @property
    def rows_of_readers(self) -> dict[Reading, slice]:
        """Where each place's components are among all that read."""
        return _slices(self.readers, [self.width(site) for site, _ in self.readers])

    def between(self) -> Bool[Tensor, "reader sender"]:
        """Which edges there are."""
        readers, senders = self.rows_of_readers, self.columns_of_senders
        between = torch.zeros(readers["logits", self.n_layers].stop, senders[self.senders[-1]].stop, dtype=torch.bool)
        for reader, rows in readers.items():
            for sender, columns in senders.items():
                between[rows, columns] = self.reaches(sender, reader)
        return between

    def reaches(self, sender: Place, reader: Reading) -> bool:
        """Whether there is an edge between these places."""
        (site, here), (read, there) = sender, reader
        if site == "resid_pre":
            return True
        same = site == "heads" and read == "mlp_out" and not self._blocks[here].parallel
        return here < there or (here == there and same)

    def ends(self, sender: Place) -> tuple[Tensor, Tensor]:
        """The sender's activation in the run and in the other one, each `[pair, pos, component, d]`."""
        site, layer = sender
        if site == "resid_pre":
            start, end = (stream[:, :, None] for stream in self._contrast.inputs())
            return start, end
        return self._contrast.ends(site, layer)

    def stream_changes(self, sender: Place) -> Float[Tensor, "pair component pos d_model"]:
        """What each component, moved alone, changes in the residual stream; exactly."""
        start, end = self.ends(sender)
        if sender[0] != "heads":
            return (end - start).movedim(2, 1)
        block, moved = self._blocks[sender[1]], self._write_of_heads(sender[1], end - start)
        before = block.out(start.flatten(2))[:, None]
        return block.attention_adds(before + moved) - block.attention_adds(before)

    def tangent(
        self, sender: Place, rows: Float[Tensor, "pair row pos component d"]
    ) -> Float[Tensor, "pair #row component pos d_model"]:
        """The same to first order where the sender's activations are `rows`; one row where that makes no difference."""
        start, end = self.ends(sender)
        if sender[0] != "heads":
            return (end - start).movedim(2, 1)[:, None]
        block, moved = self._blocks[sender[1]], self._write_of_heads(sender[1], end - start)[:, None]
        if block.post1 is keep:
            return block.attention_adds(moved)
        written = block.out(rows.flatten(3))[:, :, None].expand(-1, -1, moved.shape[2], -1, -1)
        return _derivative(block.attention_adds, written, moved)

    def _write_of_heads(self, layer: int, moved: Tensor) -> Float[Tensor, "pair head pos d_model"]:
        """What each head's movement `[pair, pos, head, d_head]` is after W_O."""
        weights = self._blocks[layer].out.weight.T.unflatten(0, (moved.shape[2], -1))
        written: Tensor = moved.transpose(1, 2) @ weights
        return written

    def patch_reader(self, reader: Reading, moved: Float[Tensor, "pair row pos d_model"], component: int) -> Tensor:
        """F, `[pair, row]`, where one component reads the residual stream moved by so much, minus F without."""
        site, layer = reader
        if site == "logits":
            final = self._through(self.n_layers - 1, self._base.residual[-1][:, None, self._first :])
            return self._read(final + moved[:, :, -final.shape[2] :]) - self._read(final)
        read = self._input(reader)
        start, own = self._compute_site(reader, read), self._compute_site(reader, read + moved)[:, :, :, component]
        function = self.function(site, layer)
        rows = start.expand(-1, own.shape[1], -1, -1, -1).clone()
        rows[:, :, :, component] = own
        return function(rows) - function(start)

    def slopes(
        self, sender: Place, rows: Float[Tensor, "pair row pos component d"]
    ) -> Iterator[tuple[Reading, Float[Tensor, "pair row pos reader d_model"]]]:
        """dF/d(what each component reads) of all that the sender reaches, from the last, where the sender is `rows`."""
        site, layer = sender
        stream = self._base.residual[layer][:, None, self._first :]
        streams = {layer: rows[:, :, :, 0] if site == "resid_pre" else stream}
        edit: dict[Site, Edit] = {} if site == "resid_pre" else {site: lambda own: rows[:, :, -own.shape[2] :]}
        with torch.no_grad():
            for each in range(layer, self.n_layers):
                streams[each + 1] = self._through(each, streams[each], edit if each == layer else {})
        top, width = streams[self.n_layers].requires_grad_(), rows.shape[2]
        with torch.enable_grad():
            (slope,) = torch.autograd.grad(self._read(top).sum(), top)
        yield ("logits", self.n_layers), pad_front(slope, width)[:, :, :, None]
        for each in range(self.n_layers - 1, layer - 1, -1):
            slope, below = self._through_block(each, streams[each], edit if each == layer else {}, slope)
            for reader, (read, of_site) in below.items():
                if self.reaches(sender, (reader, each)):
                    back = self._back((reader, each), read[:, :, -of_site.shape[2] :], of_site)
                    yield (reader, each), pad_front(back, width)

    def with_kept(self, kept: Bool[Tensor, "reader sender"]) -> Float[Tensor, " pair"]:
        """F where each component reads what the senders that are kept write here, and of others the other run's.

        Rows and columns are the components of `readers` and `senders`, in their order. There must be no norm after
        attention: with one, what single heads write does not add up.
        """
        assert self.adds_up
        other = torch.cat([self.stream_changes(place) for place in self.senders], 1)
        # What the senders so far write, beside what they write in the run.
        here = torch.zeros_like(other[:, :1])
        rows = iter(kept.to(other).split([self.width(site) for site, _ in self.readers]))

        def mix(upstream: Tensor) -> Float[Tensor, "pair reader pos d_model"]:
            wanted, n = next(rows), upstream.shape[1]
            of_kept, of_others = (
                torch.einsum("rs,nspm->nrpm", weights[:, :n], writes[:, :n])
                for weights, writes in ((wanted, upstream), (1 - wanted, other))
            )
            return of_kept + of_others

        for layer, block in enumerate(self._blocks):
            base = self._base.residual[layer][:, None, self._first :]
            given: dict[Site, Tensor] = {}
            for site in READERS[:3]:
                made = self._compute_site((site, layer), base + mix(here))  # [pair, reader, pos, component, d]
                given[site] = made.diagonal(dim1=1, dim2=3).permute(0, 1, 3, 2)[:, None]
            z = self._attention(layer, block.norm1(base), at=partial(_look_up, given))
            z_base = self._base.activations["heads"][layer][:, None, self._first :]
            attended = block.attention_adds(self._write_of_heads(layer, (z - z_base)[:, 0]))
            upstream = here if block.parallel else torch.cat([here, attended], 1)
            read = self._input(("mlp_out", layer))
            added = self._compute_site(("mlp_out", layer), read + mix(upstream)) - self._compute_site(
                ("mlp_out", layer), read
            )
            here = torch.cat([here, attended, added[:, :, :, 0]], 1)
        final = self._through(self.n_layers - 1, self._base.residual[-1][:, None, self._first :])
        return self._read(final + mix(here)[:, :, -final.shape[2] :])[:, 0]

    def _through_block(
        self, layer: int, stream: Tensor, edit: dict[Site, Edit], slope: Tensor
    ) -> tuple[Tensor, dict[Reader, tuple[Tensor, Tensor]]]:
        """The slope before a block from that after it, and by reader its input and the slope of its site."""
        leaves: dict[Reader, Tensor] = {}
        read: list[Tensor] = [stream]

        def add_zeros(site: Reader, activation: Tensor) -> Tensor:
            leaves[site] = torch.zeros_like(activation).requires_grad_()
            return activation + leaves[site]

        def note(middle: Tensor) -> Tensor:
            read.append(middle[:, :, :, 0].detach())
            return middle

        stream = stream.detach().requires_grad_()
        changes: dict[Site, Edit] = {site: partial(add_zeros, site) for site in READERS if site not in edit}
        if not self._blocks[layer].parallel:
            changes["resid_mid"] = note
        with torch.enable_grad():
            after = self._through(layer, stream, changes | edit)
            before, *slopes = torch.autograd.grad(after, [stream, *leaves.values()], slope, materialize_grads=True)
        by_reader = dict(zip(leaves, slopes, strict=True))
        below = {site: (read[-1] if site == "mlp_out" else read[0], each) for site, each in by_reader.items()}
        return pad_front(before, stream.shape[2]), below

    def _back(self, reader: Reading, read: Tensor, slope: Tensor) -> Float[Tensor, "pair row pos reader d_model"]:
        """The slope of what each component reads `[pair, row, pos, d_model]`, from that of its site."""
        site, layer = reader
        block = self._blocks[layer]
        if site == "mlp_out":
            inputs, shown = read.detach().requires_grad_(), slope[:, :, :, 0]
            with torch.enable_grad():
                made = self._compute_site(reader, inputs)[:, :, :, 0]
        else:
            linear = {"q": block.query, "k": block.key, "v": block.value}[site]
            # Every component has the norm for itself: [pair, row, pos, component, d_model].
            shown = torch.einsum("nrpcd,cdm->nrpcm", slope, linear.weight.unflatten(0, (slope.shape[3], -1)))
            inputs = read[:, :, :, None].expand_as(shown).detach().requires_grad_()
            with torch.enable_grad():
                made = block.norm1(inputs)
        if made is inputs:  # no norm
            back: Tensor = shown
        else:
            (back,) = torch.autograd.grad(made, inputs, shown)
        return back[:, :, :, None] if site == "mlp_out" else back

    def _input(self, reader: Reading) -> Float[Tensor, "pair 1 pos d_model"]:
        """What the reader's site reads in the run."""
        site, layer = reader
        block, stream = self._blocks[layer], self._base.residual[layer][:, None, self._first :]
        if site != "mlp_out" or block.parallel:
            return stream
        z = self._base.activations["heads"][layer][:, None, self._first :]
        return stream + block.attention_adds(block.out(z.flatten(3)))

    def _compute_site(self, reader: Reading, read: Tensor) -> Float[Tensor, "pair row pos reader d"]:
        """What the reader's site is where it reads this."""
        site, layer = reader
        block = self._blocks[layer]
        if site == "mlp_out":
            return block.mlp_adds(block.down(block.neurons(read)))[:, :, :, None]
        linear = {"q": block.query, "k": block.key, "v": block.value}[site]
        projected: Tensor = linear(block.norm1(read)).unflatten(-1, (-1, block.d_head))
        return projected


def _slices(places: Sequence[PlaceT], widths: Sequence[int]) -> dict[PlaceT, slice]:
    ends = itertools.accumulate(widths)
    return {place: slice(end - width, end) for place, width, end in zip(places, widths, ends, strict=True)}


def _derivative(function: Edit, at: Tensor, direction: Tensor) -> Tensor:
    """How a function changes along a direction; by two backward passes, since its parts may have no forward one."""
    with torch.enable_grad():
        at = at.detach().requires_grad_()
        made = function(at)
        weights = torch.zeros_like(made).requires_grad_()
        (slope,) = torch.autograd.grad(made, at, weights, create_graph=True)
        (derivative,) = torch.autograd.grad(slope, weights, direction.expand_as(slope))
    return derivative


def _look_up(given: Mapping[Site, Tensor], site: Site, activation: Tensor) -> Tensor:  # noqa: ARG001 - as `at`
    return given[site]
