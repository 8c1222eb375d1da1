"""The runs of the notebook's study, and the comparison of their results with its figures."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from igap import pipeline
from igap.analyses.base import complete
from igap.config import TEXTS, AblationConfig, RunConfig
from igap.errors.failures import collect_failure
from igap.models import cached
from igap.pipeline import Result, Stage, silent
from igap.replication.published import OUTLIERS, SECOND
from igap.replication.study import study


def configs(config: RunConfig) -> Mapping[str, RunConfig]:
    """The study's other runs, by folder name: the zero baseline, and the second pair with its own alignment.

    The notebook's zero baseline is 0 for a head's output and for the input of an MLP, which is `zero_input`.
    """
    second = {**dict(zip(TEXTS, SECOND, strict=True)), "align": "diff"}
    none = AblationConfig(seed=config.ablation.seed).model_dump()
    return {
        "zero-baseline": _change_config(config, {"baseline": {"kind": "zero_input"}, "ablation": none}),
        "second-pair": _change_config(config, {"prompts": second, "ablation": none}),
    }


def run(config: RunConfig, stage: Stage = silent, store: Path | None = None) -> Result:
    """Run the study: the run itself, its zero baseline, the second pair, and the comparison with the notebook.

    Returns:
        The result of the run itself, with the comparison among its findings and the other runs in `beside`. A run or
        comparison that fails is among `failures` and costs nothing else.

    Raises:
        InputError: As `pipeline.run`.
    """
    started, key = time.perf_counter(), pipeline.check(config).key
    if config.model.circuit == "ioi" and config.ablation.components == "outliers":
        # The published figures are about the notebook's outliers, whatever outliers this run has.
        config = _change_config(config, {"ablation": {"components": " ".join(OUTLIERS)}}, study=config.study)
    first = pipeline.run(config, stage, store)
    findings, failures, beside = dict(first.findings), dict(first.failures), {}
    for name, other in configs(config).items():
        with collect_failure(name, failures):
            beside[name] = pipeline.run(other, stage, store)
    if not failures.keys() & configs(config).keys():
        with collect_failure("notebook", failures), stage("notebook"):
            model = cached.run_model(config)
            findings["notebook"] = complete(study(model, first, beside["zero-baseline"], beside["second-pair"]))
    seconds = {**first.seconds, "total": time.perf_counter() - started}
    return replace(first, key=key, findings=findings, beside=beside, failures=failures, seconds=seconds)


def _change_config(
    config: RunConfig, groups: Mapping[str, Mapping[str, object]], study: str | None = None
) -> RunConfig:
    """The config with these keys of its groups replaced, and no study unless one is given."""
    changed = {name: getattr(config, name).model_copy(update=dict(values)) for name, values in groups.items()}
    return config.model_copy(update=changed | {"study": study})
