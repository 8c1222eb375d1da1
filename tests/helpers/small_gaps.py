"""A run as it is where the gap is too small for scores."""

import dataclasses

from igap.statistics.comparison import compare


def without_scores(result):
    """The result with prompts.min_gap above every gap: in its config, in every map, in the comparisons."""
    prompts = result.config.prompts.model_copy(update={"min_gap": 1e6})
    maps = {
        site: {name: _without_scores(each) for name, each in by_method.items()}
        for site, by_method in result.maps.items()
    }
    return dataclasses.replace(
        result,
        config=result.config.model_copy(update={"prompts": prompts}),
        maps=maps,
        comparisons={site: compare(maps[site]["ig"], maps[site]["ap"]) for site in maps},
    )


def _without_scores(attribution):
    pairs = tuple(_without_scores(each) for each in attribution.pairs)
    return dataclasses.replace(attribution, min_gap=1e6, pairs=pairs)
