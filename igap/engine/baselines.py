"""Baseline kinds: what a site's activation is moved to.

Each kind is one function from a Request to one activation a layer, for every site, shaped like the run around it.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from igap.components import Site, hook_name
from igap.config import BaselineConfig
from igap.engine.activations import Activations, ForwardPass, compute_or_share, record
from igap.engine.hooks import edit_hooks
from igap.errors import InputError, short_repr
from igap.errors.arguments import Range, Seed, checks_arguments
from igap.inputs.ioi import ioi_stream
from igap.inputs.prompts import TokenPair, encode_prompt
from igap.inputs.tokenizing import leading_token
from igap.storage.cache import use_cache
from igap.vocabulary import BASELINE_SETTINGS, BaselineKind

_DRAWN = 300
"""Prompts drawn at most for each reference prompt."""

_TOKENS_A_PASS = 512
"""Reference prompts whose activations, at every site, are held at once."""


@checks_arguments
@dataclass(frozen=True)
class Baseline:
    """A baseline kind and its settings.

    Args:
        kind: What activations move to, default "corrupted"; see `igap.vocabulary.BaselineKind`.
        prompt: The other prompt of kind "prompt", which no other kind takes.
        n: Reference prompts that kind "mean" averages over, 1 to 100,000, default 100.
        seed: Seed of those prompts, default 0.
        prompts: The reference prompts of kind "mean" themselves, of the clean prompt's length in tokens; empty
            (default): generated ones.

    Raises:
        InputError: A prompt without kind "prompt", that kind without a prompt, or reference prompts of another kind.

    Example:
        >>> zero = integrated_gradients(model, pair, baseline=Baseline("zero"))
        >>> corrupted = integrated_gradients(model, pair, baseline="corrupted")
        >>> bool((zero.effect == corrupted.effect).all())
        False
    """

    kind: BaselineKind = "corrupted"
    prompt: str | None = None
    """The other prompt of kind `prompt`."""
    n: Annotated[int, Range(least=1, most=100_000)] = 100
    """How many reference prompts kind `mean` averages over."""
    seed: Seed = 0
    """Seed of those prompts."""
    prompts: tuple[str, ...] = ()
    """The reference prompts of kind `mean`; empty: generated ones."""

    def __post_init__(self) -> None:
        if self.prompts and self.kind != "mean":
            raise InputError(
                f"baseline.prompts: got {len(self.prompts)} reference prompts with baseline={self.kind}, wanted "
                "baseline=mean, which averages over them. Leave them out."
            )
        if (self.kind == "prompt") != (self.prompt is not None):
            raise InputError(
                f"baseline.prompt: got {short_repr(self.prompt)} with baseline={self.kind}; baseline=prompt needs a "
                "text and no other kind takes one. Set baseline=prompt baseline.prompt='...'."
            )


def baseline_of(asked: BaselineConfig, kind: BaselineKind | None = None) -> Baseline:
    """The config's baseline, or one of another kind; settings that the kind does not use have no say.

    So kinds can be swept with one prompt set for all, and baselines that are the same are equal and computed once.
    """
    kind = kind or asked.kind
    return Baseline(kind, **{name: getattr(asked, name) for name in BASELINE_SETTINGS.get(kind, ())})


@dataclass(frozen=True)
class Request:
    """What a baseline is made from."""

    model: TransformerBridge
    pairs: Sequence[TokenPair]
    """Pairs of one token length."""
    clean: ForwardPass
    corrupted: Activations
    """The corrupted run's activations, at the positions of the clean one."""
    baseline: Baseline


def activations(request: Request) -> Activations:
    """a' of every site and layer, shaped like the clean run's. Raises InputError where these pairs have no such one."""
    return KINDS[request.baseline.kind](request)


def _from_corrupted(request: Request) -> Activations:
    return request.corrupted


def _zero(request: Request) -> Activations:
    return {site: tuple(map(torch.zeros_like, layers)) for site, layers in request.clean.activations.items()}


