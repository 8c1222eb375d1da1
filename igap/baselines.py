"""Baseline kinds: what a site's activation is moved to.

Each kind is one function from a Request to one activation a layer, for every site, shaped like the run around it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.datasets.ioi import generate_ioi
from igap.errors import InputError
from igap.prompts import TokenPair, encode_prompt
from igap.runs import Run, record
from igap.sites import SITES, Site, hook_name

BaselineKind = Literal["corrupted", "zero", "zero_input", "mean", "prompt"]
Activations = Mapping[Site, tuple[Tensor, ...]]


@dataclass(frozen=True)
class Baseline:
    """A baseline kind and what it needs."""

    kind: BaselineKind = "corrupted"
    prompt: str | None = None
    """The other prompt of kind `prompt`."""
    n: int = 100
    """How many reference prompts kind `mean` averages over."""
    seed: int = 0
    """Seed of those prompts."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"baseline: got {self.kind!r}, wanted one of {', '.join(KINDS)}.")
        if (self.kind == "prompt") != (self.prompt is not None):
            raise InputError(
                f"baseline.prompt: got {self.prompt!r} with baseline={self.kind}; baseline=prompt needs a text and no "
                "other kind takes one. Set baseline=prompt baseline.prompt='...'."
            )


@dataclass(frozen=True)
class Request:
    """What a baseline is made from."""

    model: TransformerBridge
    pair: TokenPair
    clean: Run
    corrupted: Run
    baseline: Baseline


def activations(request: Request) -> Activations:
    """a' of every site and layer, shaped like the clean run's. Raises ValueError when the kind cannot be had."""
    return KINDS[request.baseline.kind](request)


def _corrupted(request: Request) -> Activations:
    return request.corrupted.activations


def _zero(request: Request) -> Activations:
    return {site: tuple(map(torch.zeros_like, request.clean.activations[site])) for site in SITES}


def _zero_input(request: Request) -> Activations:
    """What the site gives when its layer's input is 0: nothing for heads, act(b_in) for neurons."""
    neurons = []
    for layer, block in enumerate(request.model.blocks):
        seen: list[Tensor] = []
        point = request.model.hook_dict[hook_name("neurons", layer)]
        handle = point.add_hook(lambda activation, hook, seen=seen: seen.append(activation))  # noqa: ARG005
        try:
            with torch.no_grad():
                block.mlp(block.ln2(torch.zeros_like(request.clean.residual[layer])))
        finally:
            handle.hook.remove()
            point.fwd_hooks.remove(handle)
        neurons.append(seen[0])
    return {"heads": _zero(request)["heads"], "neurons": tuple(neurons)}


def _mean(request: Request) -> Activations:
    prompts = reference_tokens(request)
    total: dict[Site, list[Tensor]] = {}
    for tokens in prompts:
        run = record(request.model, tokens, request.pair, name="reference")
        for site in SITES:
            if site not in total:
                total[site] = [torch.zeros_like(activation) for activation in run.activations[site]]
            for layer, activation in enumerate(run.activations[site]):
                total[site][layer] += activation
    return {site: tuple(activation / len(prompts) for activation in total[site]) for site in SITES}


def _prompt(request: Request) -> Activations:
    assert request.baseline.prompt is not None
    n_tokens = request.clean.tokens.shape[1]
    tokens = _encode(request, request.baseline.prompt)
    if tokens.shape[1] != n_tokens:
        raise InputError(
            f"baseline.prompt: got {tokens.shape[1]} tokens, prompts.clean has {n_tokens}; the two need one length. "
            "Reword it."
        )
    return record(request.model, tokens, request.pair, name="baseline.prompt").activations


def reference_tokens(request: Request) -> list[Tensor]:
    """`baseline.n` generated prompts `[1, pos]` of the clean prompt's token length.

    Raises ValueError when the generator has too few prompts of that length for this tokenizer.
    """
    wanted, n_tokens = request.baseline.n, request.clean.tokens.shape[1]
    found: list[Tensor] = []
    for example in generate_ioi(60 * wanted, request.baseline.seed):
        tokens = _encode(request, example.clean)
        if tokens.shape[1] == n_tokens:
            found.append(tokens)
        if len(found) == wanted:
            return found
    raise InputError(
        f"baseline.n: got {wanted}, found {len(found)} generated prompts of {n_tokens} tokens, the length of "
        "prompts.clean. Use a smaller baseline.n, a prompt of a generated shape, or baseline=corrupted."
    )


def _encode(request: Request, text: str) -> Tensor:
    cfg = request.model.cfg
    ids = encode_prompt(
        request.model.tokenizer,
        text,
        prepend_bos=bool(cfg.default_prepend_bos),
        item=f"baseline={request.baseline.kind}",
        n_ctx=cfg.n_ctx,
    )
    return torch.tensor([ids], device=request.clean.tokens.device)


KINDS: dict[BaselineKind, Callable[[Request], Activations]] = {
    "corrupted": _corrupted,
    "zero": _zero,
    "zero_input": _zero_input,
    "mean": _mean,
    "prompt": _prompt,
}
