"""A forward pass of the model on one prompt of each pair: the activations of every site, and the metric.

`borrow` is how the model is borrowed: evaluation mode, no parameter gradients, and everything given back afterwards.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.components import PLACES, SITES, Site, hook_name
from igap.engine.token_sets import answers, logit_diff
from igap.errors import InputError
from igap.inputs.alignment import Partners
from igap.inputs.prompts import TokenPair
from igap.models.families import widths_of_model
from igap.storage.cache import Tensors, get_or_compute


class _Whole:
    """What a bridge needs; one may have been made without a tokenizer, or moved to the meta device."""

    def __contains__(self, model: TransformerBridge) -> bool:
        try:
            return model.tokenizer is not None and not any(each.is_meta for each in model.parameters())
        except AttributeError:  # of one that was never initialised
            return False

    def __repr__(self) -> str:
        return "with its weights and a tokenizer"


Model = Annotated[TransformerBridge, _Whole()]
"""The model that public functions take."""

Activations = Mapping[Site, tuple[Tensor, ...]]
"""One tensor a layer, by site."""


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """A forward pass on one prompt of each pair: what a patch starts from, and what it takes from."""

    tokens: Int[Tensor, "pair pos"]
    residual: tuple[Float[Tensor, "pair pos d_model"], ...]
    """The input of each block."""
    activations: Activations
    """`heads` `[pair, pos, head, d_head]`, always; `neurons` `[pair, pos, d_mlp]` and other sites if asked for."""
    logit_diff: Float[Tensor, " pair"]
    """logit[answer] - logit[distractor] at the last position, in logits; of sets the difference of their means. NaN
    where an answer or distractor is several tokens."""
    logits: Float[Tensor, "pair read vocab"] | None = None
    """Those of the positions that F is read at, the last ones, if asked for."""
    held: Mapping[tuple[Site, int], tuple[int, ...]] = field(default_factory=dict)
    """By site and layer, components that keep this pass's activation whatever changes before them."""
    held_where: Bool[Tensor, "pair pos"] | None = None
    """The positions at which they do; None: all."""

    def select(self, few: Sequence[int]) -> "ForwardPass":
        """The forward pass on these pairs alone."""
        index = list(few)
        return replace(
            self,
            tokens=self.tokens[index],
            residual=tuple(stream[index] for stream in self.residual),
            activations={site: tuple(a[index] for a in layers) for site, layers in self.activations.items()},
            logit_diff=self.logit_diff[index],
            logits=None if self.logits is None else self.logits[index],
            held_where=None if self.held_where is None else self.held_where[index],
        )


def from_hook(site: Site, activation: Tensor) -> Tensor:
    """What the hook point gives, with an axis of components: `[..., component, d]`, of neurons `[..., neuron]`."""
    return activation.unsqueeze(-2) if PLACES[site].is_vector else activation


def written_hook(site: Site, layer: int) -> str:
    """The hook point at which the site is read and changed.

    That of `resid_mid` is what attention writes, to which the block's input is added: TransformerLens' bridge has
    hook_resid_mid where the MLP reads the stream, and a new tensor there does not reach the stream beside the MLP.
    """
    return hook_name("attn_out" if site == "resid_mid" else site, layer)


def read_hooks(places: Iterable[tuple[Site, int]]) -> list[str]:
    """The hook points from which `from_cache` takes these sites, by site and layer."""
    names = ((written_hook(*at), *([hook_name("resid_pre", at[1])] if at[0] == "resid_mid" else [])) for at in places)
    return list(dict.fromkeys(itertools.chain(*names)))


def from_cache(cache: Mapping[str, Tensor], site: Site, layer: int) -> Tensor:
    """The site's activation `[..., component, d]`, of neurons `[..., neuron]`, from those of `read_hooks`."""
    activation = cache[written_hook(site, layer)]
    return from_hook(site, activation + cache[hook_name("resid_pre", layer)] if site == "resid_mid" else activation)


