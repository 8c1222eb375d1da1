"""W&B's run of a finished run or search, made of what is in its folder: config, summary, tables, pictures, files."""

import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igap.config import RunConfig, TrackingConfig, parse
from igap.errors import InputError
from igap.output.tracking import places
from igap.output.tracking.places import MARK, LoggedRun, Mode
from igap.storage import tables
from igap.storage.atomic import write_text
from igap.storage.untrusted import check_file, read_json_object

if TYPE_CHECKING:
    import pandas as pd

_LARGEST = 8 * 2**30
"""Bytes of a file that W&B is given."""

SEARCH = "search_summary.json"
"""In the folder of a search."""

ATLAS = "atlas_summary.json"
"""In the folder of an atlas."""


@dataclass(frozen=True)
class _Kept:
    """What a folder holds for W&B."""

    summary: dict[str, Any]
    config: dict[str, Any]
    name: str
    group: str | None
    job_type: str
    tags: list[str]
    artifact: str
    """Its type, and the beginning of its name."""
    files: tuple[str, ...]
    """Files of the artifact, beside the tables."""
    steps: Sequence[Mapping[str, float | int]] = ()
    """Rows of W&B's history, before tables and pictures."""


def write(folder: Path, tracking: TrackingConfig, mode: Mode) -> LoggedRun:
    """Logs what the folder of a run or a search holds, in place of what an earlier try left there.

    Config, the summary under the same names, every CSV file as a table, plots as images, files as an artifact; of a
    search each trial as a step. Jobs of a sweep are a group of its name, unless `tracking.group` names another. Raises
    whatever W&B raises.
    """
    import wandb

    folder = folder.resolve()
    _check_files(folder)
    of = _of_atlas if (folder / ATLAS).exists() else _of_search if (folder / SEARCH).exists() else _of_run
    kept = of(folder)
    key = kept.summary["key"]
    (folder / MARK).unlink(missing_ok=True)
    for left in (*folder.glob(f"wandb/offline-run-*-{key}"), *folder.glob(f"wandb/run-*-{key}")):
        shutil.rmtree(left)  # a second run of one id in one folder would be uploaded as well
    settings = wandb.Settings(
        console="off",
        silent=True,
        init_timeout=tracking.timeout,
        x_disable_stats=True,
        disable_git=True,
        save_code=False,
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(places.no_cache())
        run = stack.enter_context(
            _open_run(
                project=tracking.project,
                entity=tracking.entity,
                id=key,
                group=tracking.group or kept.group,
                name=kept.name,
                job_type=kept.job_type,
                tags=kept.tags,
                mode=mode,
                dir=folder,
                config={**kept.config, "key": key},
                settings=settings,
            )
        )
        at = Path(run.dir).parent
        stack.enter_context(places.environment(WANDB_DATA_DIR=str(at)))  # read when a file is added to an artifact
        for row in kept.steps:
            run.log(dict(row))
        media: dict[str, Any] = {
            f"plots/{path.stem}": wandb.Image(str(path)) for path in sorted((folder / "plots").glob("*.png"))
        }
        names = [path.stem for path in sorted(folder.glob("*.csv"))]
        shown = {name: _table(tables.read_csv(folder / f"{name}.csv", tables.TEXTS)) for name in names}
        run.log({**media, **{f"tables/{name}": table for name, table in shown.items()}})
        artifact = wandb.Artifact(f"{kept.artifact}-{key}", type=kept.artifact)
        for name in (*kept.files, *(f"{name}.csv" for name in names)):
            artifact.add_file(str(folder / name))
        run.log_artifact(artifact)
        run.summary.update(kept.summary)
        place = str(at.relative_to(folder)) if mode == "offline" else str(run.url)
    logged = LoggedRun(mode, place)
    write_text(folder / MARK, json.dumps({"mode": logged.mode, "place": logged.place}) + "\n")
    return logged


def _table(frame: "pd.DataFrame") -> Any:
    """Return the frame as W&B's table: as `Table(dataframe=)` makes it, which looks every cell's column up."""
    import wandb

    cells = zip(*(frame[column].values for column in frame.columns), strict=True)
    return wandb.Table(columns=[*frame.columns], data=[list(row) for row in cells])


def _check_files(folder: Path) -> None:
    """Raises InputError on what W&B would wait for, or read without end, among the files that it is given."""
    for pattern in ("*.csv", "*.safetensors", "plots/*.png"):
        for path in sorted(folder.glob(pattern)):
            try:
                check_file(path, _LARGEST)
            except ValueError as error:
                raise InputError(f"{path.relative_to(folder)}: {error}") from None


@contextlib.contextmanager
def _open_run(**settings: Any) -> Iterator[Any]:
    """A run of W&B, finished at the end. After an error W&B starts anew next time: its process may be dead."""
    import wandb

    try:
        run = wandb.init(**settings)
        yield run
        run.finish()
        at = Path(run.dir).parent
        if run.offline:
            places.wait_until_written(at)
        elif refused := places.first_refusal(at / "logs"):
            raise RuntimeError(f"the server did not take all of it: {refused}")
    except BaseException:
        with contextlib.suppress(Exception):
            if wandb.run is not None:
                wandb.run.finish(exit_code=1)
        with contextlib.suppress(Exception, SystemExit):
            wandb.teardown()
        logger = logging.getLogger("wandb")
        for handler in [each for each in logger.handlers if isinstance(each, logging.FileHandler)]:
            logger.removeHandler(handler)  # of this run's log: the next one would fail where that is gone
            handler.close()
        raise


def _of_run(folder: Path) -> _Kept:
    config = parse(read_json_object(folder / "config.json"))
    sweep = folder.parent.name if (folder.parent / "sweep.json").exists() else None
    return _Kept(
        summary=read_json_object(folder / "summary.json"),
        config=config.model_dump(mode="json", exclude={"tracking"}),
        name=f"{sweep}/{folder.name}" if sweep else folder.name,
        group=sweep,
        job_type="sweep" if sweep else "run",
        tags=choices(config),
        artifact="attributions",
        files=("attributions.safetensors", "config.json", "summary.json"),
    )


def _of_search(folder: Path) -> _Kept:
    """A study: a step a trial, with its terms, whether it counts and the best first term so far."""
    import pandas as pd

    summary = read_json_object(folder / SEARCH)
    config = read_json_object(folder / "config.json")
    config.pop("tracking")
    terms = summary["objective"].split(",")
    trials = pd.read_csv(folder / "trials.csv")
    trials["best"] = trials[terms[0]].where(trials["counts"]).cummax()
    rows = trials[["trial", *terms, "best"]].to_dict("records")
    steps = [{str(name): value for name, value in row.items() if value == value} for row in rows]
    tags = [f"{name}={summary[name]}"[:64] for name in ("model", "head", "objective", "sign", "sampler")]
    several = folder.parent.name if (folder.parent / "scan.json").exists() else None
    return _Kept(
        summary=summary,
        config=config,
        name=folder.name,
        group=several,
        job_type="search",
        tags=tags,
        artifact="search",
        files=("config.json", SEARCH),
        steps=steps,
    )


def _of_atlas(folder: Path) -> _Kept:
    summary, config = (read_json_object(folder / name) for name in (ATLAS, "config.json"))
    config.pop("tracking")
    return _Kept(
        summary=summary,
        config=config,
        name=f"{folder.parent.name}/{folder.name}",
        group=folder.parent.name,
        job_type="atlas",
        tags=[f"model={summary['model']}"[:64]],
        artifact="atlas",
        files=("config.json", ATLAS, "atlas.html"),
    )


def choices(config: RunConfig) -> list[str]:
    """A run's tags: what was chosen of each group."""
    prompts = config.prompts
    source = f"{prompts.n} generated" if prompts.n is not None else prompts.file or prompts.clean or ""
    chosen = {
        "model": config.model.name,
        "prompts": source,
        "baseline": config.baseline.kind,
        "ig": f"{config.ig.method} {config.ig.path}",
        "ablation": config.ablation.kind,
        "direction": config.direction,
        "sites": config.sites,
        "metric": str(config.metric.function) if config.metric.name == "custom" else config.metric.name,
        "positions": config.positions.kind,
    }
    return [f"{name}={value}"[:64] for name, value in chosen.items()]
