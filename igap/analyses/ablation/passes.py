"""The ways to run a model with components ablated, to the same logits.

`RestartedPasses` runs each batch of prompts once and then, for each set of components, only what comes after the first
ablated layer; tokens that follow attend to keys and values that were kept. `HookedPasses` runs the whole model with
hooks, for every set and every token: any architecture. `choose_passes` decides.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.analyses.ablation.accuracy import N_GENERATED, Batch, Logits, whole_model
from igap.analyses.ablation.replacements import Place, Places, Values, record_places
from igap.components import Site, hook_name
from igap.engine.activations import ForwardPass, from_cache, read_hooks
from igap.engine.backend import choose_backend, rounding
from igap.engine.cached_forward import CachedForward, KeysValues
from igap.engine.decoder import Decoder, UnknownDecoderError, read
from igap.engine.hooks import edit_sites
from igap.engine.metrics import read_out

Where = Bool[Tensor, "prompt pos"] | None
"""The positions of each prompt at which components are replaced; None: all, and those of tokens that are added."""


class HookedPasses:
    """The whole model for every set of components and every token: any architecture, slowly."""

    def __init__(self, model: TransformerBridge, batch: Batch) -> None:
        """Nothing runs yet."""
        self._model, self._batch = model, batch

    def run_unablated(self) -> Logits:
        """The logits of the model itself."""
        return whole_model(self._model, self._batch)

    def run_ablated(self, places: Places, values: Values, where: Where = None) -> Logits:
        """The logits with these components replaced, at all positions, those that are added included, or at some."""
        tokens, n_tokens = self._batch.tokens, self._batch.tokens.shape[1]
        at_prompt = values(tokens[:, n_tokens:], places)
        while True:
            # Before any hook is there: values may run the model.
            is_added = tokens.shape[1] > n_tokens and where is None
            at_added = values(tokens[:, n_tokens:], places) if is_added else None
            changes = {}
            for place, indices in places.items():
                given = [at_prompt[place]] if at_added is None else [at_prompt[place], at_added[place]]
                changes[place] = partial(_put_by_part, indices, given, n_tokens, where)
            with edit_sites(self._model, changes):
                logits = self._model(tokens, logits_to_keep=1)[:, -1]
            yield logits
            tokens = torch.cat([tokens, logits.argmax(-1, keepdim=True)], 1)

    def record(self, tokens: Int[Tensor, "prompt pos"], places: Places) -> Values:
        """The activations of these components on other prompts, which grow by the tokens that are added."""
        n_tokens = tokens.shape[1]
        at_prompt = _columns(record_places(self._model, tokens, places), places)

        def values(added: Tensor, asked: Places) -> Mapping[Place, Tensor]:
            if not added.shape[1]:
                return _among(at_prompt, places, asked)
            grown = record_places(self._model, torch.cat([tokens, added], 1), asked)
            return {place: activation[:, n_tokens:] for place, activation in _columns(grown, asked).items()}

        return values


class RestartedPasses:
    """What comes after the first ablated layer, with the model's weights."""

    def __init__(
        self, model: TransformerBridge, decoder: Decoder, layers: Iterable[int], generate: bool, batch: Batch
    ) -> None:
        """Runs the whole model once. `layers` are those in which a set of components may begin."""
        self._model, self._batch, self._generate = model, batch, generate
        every = range(len(decoder.blocks))
        inputs = {layer: f"blocks.{layer}.hook_in" for layer in (every if generate else sorted({0, *layers}))}
        logits, cache = model.run_with_cache(
            batch.tokens,
            names_filter=[*inputs.values(), *(hook_name("heads", layer) for layer in {*layers})],
            logits_to_keep=1,
        )
        self._logits: Tensor = logits[:, -1]
        self._residual = {layer: cache[name] for layer, name in inputs.items()}
        self._z = {layer: cache[hook_name("heads", layer)] for layer in {*layers}}
        self._forward = CachedForward(decoder, self._residual[0], N_GENERATED - 1)
        self._kept = self._keys_values(self._residual, len(every) if generate else 0)
        self._embedded = (batch.tokens[:, :0], self._residual[0][:, :0])

    def run_unablated(self) -> Logits:
        """As HookedPasses."""
        return self._continue(self._logits, self._kept, {}, lambda _added, _places: {})

    def run_ablated(self, places: Places, values: Values, where: Where = None) -> Logits:
        """As HookedPasses."""
        first = min(layer for _, layer in places)
        at_prompt = values(self._batch.tokens[:, :0], places)
        restarted = self._forward.restart(
            first, self._residual[first], self._z[first], self._kept[: first + 1], _edits(places, at_prompt, where)
        )
        logits = self._forward.logits(restarted.last)
        return self._continue(logits, restarted.kept, places if where is None else {}, values)

    def record(self, tokens: Int[Tensor, "prompt pos"], places: Places) -> Values:
        """As HookedPasses."""
        n_kept = 1 + max(layer for _, layer in places) if self._generate else 0
        inputs = {layer: f"blocks.{layer}.hook_in" for layer in range(n_kept)}
        _, cache = self._model.run_with_cache(
            tokens, names_filter=[*inputs.values(), *read_hooks(places)], logits_to_keep=1
        )
        at_prompt = _columns({place: from_cache(cache.cache_dict, *place) for place in places}, places)
        kept = self._keys_values({layer: cache[name] for layer, name in inputs.items()}, n_kept)

        def values(added: Tensor, asked: Places) -> Mapping[Place, Tensor]:
            if not added.shape[1]:
                return _among(at_prompt, places, asked)
            recorded: dict[Place, Tensor] = {}

            def keep(place: Place, activation: Tensor) -> Tensor:
                recorded[place] = activation
                return activation

            up_to = 1 + max(layer for _, layer in asked)
            edits = {place: partial(keep, place) for place in asked}
            self._forward.extend(self._embed(added), kept[:up_to], edits)
            return _columns(recorded, asked)

        return values

    def _continue(self, logits: Tensor, kept: Sequence[KeysValues], places: Places, values: Values) -> Logits:
        """These logits, and those after each token that is greedily added."""
        added = self._batch.tokens[:, :0]
        while True:
            yield logits
            added = torch.cat([added, logits.argmax(-1, keepdim=True)], 1)
            embedded = self._embed(added)[:, -1:]
            edits = _edits(places, values(added, places)) if places else {}
            extended = self._forward.extend(embedded, kept, edits)
            logits, kept = self._forward.logits(extended.last), extended.kept

    def _keys_values(self, residual: Mapping[int, Tensor], n_layers: int) -> tuple[KeysValues, ...]:
        return tuple(self._forward.keys_values(layer, residual[layer]) for layer in range(n_layers))

    def _embed(self, added: Int[Tensor, "prompt new"]) -> Float[Tensor, "prompt new d_model"]:
        """What block 0 gets for the added tokens: by token and position, whatever the prompt."""
        known, embedded = self._embedded
        if known is not added:
            tokens = torch.cat([self._batch.tokens, added], 1)
            embedded = self._model(tokens, stop_at_layer=0)[:, self._batch.tokens.shape[1] :]
            self._embedded = (added, embedded)
        return embedded