def to_hook(site: Site, activation: Tensor) -> Tensor:
    """The inverse of `from_hook`."""
    return activation.squeeze(-2) if PLACES[site].is_vector else activation


def hold(run: ForwardPass, site: Site, layer: int, activation: Tensor) -> Float[Tensor, "pair row pos *component"]:
    """The site's activation at the last positions, with the components that the run holds as they are in it."""
    indices = list(run.held.get((site, layer), ()))
    if not indices:
        return activation
    late = slice(-activation.shape[2], None)
    own = run.activations[site][layer][:, None, late, indices]
    if run.held_where is not None:
        where = run.held_where[:, None, late]
        own = torch.where(where.view(*where.shape, *[1] * (own.ndim - 3)), own, activation[:, :, :, indices])
    held = activation.clone()
    held[:, :, :, indices] = own
    return held


def realign(other: ForwardPass, base: ForwardPass, partners: Sequence[Partners]) -> Activations:
    """The activations of `other` at the positions of `base`, which keeps its own where a position has no partner."""
    if all(each == tuple(range(other.tokens.shape[1])) for each in partners):
        return other.activations
    device = base.tokens.device
    pair = torch.arange(len(partners), device=device)[:, None]
    index = torch.tensor([[j or 0 for j in each] for each in partners], device=device)
    matched = torch.tensor([[j is not None for j in each] for each in partners], device=device)

    def move(own: Tensor, others: Tensor) -> Tensor:
        return torch.where(matched.view(*matched.shape, *[1] * (own.ndim - 2)), others[pair, index], own)

    return {
        site: tuple(itertools.starmap(move, zip(layers, other.activations[site], strict=True)))
        for site, layers in base.activations.items()
    }


def first_difference(here: Activations, there: Activations) -> int:
    """First position at which any activation of any pair differs; the last one if none does."""
    differs = [
        (own != other).flatten(2).any(-1).any(0)
        for site in here
        for own, other in zip(here[site], there[site], strict=True)
    ]
    positions = torch.stack(differs).any(0).nonzero()
    return int(positions[0]) if len(positions) else len(differs[0]) - 1


def block_numbers(model: TransformerBridge) -> int:
    """Numbers that a position takes in a block at its fullest, but for attention: the residual stream and the MLP."""
    d_model = model.cfg.d_model
    return 10 * d_model + 4 * (widths_of_model(model)["neurons"] or 4 * d_model)


def compute_or_share(kind: str, inputs: Mapping[str, object], compute: Callable[[], Tensors], model: Any) -> Tensors:
    """As `get_or_compute`, but a model with hooks on it shares nothing: it is not the model of the other jobs."""
    return (
        compute()
        if any(point.fwd_hooks for point in model.hook_dict.values())
        else get_or_compute(kind, inputs, compute)
    )