def _zero_input(request: Request) -> Activations:
    """What the site gives when its layer's input is 0: nothing for heads, act(b_in) for neurons.

    The input is that of the norm before the MLP, whose bias counts: folded into b_in (processed) or not (raw).
    """
    zero, model, tokens = _zero(request), request.model, request.clean.tokens
    if "neurons" not in zero:
        return zero
    posts = [hook_name("neurons", layer) for layer in range(len(request.clean.residual))]
    zeros = torch.zeros_like(request.clean.residual[0])
    norms = _norms_before_mlp(model, tokens[:1], posts)
    with torch.no_grad(), edit_hooks(model, dict.fromkeys(norms, lambda _: zeros)):
        _, cache = model.run_with_cache(tokens, names_filter=posts, logits_to_keep=1)
    return {**zero, "neurons": tuple(cache[post] for post in posts)}


def _norms_before_mlp(model: TransformerBridge, tokens: Tensor, posts: Sequence[str]) -> list[str]:
    """The input of the norm that feeds each layer's MLP, by the order in which the model computes them.

    Blocks that run attention and MLP side by side may have one norm for both; where norms follow what they norm
    (GPT-1), that of attention feeds the MLP. Raises InputError on a model without one.
    """
    norms = [f"blocks.{layer}.{kind}.hook_in" for layer in range(len(posts)) for kind in ("ln1", "ln2")]
    order: list[str] = []
    there = model.hook_dict
    names = [name for name in (*norms, *posts) if name in there]
    with torch.no_grad(), edit_hooks(model, {name: partial(_note, order, name) for name in names}):
        model(tokens, logits_to_keep=1)
    feeding = []
    for layer, post in enumerate(posts):
        before = [name for name in norms[2 * layer : 2 * layer + 2] if name in order[: order.index(post)]]
        if not before:
            raise InputError(
                f"baseline: got zero_input, but {model.cfg.model_name} has no norm before its MLP whose input could "
                "be 0. Use baseline=zero."
            )
        feeding.append(before[-1])
    return feeding


def _note(order: list[str], name: str, activation: Tensor) -> None:  # noqa: ARG001 - the interface of a Change
    order.append(name)


