"""`igap search [PRESET] [overrides]`: studies for counterfactual prompts."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from igap.cli.compose import compose_multirun, compose_one, compose_searches, data_folder
from igap.cli.texts import quote_text, quoted
from igap.errors import InputError, nearest

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from igap.cli.launch import Launcher
    from igap.counterfactual.config import SearchConfig
    from igap.counterfactual.plan import PlannedStudy

_USAGE = """\
usage: igap search [PRESET] [head=HEAD] [overrides]

Corrupted prompts for which a head's (9.6) or neuron's (L5.N1234) effect is as large as it gets, and how far to believe
it. Trials are kept in searches/HEAD-OBJECTIVE: the same command goes on where it was, also after a kill, and
search.until=N sets how many there are in the end.

  igap search head=1.2                                 the embedded model, the notebook's pair
  igap search search_mini                              a preset in sweeps/: search_mini, search_9_6, head_scan
  igap search head=9.6 model=gpt2-small objective=ig   the head's share on the joint path
  igap search head=0.6,1.2                             several heads, and what each does in the others' best prompts
  igap search head=1.2 search/space=relational         rules ("subject := IO") in place of words
  igap search head=1.2 search/space=substitute search.space.max_edits=2
  igap search head=1.2 objective=[ap,fluency]          the Pareto front of effect and fluency
  igap search head=1.2 'search.space.slots.verb=[gave,sold,lent]' search.until=600
  igap search head=1.2 search.workers=2                two processes on this machine
  igap search -m head=9.6 search.worker='range(8)' hydra/launcher=submitit_slurm search/storage=journal
  igap check search ...                                whether it can be; computes nothing

Exit codes: 0 done, 1 something failed, 2 bad input, 130 interrupted (with the report of what there is).

Keys and their defaults (groups: model, prompts, tracking, search/space, search/storage):

"""


@dataclass(frozen=True)
class Task:
    """What each process of a launcher calls: one worker of one study."""

    searches: "tuple[SearchConfig, ...]"
    threads: int | None

    def __call__(self, config: "DictConfig") -> None:  # noqa: ARG002 - the interface of Hydra's task functions
        """Adds trials to the study until it has as many as it should."""
        from hydra.core.hydra_config import HydraConfig

        from igap.counterfactual.workers import run_worker

        run_worker(self.searches[HydraConfig.get().job.num], self.threads)


def presets() -> list[str]:
    """The names of files in sweeps/ that are searches: they name a head."""
    return sorted(file.stem for file in data_folder("sweeps").glob("*.yaml") if is_preset(file.stem))


def is_preset(name: str) -> bool:
    """Whether sweeps/NAME.yaml is a search."""
    file = data_folder("sweeps") / f"{name}.yaml"
    return file.is_file() and any(line.startswith("head:") for line in file.read_text(encoding="utf-8").splitlines())


def main(arguments: list[str]) -> int:
    """The exit code of `igap search`."""
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(_USAGE + (data_folder("conf") / "search.yaml").read_text(encoding="utf-8"))
        return 0 if arguments else 2
    searches, hydra = _asked(arguments)

    from rich.console import Console

    from igap.cli.launch import one_round
    from igap.console import terminal_console
    from igap.counterfactual.plan import plan_studies
    from igap.counterfactual.runner import run_studies
    from igap.output.tracking import wandb_run

    wandb_run.check(searches[0].tracking)
    studies, workers = plan_studies(searches)
    launcher, interrupted = _launcher(studies, workers, hydra), False
    if len(workers) > len(studies):
        try:
            # What the workers leave undone the studies' own processes do.
            one_round(Task(tuple(workers), launcher.threads), len(workers), launcher)
        except KeyboardInterrupt:
            interrupted = True
    return run_studies(
        studies, compose_one([]).config, terminal_console(), Console(stderr=True), interrupted=interrupted
    )


def check(arguments: Sequence[str]) -> int:
    """The exit code of `igap check search`: says what the searches would be; computes nothing."""
    from igap.console import terminal_console
    from igap.counterfactual.plan import describe, plan_studies

    searches, hydra = _asked(arguments)
    studies, workers = plan_studies(searches)
    _launcher(studies, workers, hydra)
    for study in studies:
        terminal_console().print(describe(study), markup=False, soft_wrap=True)
    return 0


def _asked(arguments: Sequence[str]) -> "tuple[list[SearchConfig], list[str]]":
    """The searches, and the overrides that are Hydra's. Raises InputError on an unknown preset or option."""
    multirun = bool({"-m", "--multirun"} & set(arguments))
    rest = [argument for argument in arguments if argument not in ("-m", "--multirun")]
    options = [argument for argument in rest if argument.startswith("-")]
    if options:
        raise InputError(f"option: got {options[0]}, which igap search does not have. igap search --help lists keys.")
    preset = None
    if rest and "=" not in rest[0]:
        preset, *rest = rest
        if preset not in presets():
            raise InputError(
                f"search: got {preset!r}, wanted one of {', '.join(presets())}, or KEY=VALUE."
                f"{nearest(preset, presets())}"
            )
    if "ig.path=single" in rest:
        raise InputError(
            "ig.path: got single, but on a path of its own a component's IG is its AP: use objective=ap. objective=ig "
            "is its share on the joint path."
        )
    overrides = [quote_text(argument) for argument in rest]
    hydra = [text for text in overrides if text.lstrip("+~").startswith("hydra")]
    return compose_searches(overrides, preset, multirun=multirun), hydra


def _launcher(studies: "Sequence[PlannedStudy]", workers: "Sequence[SearchConfig]", hydra: list[str]) -> "Launcher":
    """What starts the workers. Raises InputError on settings of Hydra's that cannot be, or that nothing would use."""
    from igap.cli.launch import launcher_of

    found = launcher_of(*compose_multirun([f"output={quoted(workers[0].output)}", "sweep=.workers", *hydra]))
    if len(workers) == len(studies) and not found.in_this_process:
        raise InputError(
            "hydra/launcher: got one, but it starts workers only, and no study has several. Add -m "
            "search.worker='range(4)', or leave it out."
        )
    return found
