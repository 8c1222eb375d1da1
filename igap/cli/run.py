"""One job: composed, checked, then through Hydra: computed, written, logged to W&B. `igap run` shows it as well."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from igap.cli.compose import compose_multirun, compose_one, open_hydra, parse_config, search_path
from igap.errors import InputError, one_line

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from igap.cli.multirun import MultirunRequest
    from igap.config import RunConfig
    from igap.pipeline import Result, Stage

log = logging.getLogger("igap")
Done = TypeVar("Done")


def run_job(request: "MultirunRequest") -> int:
    """One run, in a folder of its own.

    Args:
        request: overrides without several values.

    Returns:
        The exit code: 0 done, 1 where something failed, 2 where the model refused the input.

    Raises:
        InputError: on all that can be refused before the model loads.
    """
    return _through_hydra(request, _do)


def execute(overrides: Sequence[str], stage: "Stage") -> Path:
    """One run from Python: nothing is shown, and logging and working folder stay as they are.

    Args:
        overrides: as Hydra takes them, their texts quoted.
        stage: shows the progress of a stage of work by its name.

    Returns:
        The run's folder.

    Raises:
        InputError: as the command line has it; an analysis or figure that fails does not raise.
    """
    from igap.cli.multirun import MultirunRequest
    from igap.output import disk
    from igap.output.tracking import wandb_run

    def do(composed: "DictConfig") -> Path | Exception:
        try:
            folder = _output_folder()
            with _log_file(folder):
                result = _compute(composed, folder, stage)
                disk.write(result, folder)
                for line in wandb_run.log_or_warn(folder, result.config.tracking):
                    log.info("%s", line)
        except Exception as error:  # Hydra would write a line of its own before it raises it
            return error
        return folder

    done = _through_hydra(MultirunRequest(tuple(overrides), single=True), do, configure_logging=False)
    if isinstance(done, Exception):
        raise done
    return done


def _through_hydra(
    request: "MultirunRequest", task: "Callable[[DictConfig], Done]", *, configure_logging: bool = True
) -> Done:
    """What a task makes of the composed config, in the folder that Hydra has made. Raises InputError before."""
    job = compose_one(request.overrides, request.config_name, request.config_dir)
    hydras = [text for text in request.overrides if text.lstrip("+~").startswith("hydra")]
    if hydras:
        compose_multirun(hydras, request.config_name, request.config_dir)  # refuses what Hydra cannot take
    _check(job.config, request.overrides)
    # Hydra's own main would read sys.argv, print what goes wrong and exit; this is the part of it that runs a job.
    with _hydra_refusals(), open_hydra() as hydra:
        overrides = [*search_path(request.config_dir), *request.overrides, "hydra.mode=RUN"]
        done: Done = hydra.run(request.config_name or "config", task, overrides, configure_logging).return_value
    return done


def show_config(
    request: "MultirunRequest",
    kind: str = "job",
    *,
    package: str | None = None,
    resolve: bool = False,
    info: str | None = None,
) -> None:
    """Prints the composed config of one run, or what Hydra says of how it is composed.

    Args:
        request: overrides without several values.
        kind: "job", "hydra" or "all".
        package: the part of the config that is printed, such as "ig"; None is all of it.
        resolve: whether interpolations are replaced by their values.
        info: in place of the config one of Hydra's own reports: "defaults", "searchpath", ...

    Raises:
        InputError: on an invalid config.
    """
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    name, overrides = request.config_name or "config", [*search_path(request.config_dir), *request.overrides]
    if info is None:
        compose_one(request.overrides, request.config_name, request.config_dir)
    with _hydra_refusals(), open_hydra() as hydra:
        if info is not None:
            hydra.show_info(info, name, overrides)
            return
        if package is not None:
            composed = hydra.get_sanitized_cfg(hydra.compose_config(name, overrides, RunMode.RUN), kind)
            if OmegaConf.select(composed, package) is None:  # where Hydra would exit
                raise InputError(
                    f"--package: got {package!r}, which --cfg {kind} does not have. Name a group, such as ig."
                )
        hydra.show_cfg(name, overrides, kind, package, resolve)


@contextmanager
def _hydra_refusals() -> Iterator[None]:
    """Raises what Hydra refuses while the block runs as InputError."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        yield
    except (HydraException, OmegaConfBaseException, OSError) as error:
        if isinstance(error, OSError) and error.filename is None:  # the output's, not a folder's
            raise
        raise InputError(f"hydra: {one_line(error)}") from error


def _check(config: "RunConfig", overrides: Sequence[str]) -> None:
    """Raises InputError on a job that the tokenizer, the device, W&B or the output folder refuses."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from igap.output import disk
    from igap.output.tracking import wandb_run
    from igap.storage import atomic
    from igap.sweep.worker import check

    for override in OverridesParser.create().parse_overrides(list(overrides)):
        if override.key_or_group == "hydra.run.dir":  # before Hydra writes its config over that of a finished run
            disk.check_unfinished(Path(str(override.value())))
    check(config)
    wandb_run.check(config.tracking)
    atomic.check_writable(Path(config.output))


def _output_folder() -> Path:
    """The folder that Hydra has made for the run in progress."""
    from hydra.core.hydra_config import HydraConfig

    return Path(HydraConfig.get().runtime.output_dir)


def _compute(composed: "DictConfig", folder: Path, stage: "Stage") -> "Result":
    """The result of one run. Raises InputError where the model or the folder refuses it."""
    from igap.output import disk
    from igap.sweep.worker import compute

    config = parse_config(composed)
    disk.prepare(folder)
    return compute(config, stage)


@contextmanager
def _log_file(folder: Path) -> Iterator[None]:
    """Igap's messages also go to igap.log in the folder while the block runs, as Hydra has it of a command."""
    handler = logging.FileHandler(folder / "igap.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] - %(message)s"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def _do(composed: "DictConfig") -> int:
    """Computes, writes, logs and shows one run, and gives the exit code. Never raises but on interruption.

    What was computed is shown, also where it cannot be written.
    """
    from rich.console import Console

    from igap.console import show_stage, terminal_console
    from igap.errors.failures import reason_of
    from igap.output import disk, terminal
    from igap.output.tracking import wandb_run
    from igap.storage.finished import failures_of

    folder = _output_folder()
    try:
        progress = Console(stderr=True)
        result = _compute(composed, folder, lambda name: show_stage(progress, name))
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
    for line in wandb_run.log_or_warn(folder, result.config.tracking):
        console.print(line, markup=False, soft_wrap=True)
    return 1 if failures else 0