def reference_runs(
    model: TransformerBridge, prompts: Int[Tensor, "prompt pos"], pair: TokenPair, sites: Sequence[Site]
) -> Iterator[ForwardPass]:
    """The runs on reference prompts, each with the pair's answer after it, a few at a time."""
    prompts = _append_answer(prompts, pair)
    for tokens in prompts.split(max(1, _TOKENS_A_PASS // prompts.shape[1])):
        yield record(model, tokens, [pair] * len(tokens), name="reference", sites=sites)


def _mean(request: Request) -> Activations:
    references = torch.cat(reference_tokens(request))
    sites, layers = tuple(request.clean.activations), range(len(request.clean.residual))
    device = request.clean.tokens.device

    def with_answer(pair: TokenPair) -> Activations:
        prompts = _append_answer(references, pair)

        def compute() -> Mapping[str, Tensor]:
            total: dict[str, Tensor] = {}
            with use_cache(None):  # of the prompts themselves nothing is needed again
                for run in reference_runs(request.model, references, pair, sites):
                    for site in sites:
                        for layer, activation in enumerate(run.activations[site]):
                            name, added = hook_name(site, layer), activation.sum(0, keepdim=True)
                            total[name] = total[name] + added if name in total else added
            return {name: activation / len(prompts) for name, activation in total.items()}

        means = compute_or_share("mean", {"tokens": prompts.tolist(), "sites": list(sites)}, compute, request.model)
        return {site: tuple(means[hook_name(site, layer)].to(device) for layer in layers) for site in sites}

    return _for_each_pair(request, with_answer)


def _prompt(request: Request) -> Activations:
    assert request.baseline.prompt is not None
    tokens = _encode(request, request.baseline.prompt)
    check_same_length(tokens[0].tolist(), request.pairs[0])
    sites = tuple(request.clean.activations)

    def with_answer(pair: TokenPair) -> Activations:
        return record(
            request.model, _append_answer(tokens, pair), [pair], name="baseline.prompt", sites=sites
        ).activations

    return _for_each_pair(request, with_answer)


def _append_answer(tokens: Tensor, pair: TokenPair) -> Tensor:
    """Prompts `[prompt, pos]`, and after each the tokens of the pair's answer that follow its own prompts."""
    return torch.cat([tokens, tokens.new_tensor(pair.forced).expand(len(tokens), -1)], 1) if pair.forced else tokens


def _for_each_pair(request: Request, with_answer: Callable[[TokenPair], Activations]) -> Activations:
    """The activations, `[1, pos, ...]`, that go with each pair's answer, as those of the pairs."""
    pairs = request.pairs
    made = {forced: with_answer(pair) for forced, pair in {pair.forced: pair for pair in reversed(pairs)}.items()}
    if len(made) == 1:
        (shared,) = made.values()
        return {site: tuple(a.expand(len(pairs), *a.shape[1:]) for a in layers) for site, layers in shared.items()}
    return {
        site: tuple(torch.cat([made[pair.forced][site][layer] for pair in pairs]) for layer in range(len(layers)))
        for site, layers in request.clean.activations.items()
    }


def check_same_length(ids: Sequence[int], pair: TokenPair) -> None:
    """Raises InputError when the baseline's prompt has another token length than the pair."""
    if len(ids) != pair.n_prompt:
        raise InputError(
            f"baseline.prompt: got {len(ids) - pair.n_leading} tokens, prompts.clean has "
            f"{pair.n_prompt - pair.n_leading} (without the token before every prompt); the two need one length. "
            "Reword it."
        )


def reference_tokens(request: Request) -> list[Tensor]:
    """Reference prompts `[1, pos]` of the clean prompt's token length. Raises as `reference_ids` does."""
    n_tokens, device = request.pairs[0].n_prompt, request.clean.tokens.device
    prompts = reference_ids(request.model.tokenizer, request.baseline, n_tokens, **_limits(request))
    return [torch.tensor([ids], device=device) for ids in prompts]


def reference_ids(
    tokenizer: Any, baseline: Baseline, n_tokens: int, *, first: int | None = None, **known: Any
) -> list[list[int]]:
    """Reference prompts of this token length: the baseline's own, or `baseline.n` generated ones, or the `first`.

    `known` is what `encode_prompt` takes. Raises InputError on an own one of another length, and when the
    generator has too few of that length for this tokenizer.
    """
    prompts: list[list[int]] = []
    for text in baseline.prompts:
        prompts.append(encode_prompt(tokenizer, text, item="baseline.prompts", **known))
        if len(prompts[-1]) != n_tokens:
            raise InputError(
                f"baseline.prompts: got {text!r} of {len(prompts[-1])} tokens, wanted {n_tokens} (the token before "
                "every prompt counted), the length of prompts.clean. Leave it out."
            )
    if prompts:
        return prompts
    wanted = min(baseline.n, first or baseline.n)
    for drawn, example in enumerate(itertools.islice(ioi_stream(baseline.seed), _DRAWN * baseline.n)):
        ids = encode_prompt(tokenizer, example.clean, item=f"baseline={baseline.kind}", **known)
        if len(ids) == n_tokens:
            prompts.append(ids)
        if len(prompts) == wanted:
            return prompts
        if drawn > 100 * _DRAWN and drawn > 3 * _DRAWN * len(prompts):  # many more would be needed than are drawn
            break
    lead = leading_token(tokenizer, known["bos"], prepend_bos=known["prepend_bos"])
    raise InputError(
        f"baseline.n: got {baseline.n}, found {len(prompts)} generated prompts of {n_tokens - (lead is not None)} "
        "tokens (without the token before every prompt), the length of prompts.clean. Use a smaller baseline.n, a "
        "prompt of a generated shape, or neither baseline=mean nor methods=expected_gradients."
    )


def _encode(request: Request, text: str) -> Tensor:
    ids = encode_prompt(request.model.tokenizer, text, item="baseline.prompt", **_limits(request))
    return torch.tensor([ids], device=request.clean.tokens.device)


def _limits(request: Request) -> dict[str, Any]:
    """What `encode_prompt` takes beside the text, from the model and the pairs."""
    cfg = request.model.cfg
    return {
        "prepend_bos": bool(cfg.default_prepend_bos),
        "bos": request.pairs[0].bos,
        "n_ctx": cfg.n_ctx,
        "n_vocab": cfg.d_vocab,
    }


KINDS: dict[BaselineKind, Callable[[Request], Activations]] = {
    "corrupted": _from_corrupted,
    "zero": _zero,
    "zero_input": _zero_input,
    "mean": _mean,
    "prompt": _prompt,
}
