"""Weights & Biases: a sink for what is already on disk. wandb is imported here only, and only when it is used."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from igap.config import RunConfig
from igap.errors import InputError

if TYPE_CHECKING:
    from igap.records import Summary

INIT_TIMEOUT = 20
"""Seconds that starting an online run may take."""


_TEXTS = dict.fromkeys(("name", "part", "components"), str)
"""Columns of components' names: read as a number, head 9.10 would be 9.1, another head."""


def check(config: RunConfig) -> None:
    """Raises InputError on online tracking without credentials, where W&B would stop a finished run to ask for them."""
    if config.tracking.mode == "online":
        import wandb

        if not wandb.login(prompt=False):
            raise InputError(
                "tracking: got online, but W&B has no key for this machine. Run wandb login, set WANDB_API_KEY, or use "
                "tracking=offline."
            )


def log(config: RunConfig, summary: "Summary", folder: Path, *, multirun: str | None = None) -> str | None:
    """Where W&B keeps the run (offline folder or address), None when disabled.

    Jobs of one `multirun` are a group of its name, unless `tracking.group` names another.

    Logs what the run's folder holds: config, summary under the same names, every CSV file as a table, plots as images,
    attributions as an artifact. Raises whatever W&B raises; the caller decides what a lost sink is worth.
    """
    if config.tracking.mode == "disabled":
        return None
    import pandas as pd
    import wandb

    settings = wandb.Settings(
        console="off", silent=True, init_timeout=INIT_TIMEOUT, x_disable_stats=True, disable_git=True, save_code=False
    )
    with wandb.init(
        project=config.tracking.project,
        entity=config.tracking.entity,
        group=config.tracking.group or multirun,
        name=f"{multirun}/{folder.name}" if multirun else folder.name,
        job_type="run",
        tags=[config.model.name[:64], f"baseline={config.baseline.kind}", f"ig.path={config.ig.path}"],
        mode=config.tracking.mode,
        dir=folder,
        config={**config.model_dump(mode="json", exclude={"tracking"}), "key": summary["key"]},
        settings=settings,
    ) as run:
        media: dict[str, Any] = {
            f"plots/{path.stem}": wandb.Image(str(path)) for path in sorted((folder / "plots").glob("*.png"))
        }
        names = [path.stem for path in sorted(folder.glob("*.csv"))]
        tables = {name: wandb.Table(dataframe=pd.read_csv(folder / f"{name}.csv", dtype=_TEXTS)) for name in names}
        run.log({**media, **{f"tables/{name}": table for name, table in tables.items()}})
        artifact = wandb.Artifact(f"attributions-{summary['key']}", type="attributions")
        for name in ("attributions.safetensors", *(f"{name}.csv" for name in names), "summary.json"):
            artifact.add_file(str(folder / name))
        run.log_artifact(artifact)
        run.summary.update(summary)
        return str(Path(run.dir).parent) if config.tracking.mode == "offline" else run.url