Passes = HookedPasses | RestartedPasses
"""A batch of prompts on a model, whose components may be replaced."""


def choose_passes(
    model: TransformerBridge, batch: Batch, sets: Sequence[Places], generate: bool
) -> Callable[[Batch], Passes]:
    """The faster passes that are right for this model, tried on the first prompt of the batch."""
    decoder = _restartable_decoder(model, batch.select([0]), {site for places in sets for site, _ in places})
    if decoder is None:
        return partial(HookedPasses, model)
    layers = {min(layer for _, layer in places) for places in sets}
    return partial(RestartedPasses, model, decoder, layers, generate)


def _restartable_decoder(model: TransformerBridge, prompt: Batch, sites: Iterable[Site]) -> Decoder | None:
    """The weights that passes may be restarted with; None where they are not enough, see `choose_backend`.

    Tried beside it: that the weights give the logit of every token, which the greedy choice needs.
    """
    try:
        decoder = read(model)
    except UnknownDecoderError:
        return None
    n_layers = len(decoder.blocks)
    inputs = [f"blocks.{layer}.hook_in" for layer in range(n_layers)]
    heads, others = [hook_name("heads", layer) for layer in range(n_layers)], sorted({*sites} - {"heads"})
    asked = [*inputs, *heads, *read_hooks((site, 0) for site in others)]
    logits, cache = model.run_with_cache(prompt.tokens, names_filter=asked, logits_to_keep=1)
    answer = int(prompt.answer)
    distractor = (answer + 1) % logits.shape[-1] if prompt.distractor is None else int(prompt.distractor)
    activations: dict[Site, tuple[Tensor, ...]] = {"heads": tuple(cache[name] for name in heads)}
    activations |= {site: (from_cache(cache.cache_dict, site, 0),) for site in others}
    run = ForwardPass(
        tokens=prompt.tokens,
        residual=tuple(cache[name] for name in inputs),
        activations=activations,
        logit_diff=logits[:, -1, answer] - logits[:, -1, distractor],
    )
    pair = replace(prompt.pairs[0], distractors=(distractor,))
    zeros: dict[Site, Sequence[Tensor]] = {site: (torch.zeros_like(layers[0]),) for site, layers in activations.items()}
    if choose_backend(model, read_out([pair], prompt.tokens.device), run, zeros, 0).decoder is None:
        return None
    forward = CachedForward(decoder, run.residual[0])
    ours = forward.logits(forward.restart(0, run.residual[0], activations["heads"][0], (), {}).last)
    difference = (ours - logits[:, -1]).abs().max().item()
    return decoder if difference <= rounding(logits[:, -1]) else None


