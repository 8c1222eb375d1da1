"""The whole model with several hook points changed at once, and the metric read from it: any architecture, no engine.

For questions about more than one site and layer; what is about one of them is in `forward`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformer_lens.hook_points import HookPoint
from transformer_lens.model_bridge import TransformerBridge

from igap.components import Site, hook_name
from igap.engine.activations import ForwardPass, from_hook, hold, to_hook, written_hook
from igap.engine.decoder import keep
from igap.engine.metrics import Readout, by_question

Change = Callable[[Tensor], Tensor | None]
"""A hook point's activation to what it becomes; None leaves it as it is."""

SiteFunction = Callable[[Float[Tensor, "pair row pos *component"]], Float[Tensor, "question row"]]
"""Activations of a site at the positions from f on to F. Differentiable. A question is a pair and a metric, pair by
pair; with one metric they are the pairs."""
EmbeddingFunction = Callable[[Float[Tensor, "pair row pos d_model"]], Mapping[tuple[Site, int], Tensor]]
"""Changes of the tokens' embeddings from f on to activations there by site and layer, each `[pair, row, pos,
component, ...]`. Differentiable."""
PatchFunction = Callable[[Tensor], Float[Tensor, "question row"]]
"""Indices of components to F with each of them, alone, replaced: one row a component."""
SiteChanges = Mapping[tuple[Site, int], Callable[[Tensor], Tensor]]
"""By site and layer, the activation there, `[pair, row, pos, component, ...]` at the last positions (at least one), to
what it becomes."""
Gradients = Iterator[tuple[int, int | None, Float[Tensor, "question pos *component"]]]
"""A layer, the layer whose output to the residual stream passes no gradient on, or None, and dF/da there."""
RowGradients = Iterator[
    tuple[int, Float[Tensor, "pair row pos *component"], Float[Tensor, "question row pos *component"]]
]
"""A layer, the site's activation in it, and dF/da there."""

WRITERS = ("attn.hook_out", "mlp.hook_out")
"""The hook points of a block that give what it adds to the residual stream."""


@contextmanager
def edit_hooks(model: TransformerBridge, changes: Mapping[str, Change]) -> Iterator[None]:
    """A block in which each named hook point gives what its change makes of it; other hooks stay as they are.

    Two names of one hook point, or a name that the model lacks, are a mistake of the caller: KeyError, AssertionError.
    """
    there = model.hook_dict  # made anew each time
    points = {name: there[name] for name in changes}
    assert len({id(point) for point in points.values()}) == len(points)
    with ExitStack() as stack:
        for name, change in changes.items():
            stack.enter_context(_edit_hook(points[name], change))
        yield


@contextmanager
def _edit_hook(point: HookPoint, change: Change) -> Iterator[None]:
    handle = point.add_hook(lambda activation, hook: change(activation))  # noqa: ARG005 - TransformerLens passes `hook`
    try:
        yield
    finally:
        handle.hook.remove()
        point.fwd_hooks.remove(handle)


def metric(
    model: TransformerBridge, tokens: Int[Tensor, "pair row pos"], readout: Readout
) -> Float[Tensor, "question row"]:
    """F of every row. Differentiable.

    The model sees rows as one batch, pair by pair: `[pair * row, pos]`.
    """
    n_read = readout.n_read
    logits = model(tokens.flatten(0, 1), logits_to_keep=n_read)[:, -n_read:].unflatten(0, tokens.shape[:2])
    return readout(logits)


def slopes_of(
    values: Float[Tensor, "question *row"], n_metrics: int, inputs: Sequence[Tensor], *, again: bool = False
) -> list[list[Tensor]]:
    """The gradient of the sum of F by each metric with respect to each input; `again` where others will be taken."""
    totals = values.unflatten(0, (-1, n_metrics)).transpose(0, 1).flatten(1).sum(1)
    return [
        list(torch.autograd.grad(total, inputs, retain_graph=again or left > 0, materialize_grads=True))
        for left, total in zip(reversed(range(n_metrics)), totals, strict=True)
    ]


