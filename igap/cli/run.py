"""`igap run`, `igap sweep` and `igap check`: what their arguments ask for; one run through Hydra's own main."""

import logging
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from igap.cli.compose import compose_multirun, compose_one, data_folder, parse_config
from igap.cli.texts import quote_text
from igap.errors import InputError, one_line

if TYPE_CHECKING:
    from argparse import Namespace

    from omegaconf import DictConfig

    from igap.cli.multirun import Asked
    from igap.config import RunConfig

log = logging.getLogger("igap")

_CHECK_USAGE = """\
usage: igap check [overrides] | igap check -m KEY=A,B ... | igap check sweep NAME [overrides] | igap check search ...

Composes, validates and tokenises every job; says how many there are, which are done and how long the rest takes.
Nothing is computed and nothing is written. Exit code 2 when a job cannot be.
"""


def sweep(arguments: list[str]) -> int:
    """`igap sweep NAME [overrides]`: a multirun over the grid of sweeps/NAME.yaml."""
    from igap.cli import search
    from igap.cli.multirun import multirun, named, sweep_names

    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(
            "usage: igap sweep NAME [overrides]\n\nEvery combination of the grid in sweeps/NAME.yaml, in runs/NAME; "
            "overrides replace its keys.\nThe same command again does what is left. Launchers: "
            "hydra/launcher=joblib, submitit_local, submitit_slurm.\n\n"
            f"sweeps: {', '.join(sweep_names())} (in {data_folder('sweeps')})\n"
        )
        return 0 if arguments else 2
    if search.is_preset(arguments[0]):
        return search.main(arguments)
    return multirun(named(arguments))


def check(arguments: list[str]) -> int:
    """`igap check ...`: what a run, a multirun or a sweep would do."""
    from igap.cli import multirun, search

    if arguments[:1] in (["-h"], ["--help"]):
        sys.stdout.write(_CHECK_USAGE)
        return 0
    if arguments[:1] == ["search"]:
        return search.check(arguments[1:])
    if arguments[:1] == ["sweep"]:
        if not arguments[1:]:
            raise InputError(f"sweep: got no name, wanted one of {', '.join(multirun.sweep_names())}.")
        return multirun.check(multirun.named(arguments[1:]))
    arguments, parsed = _parsed(arguments[1:] if arguments[:1] == ["run"] else arguments)
    if not parsed.multirun:
        compose_one(parsed.overrides, parsed.config_name, parsed.config_dir)
    return multirun.check(_asked(parsed))


def main(arguments: list[str]) -> int:
    """`igap run [overrides]`: one run, or with -m every combination."""
    from igap.cli.multirun import multirun

    arguments, parsed = _parsed(arguments)
    if parsed.help:
        arguments = ["--help"]  # whatever else is asked: help must not fail
    elif not (parsed.hydra_help or parsed.info or parsed.shell_completion):
        if parsed.multirun and not parsed.cfg:
            return multirun(_asked(parsed))
        if not parsed.multirun:
            job = compose_one(parsed.overrides, parsed.config_name, parsed.config_dir)
            if own := [text for text in parsed.overrides if text.lstrip("+~").startswith("hydra")]:
                compose_multirun(own, parsed.config_name, parsed.config_dir)  # refuses what Hydra cannot take
            if not parsed.cfg:
                _check(job.config, parsed.overrides)
    return _hydra_main(arguments)


def _parsed(arguments: list[str]) -> "tuple[list[str], Namespace]":
    """The arguments with their texts quoted for Hydra, and what Hydra's parser makes of them."""
    from hydra._internal.utils import get_args_parser

    arguments = [quote_text(argument) for argument in arguments]
    arguments.sort(key=lambda argument: argument not in ("-m", "--multirun"))  # argparse takes it before overrides only
    parsed, unknown = get_args_parser().parse_known_args(arguments)
    unknown += ["--experimental-rerun"] if parsed.experimental_rerun else []
    if unknown:
        raise InputError(f"option: got {unknown[0]}, which igap run does not have. igap run --help lists what it has.")
    return arguments, parsed


def _asked(parsed: "Namespace") -> "Asked":
    from igap.cli.multirun import Asked

    single = not parsed.multirun
    return Asked(tuple(parsed.overrides), parsed.config_name, parsed.config_dir, single=single)


def _check(config: "RunConfig", overrides: list[str]) -> None:
    """Raises InputError on a job that the tokenizer, the device, W&B or the output folder refuses."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from igap import pipeline
    from igap.output import disk, figures
    from igap.output.tracking import wandb_run
    from igap.replication.jobs import configs
    from igap.storage import atomic

    for override in OverridesParser.create().parse_overrides(overrides):
        if override.key_or_group == "hydra.run.dir":  # before Hydra writes its config over that of a finished run
            disk.check_unfinished(Path(str(override.value())))
    pipeline.check(config)
    for other in configs(config).values() if config.study else ():
        pipeline.check(other)
    wandb_run.check(config.tracking)
    figures.chosen(config.plots)
    atomic.check_writable(Path(config.output))


@dataclass
class _End:
    """How the run ended; Hydra's main gives nothing back."""

    code: int = 0


def _hydra_main(arguments: list[str]) -> int:
    """The exit code of Hydra's own main: one run, or help, or a printed config."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    end = _End()

    def task(config: "DictConfig") -> None:
        end.code = _job(config)

    decorated = hydra.main(version_base="1.3", config_path=str(data_folder("conf")), config_name="config")(task)
    program, sys.argv = sys.argv, ["igap run", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what goes wrong, where it would print it and exit
    try:
        decorated()
    except (HydraException, OmegaConfBaseException, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:  # the output's, not a folder's
            raise
        raise InputError(f"hydra: {one_line(error)}") from error
    finally:
        sys.argv = program
    return end.code


def _job(config: "DictConfig") -> int:
    """The exit code of one run: compute, write to disk, log, show. Never raises but on interruption.

    What was computed is shown, also where it cannot be written.
    """
    from hydra.core.hydra_config import HydraConfig
    from rich.console import Console

    from igap import pipeline
    from igap.console import show_stage, terminal_console
    from igap.failures import reason_of
    from igap.output import disk, terminal
    from igap.output.tracking import wandb_run
    from igap.replication import jobs
    from igap.storage.finished import failures_of

    folder = Path(HydraConfig.get().runtime.output_dir)
    try:
        run = parse_config(config)
        disk.prepare(folder)
        progress = Console(stderr=True)
        work = jobs.run if run.study else pipeline.run
        result = work(run, lambda name: show_stage(progress, name))
    except InputError as error:
        log.error("%s", error)
        return 2
    except Exception:
        log.exception("the run in %s failed", folder)
        return 1
    console = terminal_console()
    try:
        failures = failures_of(disk.write(result, folder))
    except Exception as error:
        terminal.show(console, result)
        if not isinstance(error, OSError | InputError):
            log.exception("the run in %s was not written", folder)
        else:
            log.error("%s; what is above is not all written. Make room, or set output=FOLDER.", reason_of(error))
        return 1
    terminal.show(console, result, folder, failures)
    try:
        settled, said = wandb_run.decided(run.tracking)
        if said:
            console.print(said, markup=False)
        tracked = wandb_run.log(folder, settled)
    except Exception as error:
        log.warning("W&B did not take the run (%s: %s); everything is in %s", type(error).__name__, error, folder)
    else:
        console.print(f"W&B run: {tracked}" if tracked else "W&B: disabled", markup=False, soft_wrap=True)
    return 1 if failures else 0