@contextmanager
def borrow(model: TransformerBridge) -> Iterator[None]:
    """The model in evaluation mode without parameter gradients; modes and flags come back, also after an error."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    whole = (model, model.original_model)  # the latter is no submodule, but what runs
    training = [m for part in whole for m in part.modules() if m.training]
    try:
        for parameter in parameters:
            parameter.requires_grad_(False)
        for module in training:
            module.training = False
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def record(
    model: TransformerBridge,
    tokens: Int[Tensor, "pair pos"],
    pairs: Sequence[TokenPair],
    *,
    name: str,
    sites: Sequence[Site] = SITES,
    with_logits: bool = False,
) -> ForwardPass:
    """The forward pass on `tokens`, one prompt a pair, all of one length, with the activations of `sites`.

    Those of heads are kept in any case: what neurons add comes after them in a block. `with_logits` keeps the logits of
    every token. Raises InputError (naming `name`
    and the layer) on NaN or infinity, and on a model without the hook points.
    """
    layers = range(model.cfg.n_layers)
    residual = read_hooks(("resid_pre", layer) for layer in layers)
    asked = tuple(dict.fromkeys(("heads", *sites)))
    every = list(dict.fromkeys([*residual, *read_hooks(itertools.product(asked, layers))]))
    check_hooks(model, asked)
    answer, distractor = answers(pairs, tokens.device)
    n_read = pairs[0].n_read

    def compute() -> Mapping[str, Tensor]:
        # no_grad and not inference_mode: Integrated Gradients differentiates with respect to copies of these tensors.
        with torch.no_grad():
            logits, cache = model.run_with_cache(tokens, names_filter=every, logits_to_keep=n_read)
        if silent := [hook for hook in every if hook not in cache.cache_dict]:
            raise InputError(
                f"model: {model.cfg.model_name} has {silent[0]}, but its block gives no tensor there, wanted one. "
                "Use another site."
            )
        tensors = {hook: cache[hook] for hook in every}
        for hook, tensor in tensors.items():
            if tensor.shape[:2] != tokens.shape:
                raise InputError(
                    f"model: {model.cfg.model_name} gives {hook} as {list(tensor.shape)}, wanted one entry a prompt "
                    f"and position, {list(tokens.shape)} first. Use another site."
                )
        whole = {"logits": logits[:, -n_read:].squeeze(1)} if with_logits else {}
        last = logits[:, -1]
        if distractor is None or n_read > 1:
            return tensors | whole | {"logit_diff": last.new_full((len(last),), torch.nan)}
        return tensors | whole | {"logit_diff": logit_diff(last, answer, distractor)}

    words = {name: [pair.identity[name] for pair in pairs] for name in ("answer", "distractor")}
    inputs = {"tokens": tokens.tolist(), **words, "sites": list(asked), **({"logits": True} if with_logits else {})}
    if n_read > 1:
        inputs["n_read"] = n_read
    recorded = compute_or_share("run", inputs, compute, model)
    device = tokens.device
    run = ForwardPass(
        tokens=tokens,
        residual=tuple(recorded[hook].to(device) for hook in residual),
        activations={site: tuple(from_cache(recorded, site, layer).to(device) for layer in layers) for site in asked},
        logit_diff=recorded["logit_diff"].to(device),
        logits=recorded["logits"].to(device).view(len(tokens), n_read, -1) if with_logits else None,
    )
    _check_finite(run, name, compared=all(pair.has_logit_diff for pair in pairs))
    return run


def check_hooks(model: TransformerBridge, sites: Sequence[Site]) -> None:
    """Raises InputError on a model without the hook points of the sites, or of what a block reads."""
    layers, there = range(model.cfg.n_layers), model.hook_dict
    read = read_hooks(itertools.product(("resid_pre", *sites), layers))
    wanted = [*read, *itertools.starmap(hook_name, itertools.product(sites, layers))]
    missing = [hook for hook in wanted if hook not in there]
    if missing:
        remedy = ", or sites=heads where its attention is plain" if ".mlp." in missing[0] else ""
        if missing[0].endswith("resid_mid"):
            remedy = ", or attn_out: attention and MLP of these blocks read one input, with no stream between them"
        raise InputError(
            f"model: {model.cfg.model_name} has no {missing[0]}, wanted hooks of {' and '.join(sites)} in every block. "
            f"Use a decoder model with plain attention and MLP blocks{remedy}."
        )


def _check_finite(run: ForwardPass, name: str, *, compared: bool) -> None:
    stages = [
        (f"layer {layer} ({what})", tensor)
        for layer, tensors in enumerate(zip(run.residual, *run.activations.values(), strict=True))
        for what, tensor in zip(("block input", *run.activations), tensors, strict=True)
    ]
    if run.logits is not None or compared:
        stages.append(("the logits", run.logit_diff if run.logits is None else run.logits))
    for where, tensor in stages:
        if not tensor.isfinite().all():
            raise InputError(
                f"{name} run: got NaN or infinity in {where}, wanted finite activations. Check the checkpoint, or "
                "use model.dtype=float32."
            )