@contextmanager
def edit_sites(
    model: TransformerBridge, changes: Mapping[tuple[Site, int], Callable[[Tensor], Tensor]]
) -> Iterator[None]:
    """A block in which sites, by layer, are what their changes make of them: `[row, pos, component, ...]` to the same.

    Each change gets what the changes before it in the model give.
    """
    streams: dict[int, Tensor] = {}

    def note(layer: int, stream: Tensor) -> None:
        streams[layer] = stream

    def edit(site: Site, layer: int, change: Callable[[Tensor], Tensor], activation: Tensor) -> Tensor:
        if site != "resid_mid":
            return to_hook(site, change(from_hook(site, activation)))
        # See `written_hook`: of what lies there, attention's part is what can be changed.
        return to_hook(site, change(from_hook(site, activation + streams[layer]))) - streams[layer]

    points = model.hook_dict if changes else {}  # made anew each time
    with ExitStack() as stack:
        # Hooks of one point run in the order they come in: resid_mid after attn_out, its stream after resid_pre.
        for site, layer in sorted(changes, key=lambda at: at[0] == "resid_mid"):
            if site == "resid_mid":
                stack.enter_context(_edit_hook(points[hook_name("resid_pre", layer)], partial(note, layer)))
            change = partial(edit, site, layer, changes[site, layer])
            stack.enter_context(_edit_hook(points[written_hook(site, layer)], change))
        yield


def one_of(function: SiteFunction, start: Float[Tensor, "pair 1 pos *component"], index: int) -> SiteFunction:
    """F as a function of one component's activation `[pair, row, pos, ...]`, the others being as in `start`."""

    def of_rows(rows: Tensor) -> Tensor:
        whole = start.expand(-1, rows.shape[1], *start.shape[2:])
        before, after = whole[:, :, :, :index], whole[:, :, :, index + 1 :]
        return function(torch.cat([before, rows[:, :, :, None], after], 3))

    return of_rows


def swap_components(start: Tensor, end: Tensor, components: Tensor) -> Float[Tensor, "pair row pos *component"]:
    """One row a component: `start` `[pair, pos, component, ...]` with that component, at all positions, from `end`."""
    rows = start[:, None].repeat(1, len(components), *[1] * (start.ndim - 1))
    index = torch.arange(len(components), device=start.device)
    rows[:, index, :, components] = end[:, :, components].movedim(2, 0)
    return rows


def pad_front(x: Tensor, n: int) -> Tensor:
    """`[pair, row, pos, ...]` of the last positions, as of the last n: 0 where there were none."""
    missing = n - x.shape[2]
    return torch.cat([x.new_zeros(*x.shape[:2], missing, *x.shape[3:]), x], 2) if missing else x


