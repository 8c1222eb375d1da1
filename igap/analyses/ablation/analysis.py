"""The analysis `ablation`: accuracy on labelled prompts without the components that the run asks for."""

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from igap.analyses.ablation.ablate import ablate_kinds, check_distractors
from igap.analyses.ablation.accuracy import as_pair, encode_prompts
from igap.analyses.ablation.by_kind import AGAINST, AblationsByKind
from igap.analyses.ablation.replacements import check_donors, too_few_references
from igap.analyses.base import Analysis, RunContext
from igap.analyses.named_components import check_named, check_ranking, name_of, strongest
from igap.attribution.maps import Progress
from igap.components import is_component, parse_component
from igap.config import AblationConfig, RunConfig
from igap.engine.positions import find_spans
from igap.errors import InputError
from igap.inputs.labelled_prompts import Prompt, generate_prompts, read_prompts
from igap.models.load import Header

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DEFAULT_N = 500
"""Generated prompts where neither a number nor a file is given."""


class AblationAnalysis(Analysis[AblationsByKind]):
    """Accuracy without single components, all of them, random others; `ablation=KIND` asks for it."""

    name = "ablation"
    any_metric = True

    def is_requested(self, config: RunConfig) -> bool:
        """Return whether `ablation` is another than none."""
        return config.ablation.kind != "none"

    def misfit(self, config: RunConfig) -> str:
        """Return why not: positions that single prompts do not have, or heads that the run would choose by position."""
        kind, components = config.positions.kind, config.ablation.components
        if kind in ("each", "diff", "own"):
            return f"of prompts of its own, which have no such positions of the run's pairs, not of positions={kind}"
        if config.positions.has_axis and (components == "outliers" or "top" in components):
            return f"of heads chosen at positions that move together, not of positions={kind}; name components"
        return ""

    def check(self, config: RunConfig, header: Header) -> Mapping[str, str]:
        """Refuse components that the model does not have, and prompts that the tokenizer or the kinds cannot use.

        Returns:
            The hash of the prompts, which the config names by a file or a number.
        """
        if not self.is_requested(config):
            return {}
        settings = config.ablation
        if settings.components not in ("outliers", "top"):
            check_named(settings.components.split(), config, header, item="ablation.components")
        if settings.components == "top":
            check_ranking(settings.by, config, header, item="ablation.by", got=settings.by)
        n_heads = (header.n_layers or 0) * (header.n_heads or 0)
        is_given = settings.top != AblationConfig.model_fields["top"].default
        if settings.components == "top" and is_given and 0 < n_heads < settings.top:
            raise InputError(
                f"ablation.top: got {settings.top}, but the model has {n_heads} heads. Use fewer, or name some "
                "in ablation.components."
            )
        prompts = read_or_generate(settings, header.tokenizer, config.prompts.bos)
        check_distractors(prompts, config.metric.name)
        limits: Any = {"prepend_bos": header.prepends_bos, "n_ctx": header.n_ctx, "n_vocab": header.n_vocab}
        lengths = _token_lengths(tuple(prompts), header.tokenizer, item=settings.file or "ablation.n", **limits)
        kinds = {settings.kind, *settings.also}
        if "resample" in kinds:
            check_donors(lengths)
        if settings.reference_n > len(prompts) and kinds & {"mean", "mean_positional"}:
            raise too_few_references(settings.reference_n, len(prompts))
        _check_positions(config, prompts, header, **limits)
        texts = [[prompt.text, prompt.answer, prompt.distractor] for prompt in prompts]
        return {"ablation": hashlib.sha256(json.dumps(texts).encode()).hexdigest()}

    def run(self, context: RunContext, on_progress: Progress | None) -> AblationsByKind:
        """Return the ablations of every kind asked for."""
        settings = context.config.ablation
        names = list(select_components(context))
        ig, ap = (tuple(score for name in names for score in _scores(context, name, method)) for method in ("ig", "ap"))
        scores = dict(zip(AGAINST, (ig, ap, tuple(y - x for x, y in zip(ig, ap, strict=True))), strict=True))
        kinds = [kind for kind in dict.fromkeys((settings.kind, *settings.also)) if kind != "none"]
        by_kind = (
            ablate_kinds(
                context.model,
                read_or_generate(settings, context.model.tokenizer, context.config.prompts.bos),
                names,
                kinds,
                positions=context.config.positions.value,
                metric=context.opened.metrics[0],
                reference_n=settings.reference_n,
                seed=settings.seed,
                controls=settings.controls,
                generate=settings.generate,
                batch_size=context.config.batch_size,
                memory_gib=context.config.memory_gib,
                on_progress=on_progress,
            )
            if names
            else {}
        )
        unit = next(iter(context.comparisons.values())).unit
        return AblationsByKind(by_kind, scores, unit, context.config.model.processing)

    def figures(self, finding: AblationsByKind, title: str) -> "Mapping[str, Figure]":
        """Draw, of each kind, `ablation_KIND`, the accuracy, and `ablation_KIND_scatter`, its change against scores."""
        from igap.analyses.ablation.plots import accuracy_bars, change_scatter

        drawn = {}
        for kind, ablations in finding.kinds.items():
            heading = f"{kind} ablation, {finding.processing} weights, of {title}"
            drawn[f"ablation_{kind}"] = accuracy_bars(ablations, title=heading)
            drawn[f"ablation_{kind}_scatter"] = change_scatter(finding, kind, title=heading)
        return drawn


