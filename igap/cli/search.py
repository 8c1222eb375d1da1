"""`igap search`: studies for counterfactual prompts, in this process or with workers in a launcher's."""

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from igap.cli.compose import compose_multirun, compose_one, compose_searches
from igap.cli.settings import sweep_names
from igap.cli.texts import quote, quote_override
from igap.errors import InputError, did_you_mean

log = logging.getLogger("igap")

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from igap.cli.launchers import Launcher
    from igap.counterfactual.config import SearchConfig
    from igap.counterfactual.plan import PlannedStudy


@dataclass(frozen=True)
class Task:
    """The function that each process of a launcher calls: one worker of one study."""

    searches: "tuple[SearchConfig, ...]"
    threads: int | None

    def __call__(self, config: "DictConfig") -> None:  # noqa: ARG002 - the interface of Hydra's task functions
        """Adds trials to the study until it has as many as it should."""
        from hydra.core.hydra_config import HydraConfig

        from igap.counterfactual.workers import run_worker

        run_worker(self.searches[HydraConfig.get().job.num], self.threads)


def run_searches(arguments: Sequence[str], *, multirun: bool = False) -> int:
    """Does what is left of one search or several, and shows what they found.

    Args:
        arguments: the name of a file in sweeps/search/, if any, and overrides, as they were typed.
        multirun: whether an override may have several values.

    Returns:
        The exit code: 0 done, 1 something failed, 130 interrupted.

    Raises:
        InputError: before the first trial, on an invalid search.
    """
    studies, workers, launcher = _plan(arguments, multirun=multirun)

    from rich.console import Console

    from igap.cli.launch import one_round
    from igap.console import terminal_console
    from igap.counterfactual.runner import run_studies
    from igap.storage import atomic

    with atomic.without_empty_folders(study.folder for study in studies):  # of those that are refused
        interrupted, problem = False, ""
        if launcher is not None and len(workers) > len(studies):
            for study in studies:
                atomic.check_writable(study.folder)
            try:
                # What the workers leave undone the studies' own processes do.
                _, problem = one_round(Task(tuple(workers), launcher.threads), len(workers), launcher)
            except KeyboardInterrupt:
                interrupted = True
        defaults = compose_one([]).config if any(study.config.full_run for study in studies) else None
        typed = shlex.join(["igap", "search", *(["-m"] if multirun else []), *arguments])
        consoles = terminal_console(), Console(stderr=True)
        try:
            return run_studies(studies, defaults, typed, *consoles, interrupted=interrupted)
        except InputError as error:
            if not problem:
                raise
            log.error("%s", error)  # such as a server that went away while the workers searched
            return 1


def check_searches(arguments: Sequence[str], *, multirun: bool = False) -> None:
    """Shows what `run_searches` would do; computes nothing and writes nothing. Raises InputError as it does."""
    from igap.console import terminal_console
    from igap.counterfactual.plan import describe, describe_together

    studies, _, _ = _plan(arguments, multirun=multirun)
    together = studies[0].config.atlas == "shared"
    for line in [describe_together(studies)] if together else map(describe, studies):
        terminal_console().print(line, markup=False, soft_wrap=True)


def _plan(
    arguments: Sequence[str], *, multirun: bool
) -> "tuple[list[PlannedStudy], list[SearchConfig], Launcher | None]":
    """The studies, the config of every worker, and what starts them. Raises InputError as `run_searches` does."""
    searches, hydras = _compose(arguments, multirun=multirun)

    from igap.counterfactual.plan import plan_studies
    from igap.output.tracking import wandb_run

    wandb_run.check(searches[0].tracking)
    studies, workers = plan_studies(searches)
    return studies, workers, _launcher(studies, workers, hydras)


def _compose(arguments: Sequence[str], *, multirun: bool) -> "tuple[list[SearchConfig], list[str]]":
    """The searches, and the overrides that are Hydra's. Raises InputError on an unknown preset."""
    preset, overrides = None, list(arguments)
    if overrides and "=" not in overrides[0]:
        preset, *overrides = overrides
        presets = sweep_names("search")
        if preset in sweep_names():
            raise InputError(f"search: got {preset!r}, which is a sweep, wanted a search. Use igap sweep {preset}.")
        if preset not in presets:
            raise InputError(
                f"search: got {preset!r}, wanted one of {', '.join(presets)}, or KEY=VALUE."
                f"{did_you_mean(preset, presets)}"
            )
    if "ig.path=single" in overrides:
        raise InputError(
            "ig.path: got single, but on a path of its own a component's IG is its AP: use objective=ap. objective=ig "
            "is its share on the joint path."
        )
    overrides = [quote_override(override) for override in overrides]
    hydras = [text for text in overrides if text.lstrip("+~").startswith("hydra")]
    return compose_searches(overrides, preset, multirun=multirun), hydras


def _launcher(
    studies: "Sequence[PlannedStudy]", workers: "Sequence[SearchConfig]", hydras: list[str]
) -> "Launcher | None":
    """What starts the workers; None where there are none and nothing is asked of Hydra.

    Raises InputError on invalid settings of Hydra's, and on such that nothing would use.
    """
    if len(workers) == len(studies) and not hydras:
        return None

    from igap.cli.launchers import launcher_of

    launcher = launcher_of(*compose_multirun([f"output={quote(workers[0].output)}", "sweep=.workers", *hydras]))
    if len(workers) == len(studies) and not launcher.in_this_process:
        raise InputError(
            "hydra/launcher: got one, but it starts workers only, and no study has several. Add -m "
            "search.worker='range(4)', or leave it out."
        )
    return launcher
