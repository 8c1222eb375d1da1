"""The exam on a trained model: every estimator against exact activation patching."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from igap.attribution.estimators import estimators
from igap.attribution.maps import Progress
from igap.bench.exam import Bench, attribute, estimate
from igap.bench.subject import Measured, OwnModel
from igap.components import PLACES, SITES, Site, component_names
from igap.config import RunConfig
from igap.engine.activations import Model
from igap.engine.batching import budget_bytes
from igap.engine.open_pairs import OpenPairs, open_pairs
from igap.errors import InputError
from igap.errors.arguments import Count, Positive, checks_arguments
from igap.inputs.prompts import PromptPair

TOP = 20
"""The components that count as those that matter, unless another number is asked for."""


def check_exam(config: RunConfig) -> None:
    """Raise InputError on settings of a run that the exam does not have."""
    for key, got, wanted, why in (
        ("direction", config.direction, "noising", "the exam patches in both directions"),
        ("positions", config.positions.kind, "all", "the exam is about whole components"),
        ("baseline", config.baseline.kind, "corrupted", "the exam asks IG with corrupted and with zero"),
        ("ap.top", str(config.ap.top or "null"), "null", "every effect is the truth of the exam"),
        ("methods", config.methods, "default", "the exam asks every method"),
        ("ablation", config.ablation.kind, "none", "the exam does not ablate"),
        ("faithfulness", config.faithfulness, "none", "the exam has no curves"),
        ("analyses", ",".join(config.analyses) or "none", "none", "the exam has none"),
    ):
        if got != wanted:
            raise InputError(f"{key}: got {got}, but {why}, wanted {wanted}. Leave {key} out.")


def examine_model(
    opened: OpenPairs,
    name: str,
    config: RunConfig,
    top: int,
    stage: Callable[[str], AbstractContextManager[Progress | None]],
) -> Bench:
    """The marks of every estimator on a model, with exact activation patching as the truth.

    Args:
        opened: the open prompt pairs, over which effects are means.
        name: of the model.
        config: the settings of the estimators but for the baseline.
        top: how many components matter.
        stage: opens a stage of the work by its name.
    """
    every, sites = estimators(), config.asked_sites
    configs = {
        each: config.model_copy(update={"baseline": estimator.config.baseline}) for each, estimator in every.items()
    }
    estimates = estimate(opened, every, configs, sites, lambda what, _: stage(what))
    denoising: dict[str, float] = {}
    for site in sites:
        with stage(f"ap {site} denoising") as progress:
            exact = attribute(opened, every["ap"], configs["ap"], site, progress, "denoising")
        names = component_names(site, *exact.effect.shape)
        denoising |= dict(zip(names, exact.effect.flatten().tolist(), strict=True))
    gap = 0.0
    for _, contrast in opened.contrasts():
        gap += float((contrast.value(contrast.clean) - contrast.value(contrast.corrupted)).sum()) / len(opened.pairs)
    truth = Measured(gap, estimates["ap"].effects, denoising, top)
    subject = OwnModel(name, opened.pairs, opened.metrics[0].unit, truth)
    return Bench({name: subject}, {name: estimates})


@checks_arguments
def bench_model(
    model: Model,
    pair: PromptPair | Sequence[PromptPair],
    *,
    sites: Sequence[Site] = SITES,
    top: Count = TOP,
    batch_size: Count | None = None,
    memory_gib: Positive | None = None,
    on_progress: Progress | None = None,
) -> Bench:
    """Every attribution method on a model of your own, and how near each comes to exact activation patching.

    Args:
        model: The model. Its exact patching, in both directions, has to be affordable.
        pair: The prompt pair, or several, over which effects are means.
        sites: The sites whose components are asked for, default heads and neurons.
        top: Components that count as those that matter: the largest |effect|, noising or denoising. Default 20.
        batch_size: Rows of a pass. None (default): what `memory_gib` holds.
        memory_gib: GiB of a pass beyond the model. None (default): 2, on a GPU half of what is free.
        on_progress: Called with (components done, components in all) of each method and site.

    Returns:
        The results: `marks` of each estimator, `to_frame()`. The circuit's name is "model".

    Raises:
        InputError: An invalid pair, a site that the model does not have, no site, or no pair.

    Example:
        >>> from igap import bench_model
        >>> bench = bench_model(model, pair, sites=["heads"], top=5)
        >>> marks = bench.marks("model", "atp")
        >>> marks.missed, marks.passes < bench.marks("model", "ap").passes
        ((), True)
    """
    if not sites:
        raise InputError(f"sites: got none, wanted names of {', '.join(PLACES)}. Leave it out for heads and neurons.")
    pairs = [pair] if isinstance(pair, PromptPair) else list(pair)
    device = torch.device(str(model.cfg.device))
    about: Any = {"sites": tuple(dict.fromkeys(sites)), "kept_bytes": budget_bytes(device, memory_gib)}
    settings = {"sites": " ".join(about["sites"]), "batch_size": batch_size, "memory_gib": memory_gib}
    with open_pairs(model, pairs, **about) as opened:
        config = next(iter(estimators().values())).config.model_copy(update=settings)
        return examine_model(opened, "model", config, top, lambda _: nullcontext(on_progress))
