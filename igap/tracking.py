"""Weights & Biases: a sink for what is already on disk. wandb is imported here only, and only when it is used."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from igap.config import RunConfig

if TYPE_CHECKING:
    from igap.records import Summary

INIT_TIMEOUT = 20
"""Seconds that starting an online run may take."""


def log(config: RunConfig, summary: "Summary", folder: Path) -> str | None:
    """Where W&B keeps the run (offline folder or address), None when disabled.

    Logs what the run's folder holds: config, summary under the same names, head and neuron tables, plots as images,
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
        group=config.tracking.group,
        name=folder.name,
        job_type="run",
        tags=[config.model.name[:64], f"baseline={config.baseline.kind}", f"ig.path={config.ig.path}"],
        mode=config.tracking.mode,
        dir=folder,
        config={**config.model_dump(mode="json", exclude={"tracking"}), "key": config.key},
        settings=settings,
    ) as run:
        media: dict[str, Any] = {
            f"plots/{path.stem}": wandb.Image(str(path)) for path in sorted((folder / "plots").glob("*.png"))
        }
        tables = {name: wandb.Table(dataframe=pd.read_csv(folder / f"{name}.csv")) for name in ("heads", "neurons")}
        run.log({**media, **{f"tables/{name}": table for name, table in tables.items()}})
        artifact = wandb.Artifact(f"attributions-{config.key}", type="attributions")
        for name in ("attributions.safetensors", "heads.csv", "neurons.csv", "summary.json"):
            artifact.add_file(str(folder / name))
        run.log_artifact(artifact)
        run.summary.update(summary)
        return str(Path(run.dir).parent) if config.tracking.mode == "offline" else run.url