def _edits(
    places: Places, values: Mapping[Place, Tensor], where: Where = None
) -> Mapping[Place, Callable[[Tensor], Tensor]]:
    return {place: partial(_put, indices, values[place], where) for place, indices in places.items()}


def _put(indices: Sequence[int], given: Tensor, where: Where, activation: Tensor) -> Tensor:
    """The activation with these components replaced, at those of its positions, the prompt's last ones, that are asked
    for."""
    late, columns = slice(-activation.shape[1], None), list(indices)
    new = given[:, late].to(activation)
    if where is not None:
        own = activation[:, :, columns]
        new = torch.where(where[:, late].view(len(where), -1, *[1] * (own.ndim - 2)), new, own)
    ablated = activation.clone()
    ablated[:, :, columns] = new
    return ablated


def _put_by_part(
    indices: Sequence[int], given: Sequence[Tensor], n_tokens: int, where: Where, activation: Tensor
) -> Tensor:
    """The activation with these components replaced, first at the prompt's positions and then at those added."""
    prompt, added = activation.tensor_split([n_tokens], 1)
    if len(given) > 1:
        added = _put(indices, given[1], None, added)
    return torch.cat([_put(indices, given[0], where, prompt), added], 1)


def _columns(recorded: Mapping[Place, Tensor], places: Places) -> dict[Place, Tensor]:
    """The activations of these components alone."""
    return {place: recorded[place][:, :, list(indices)] for place, indices in places.items()}


def _among(columns: Mapping[Place, Tensor], places: Places, asked: Places) -> dict[Place, Tensor]:
    """The activations of some of the components `places`, whose columns these are."""
    return {
        place: columns[place][:, :, [places[place].index(index) for index in indices]]
        for place, indices in asked.items()
    }
