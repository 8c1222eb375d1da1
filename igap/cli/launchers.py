"""Hydra's launchers: which one a multirun's config names, and whether its settings can be used."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from igap.cli.compose import launcher_schemas
from igap.cli.texts import quote
from igap.engine.batching import most_processes
from igap.errors import InputError, short_repr

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from omegaconf import DictConfig

_COUNTS = ("cpus_per_task", "array_parallelism", "timeout_min", "tasks_per_node", "nodes")
"""Settings of launchers that are counts, from 1."""


@dataclass(frozen=True)
class Launcher:
    """How the processes are started."""

    config: "DictConfig"
    """The config of the multirun."""
    loader: "ConfigLoader"
    at_once: int
    """Jobs done side by side, as far as is known."""
    pack: int
    """Jobs that a process does one after the other, with the model loaded once."""
    threads: int | None
    """Threads of each process; None leaves them to torch."""

    @property
    def in_this_process(self) -> bool:
        """True if the jobs run here, one after the other."""
        return str(self.config.hydra.launcher._target_).endswith(".BasicLauncher")


def launcher_of(config: "DictConfig", loader: "ConfigLoader") -> Launcher:
    """The launcher of a multirun's config. Raises InputError on invalid settings."""
    from omegaconf import open_dict

    settings = config.hydra.launcher
    _check_target(config)
    with open_dict(config):
        pack = settings.pop("pack") if "pack" in settings else 1  # Hydra's basic launcher has no such key
        # All that the processes' own configs need of Hydra: where they may write. The launcher is this process's.
        place = quote(str(Path(str(config.hydra.sweep.dir)).resolve()))
        config.hydra.overrides.hydra = [f"hydra.sweep.dir={place}", "hydra/hydra_logging=none"]
    if type(pack) is not int or pack < 1:
        raise InputError(f"hydra.launcher.pack: got {pack!r}, wanted a whole number of jobs from 1. Try 4.")
    cores, at_once, threads = os.cpu_count() or 1, 1, None
    if "n_jobs" in settings:
        n_jobs, most = settings.n_jobs, most_processes()
        if type(n_jobs) is not int or not (-1_000_000 <= n_jobs <= most and n_jobs):
            raise InputError(
                f"hydra.launcher.n_jobs: got {short_repr(n_jobs)}, wanted a number of processes from 1 to {most}, four "
                "a core, or -1: one a core."
            )
        at_once = n_jobs if n_jobs > 0 else max(1, cores + 1 + n_jobs)
        threads = max(1, cores // at_once)
    elif "cpus_per_task" in settings:
        threads = settings.cpus_per_task
        at_once = settings.get("array_parallelism", 1)
    _check_settings(settings)
    return Launcher(config, loader, at_once, pack, threads)


def _check_settings(settings: "DictConfig") -> None:
    """Raises InputError on a setting that the launcher does not have, or of another type, and on a count below 1."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for name in _COUNTS:
        count = settings.get(name)
        if count is not None and (type(count) is not int or not 1 <= count <= 1_000_000):
            raise InputError(f"hydra.launcher.{name}: got {short_repr(count)}, wanted a whole number from 1. Try 1.")
    if (schema := launcher_schemas.get(str(settings._target_))) is not None:
        try:
            OmegaConf.merge(schema, settings)
        except OmegaConfBaseException as error:
            raise InputError(
                f"hydra.launcher.{error.full_key}: got {short_repr(OmegaConf.select(settings, str(error.full_key)))}, "
                f"which the launcher does not take ({str(error.msg).splitlines()[0]}). Leave it out, or correct it."
            ) from None


def _check_target(config: "DictConfig") -> None:
    """Raises InputError on a launcher that there is not, and on a sweeper: igap takes the combinations itself."""
    from hydra.core.plugins import Plugins
    from hydra.plugins.launcher import Launcher as HydraLauncher
    from omegaconf import OmegaConf

    targets = {}
    for name in ("launcher", "sweeper"):
        settings = OmegaConf.select(config, f"hydra.{name}")
        targets[name] = str(settings.get("_target_")) if OmegaConf.is_dict(settings) else str(settings)
    _check_extra(targets["launcher"])
    plugin = Plugins.instance().class_name_to_class.get(targets["launcher"])
    if plugin is None or not issubclass(plugin, HydraLauncher):
        raise InputError(
            f"hydra.launcher._target_: got {short_repr(targets['launcher'])}, wanted one of Hydra's launchers. Choose "
            "hydra/launcher=basic, joblib, submitit_local or submitit_slurm."
        )
    if not targets["sweeper"].endswith(".BasicSweeper"):
        raise InputError(
            f"hydra.sweeper._target_: got {short_repr(targets['sweeper'])}, but igap itself takes every combination "
            "and leaves no choice to a sweeper. Leave it out."
        )


def _check_extra(target: str) -> None:
    """Raises InputError on a launcher whose package is not installed."""
    import importlib.util

    for extra in ("joblib", "submitit"):
        module = f"hydra_plugins.hydra_{extra}_launcher"
        if target.startswith(module):
            try:
                spec = importlib.util.find_spec(module)
            except ModuleNotFoundError:  # no launcher at all is
                spec = None
            if spec is None:
                raise InputError(
                    f"hydra/launcher: got one of {extra}, whose package is not installed. "
                    f"pip install -e '.[{extra}]' -c constraints.txt, or hydra/launcher=basic."
                )