def read_or_generate(settings: AblationConfig, tokenizer: Any, bos: str) -> list[Prompt]:
    """Return the prompts that accuracy is measured on, of the file or generated.

    Raises:
        InputError: The file holds fewer than `ablation.n`, or none could be generated.
    """
    prompts = (
        list(_generate_once(settings.n or DEFAULT_N, settings.seed, tokenizer, bos))
        if settings.file is None
        else [replace(prompt, bos=bos) for prompt in read_prompts(settings.file)]
    )
    if not prompts:
        raise InputError(
            f"ablation.n: got {settings.n}, wanted more: no two of so few generated prompts have one token length. Try "
            "ablation.n=100."
        )
    if settings.file is not None and settings.n is not None and settings.n > len(prompts):
        raise InputError(
            f"ablation.n: got {settings.n}, but {settings.file} holds {len(prompts)} prompts. Use fewer, or "
            "leave ablation.n out to take all."
        )
    return prompts[: settings.n]


@functools.lru_cache(maxsize=8)
def _generate_once(n: int, seed: int, tokenizer: Any, bos: str) -> tuple[Prompt, ...]:
    """As `generate_prompts`, once for the jobs of a process, whose tokenizer igap loaded and nobody changes."""
    return tuple(replace(prompt, bos=bos) for prompt in generate_prompts(n, seed, tokenizer))


@functools.lru_cache(maxsize=8)
def _token_lengths(prompts: tuple[Prompt, ...], tokenizer: Any, *, item: str, **limits: Any) -> tuple[int, ...]:
    """Tokens of each prompt, once for the jobs of a plan. Raises InputError as `encode_prompts` does."""
    return tuple(len(prompt.ids) for prompt in encode_prompts(prompts, tokenizer, item=item, **limits))


def select_components(context: RunContext) -> Sequence[str]:
    """Return the names of the components to ablate: the outlier heads, the top heads of a method, or those named."""
    settings = context.config.ablation
    if settings.components == "outliers":
        return context.outliers("heads")
    if settings.components == "top":
        return strongest(context.maps["heads"][settings.by], settings.top)
    return [name_of(text, context.maps) for text in settings.components.split()]


def _scores(context: RunContext, name: str, method: str) -> list[float]:
    """Return what a map says of a component, once a span; of a set it says nothing: NaN."""
    site, layer, index = parse_component(name) if is_component(name) else ("heads", 0, 0)
    values = context.values(site if is_component(name) else next(iter(context.maps)), method)[layer, ..., index]
    return [float(value) if is_component(name) else math.nan for value in values.ravel()]


def _check_positions(config: RunConfig, prompts: Sequence[Prompt], header: Header, **limits: Any) -> None:
    """Raise InputError on prompts without the positions, words or roles that the run is about."""
    positions = config.positions.value
    if positions in ("all", "last"):
        return
    words = functools.cache(lambda token: str(header.tokenizer.decode([token])))
    item = config.ablation.file or "ablation.n"
    for number, prompt in enumerate(encode_prompts(prompts, header.tokenizer, item=item, **limits), start=1):
        try:
            find_spans(positions, [as_pair(prompt, words)], "noising")
        except InputError as error:
            raise InputError(f"{item}, prompt {number}: {error}") from None