class Hooks:
    """The whole model, with the site replaced by a hook: any architecture, slowly."""

    def __init__(self, model: TransformerBridge, readout: Readout, base: ForwardPass, first: int) -> None:
        """`base` is the run of the pairs that the site is changed in, `first` the position it changes from."""
        self._model, self._readout, self._base, self._first = model, readout, base, first

    def function(self, site: Site, layer: int) -> SiteFunction:
        """F as a function of this site's activation in this layer."""
        before = self._base.activations[site][layer][:, None, : self._first]

        def of_rows(rows: Tensor) -> Tensor:
            n_rows = rows.shape[1]
            whole = torch.cat([before.expand(-1, n_rows, *before.shape[2:]), rows], 2).flatten(0, 1)
            tokens = self._base.tokens[:, None].expand(-1, n_rows, -1)
            with self._edit({(site, layer): lambda _: whole}):
                return metric(self._model, tokens, self._readout)

        return of_rows

    def _edit(self, changes: SiteChanges) -> AbstractContextManager[None]:
        """A block in which sites `[pair * row, pos, ...]` change, and what the run holds is as it is in it."""

        def change(site: Site, layer: int, activation: Tensor) -> Tensor:
            changed = changes.get((site, layer), keep)(activation)
            rows = changed.unflatten(0, (len(self._base.tokens), -1))
            return hold(self._base, site, layer, rows).flatten(0, 1)

        return edit_sites(self._model, {place: partial(change, *place) for place in {**changes, **self._base.held}})

    def patches(self, site: Site, layer: int, start: Tensor, end: Tensor) -> PatchFunction:
        """F with single components moved from `start` to `end`, each `[pair, pos, ...]`."""
        function = self.function(site, layer)
        return lambda components: function(swap_components(start, end, components))

    def single(self, site: Site, layer: int, index: int) -> SiteFunction:
        """F as a function of one component's activation `[pair, row, pos, ...]`, the others as they are in the run."""
        return one_of(self.function(site, layer), self._base.activations[site][layer][:, None, self._first :], index)

    def embedding_function(self, places: Sequence[tuple[Site, int]]) -> EmbeddingFunction:
        """The activations of these sites and layers as a function of the tokens' embeddings."""

        def activations(changes: Tensor) -> dict[tuple[Site, int], Tensor]:
            n_pairs, n_rows = changes.shape[:2]
            whole = functional.pad(changes, (0, 0, self._first, 0)).flatten(0, 1)
            tokens = self._base.tokens[:, None].expand(-1, n_rows, -1).flatten(0, 1)
            made: dict[tuple[Site, int], Tensor] = {}

            def note(place: tuple[Site, int], activation: Tensor) -> None:
                rows = from_hook(place[0], activation).unflatten(0, (n_pairs, n_rows))
                made[place] = rows[:, :, self._first :]

            hooks: dict[str, Change] = {hook_name(*place): partial(note, place) for place in places}
            with edit_hooks(self._model, {"hook_embed": lambda embedded: embedded + whole, **hooks}):
                self._model(tokens, logits_to_keep=1)
            return made

        return activations

    def with_changes(self, changes: SiteChanges, n_rows: int) -> Float[Tensor, "question row"]:
        """F with sites of any layers changed, each one's activations being what the changes before it give."""

        def edit(change: Callable[[Tensor], Tensor], activation: Tensor) -> Tensor:
            rows = activation.unflatten(0, (-1, n_rows))
            return torch.cat([rows[:, :, : self._first], change(rows[:, :, self._first :])], 2).flatten(0, 1)

        with self._edit({place: partial(edit, change) for place, change in changes.items()}):
            return metric(self._model, self._base.tokens[:, None].expand(-1, n_rows, -1), self._readout)

    def gradients(self, site: Site, *, dropping: bool = False) -> Gradients:
        """dF/da of the site as it is in the run, in every layer, from `first` on.

        With `dropping` then also with the output of each later layer detached. To detach an earlier one changes
        nothing, and with the layer's own detached nothing is left.
        """
        layers = range(len(self._base.residual))
        leaves: dict[int, Tensor] = {}
        dropped: int | None = None

        def add_zeros(layer: int, activation: Tensor) -> Tensor:
            leaves[layer] = torch.zeros_like(activation).requires_grad_()
            return activation + leaves[layer]

        def drop(layer: int, written: Tensor) -> Tensor:
            if not written.requires_grad:
                return written
            written = written.view_as(written)
            written.register_hook(lambda gradient: torch.zeros_like(gradient) if layer == dropped else None)
            return written

        drops: dict[str, Change] = {
            f"blocks.{layer}.{writer}": partial(drop, layer) for layer in layers for writer in WRITERS if dropping
        }
        changes = {(site, layer): partial(add_zeros, layer) for layer in layers}
        with torch.enable_grad(), self._edit(changes), edit_hooks(self._model, drops):
            values = metric(self._model, self._base.tokens[:, None], self._readout)
        for dropped in (None, *layers[1:]) if dropping else (None,):
            below = layers[:dropped]
            wanted = [leaves[layer] for layer in below]
            by_metric = slopes_of(values, len(self._readout.metrics), wanted, again=dropping)
            for layer, *gradients in zip(below, *by_metric, strict=True):
                yield layer, dropped, by_question(gradients)[:, self._first :]

    def along(self, site: Site, inputs: Float[Tensor, "pair row pos d_model"]) -> RowGradients:
        """The site's activation and dF/da in every layer, where the first block reads these inputs from `first` on."""
        layers, n_rows = range(len(self._base.residual)), inputs.shape[1]
        before = self._base.residual[0][:, None, : self._first].expand(-1, n_rows, -1, -1)
        whole = torch.cat([before, inputs], 2).flatten(0, 1)[:, :, None]
        activations: dict[int, Tensor] = {}
        leaves: dict[int, Tensor] = {}

        def add_zeros(layer: int, activation: Tensor) -> Tensor:
            if (site, layer) == ("resid_pre", 0):
                activation = whole
            activations[layer] = activation.detach()
            leaves[layer] = torch.zeros_like(activation).requires_grad_()
            return activation + leaves[layer]

        changes: dict[tuple[Site, int], Callable[[Tensor], Tensor]] = {("resid_pre", 0): lambda _: whole}
        changes |= {(site, layer): partial(add_zeros, layer) for layer in layers}
        with torch.enable_grad(), self._edit(changes):
            tokens = self._base.tokens[:, None].expand(-1, n_rows, -1)
            values = metric(self._model, tokens, self._readout)
        by_metric = slopes_of(values, len(self._readout.metrics), [leaves[layer] for layer in layers])
        for layer, *gradients in zip(layers, *by_metric, strict=True):
            rows = [each.unflatten(0, (-1, n_rows))[:, :, self._first :] for each in (activations[layer], *gradients)]
            yield layer, rows[0], by_question(rows[1:])
