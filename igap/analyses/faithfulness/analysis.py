"""The analysis `faithfulness`: deletion and insertion curves of every method's ranking."""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

import torch

from igap.analyses.base import Analysis, RunContext
from igap.analyses.faithfulness.curves import Ablation, Faithfulness, FaithfulnessCurves, curves_of
from igap.analyses.faithfulness.rankings import ranks, sets, sizes_of
from igap.attribution.maps import Progress
from igap.components import sites_named
from igap.config import RunConfig
from igap.engine.baselines import baseline_of
from igap.engine.site_sets import set_metrics
from igap.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class FaithfulnessAnalysis(Analysis[Faithfulness]):
    """Which method ranks components best; `faithfulness=` names the sites."""

    name = "faithfulness"
    any_metric = True
    any_positions = True

    def is_requested(self, config: RunConfig) -> bool:
        """Return whether `faithfulness` is another than none."""
        return config.faithfulness != "none"

    def run(self, context: RunContext, on_progress: Progress | None) -> Faithfulness:
        """Return the curves of the sites that the config asks for, under both ablations."""
        config = context.config
        ranked = []
        for site in sites_named(config.faithfulness):
            maps = context.maps[site]
            n = maps["ap"].effect.numel()
            ranked.append((site, n, *sets(ranks(maps, config.direction, seed=config.seed), sizes_of(n))))
        jobs = [(*of_site, ablation) for of_site in ranked for ablation in get_args(Ablation)]
        costs = [len(context.pairs) * len(kept) for _, _, kept, _, _ in jobs]
        groups = []
        for (site, n, kept, index, ablation), before in zip(jobs, itertools.accumulate(costs, initial=0), strict=False):

            def advance(done: int, _: int, before: int = before) -> None:
                if on_progress:
                    on_progress(before + done, sum(costs))

            try:
                values = set_metrics(
                    context.opened,
                    {site: torch.from_numpy(kept).view(-1, *context.maps[site]["ap"].effect.shape)},
                    baseline=baseline_of(config.baseline, ablation),
                    positions=config.positions.value,
                    named_in=config.direction,
                    batch_size=config.batch_size,
                    memory_gib=config.memory_gib,
                    on_progress=advance,
                )
            except InputError as error:
                if ablation == "corrupted":
                    raise
                advance(len(context.pairs) * len(kept), 0)
                about: Any = {"reason": str(error), "positions": config.positions.kind}
                groups.append(FaithfulnessCurves(site, ablation, n, sizes_of(n), (), None, None, **about))
                continue
            groups.append(
                curves_of(
                    values.numpy(),
                    index,
                    site=site,
                    ablation=ablation,
                    sizes=sizes_of(n),
                    min_gap=config.prompts.min_gap,
                    is_logit_diff=config.metric.is_default,
                    seed=config.prompts.seed,
                    positions=config.positions.kind,
                )
            )
        return Faithfulness(tuple(groups))

    def figures(self, finding: Faithfulness, title: str) -> "Mapping[str, Figure]":
        """Draw `faithfulness_SITE`, a row an ablation."""
        from igap.analyses.faithfulness.plots import faithfulness_curves

        return {
            f"faithfulness_{site}": faithfulness_curves(groups, title=f"{site} of {title}")
            for site in dict.fromkeys(group.site for group in finding.groups)
            for groups in [[group for group in finding.groups if group.site == site]]
        }
