"""The commands that take no overrides: status, plot, compare, sync, verify, workspace, store of what is on disk.

Each only parses; the work is done by a function that it imports when it runs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from igap.cli.parsing import Command, OneOf, Section, Setting

Function = TypeVar("Function", bound=Callable[..., Any])

_DIR = "DIR..."


def _folders(function: Function) -> Function:
    """Adds folders of runs."""
    return click.argument("folders", metavar=_DIR, nargs=-1, type=click.Path(path_type=Path))(function)


@click.command(
    cls=Command,
    short_help="How the jobs of a sweep and the trials of a search stand.",
    arguments=[(_DIR, "folders of sweeps and searches, or folders that hold such folders")],
    examples=[
        ("igap status runs/baselines --watch", "until nothing is left to do"),
        ("igap status searches", "every search: trials, best value, report"),
    ],
    needs_arguments=True,
)
@click.option("--watch", is_flag=True, help="Look again every 2 seconds until nothing is left to do.")
@_folders
def status(folders: tuple[Path, ...], watch: bool) -> int:
    """Shows how the jobs of each sweep and the trials of each search stand, from the disk alone.

    A job is done; stale (made by other versions of the code); running (host, process, since when); failed (why);
    planned. Of a search: its trials and how many were asked for, the best value so far, and what its report is of.
    """
    from igap.sweep.status import show_status

    return show_status(folders, watch=watch)


@click.command(
    cls=Command,
    short_help="The pictures of finished runs, drawn from their records: again, or for the first time.",
    arguments=[("RUN...", "folders of finished runs, or folders that hold such folders")],
    examples=[("igap plot runs --only 'heads_heatmap curves'", "two kinds of pictures of all runs")],
    needs_arguments=True,
)
@click.option(
    "--only",
    metavar="NAMES",
    default="all",
    help="Names with spaces between them, each of a picture or of an analysis (explain, curves, ablation, ...), all of "
    "whose pictures it stands for; default: all.",
)
@click.argument("folders", metavar="RUN...", nargs=-1, type=click.Path(path_type=Path))
def plot(folders: tuple[Path, ...], only: str) -> int:
    """Draws the pictures of finished runs from their records, and prints the files.

    Again, as after a change of style, or for the first time, where they ran with plots=none. The exit code is 1 where a
    picture could not be drawn.
    """
    from igap.console import warn
    from igap.output.plot_command import draw_runs

    problems = draw_runs(folders, only)
    warn(problems)
    return 1 if problems else 0


def _default_metrics() -> list[Section]:
    from igap.output.dashboard.table import DEFAULT

    return [("Metrics shown by default, where the runs have them", [(name, "") for name in DEFAULT])]


@click.command(
    cls=Command,
    short_help="Finished runs and searches side by side: tables, CSV files and a page.",
    arguments=[
        (_DIR, "folders of finished runs and searches, or folders that hold such folders (a sweep, all of runs/)")
    ],
    examples=[
        ("igap compare runs sort=-heads/pearson", "all runs, those that agree most first"),
        ("igap compare searches", "all searches, and the full runs of their best pairs"),
        ("igap compare runs/monday runs/tuesday/3 metrics=gap,heads/bias output=comparison", "a folder and a run"),
    ],
    sections=_default_metrics,
    needs_arguments=True,
)
@click.option(
    "--sort",
    cls=Setting,
    metavar="NAME",
    help="Rows of runs by a metric, a setting, folder or key; -NAME: the largest first; default: in the order found.",
)
@click.option(
    "--metrics", cls=Setting, metavar="A,B,...", help="Names of summary.json or ap_on_ig; default: those below."
)
@click.option(
    "--output",
    cls=Setting,
    metavar="FOLDER",
    default=".",
    help="Where compare.csv, compare_searches.csv and compare.html go; default: this folder.",
)
@click.option(
    "--wandb", metavar="ENTITY/PROJECT", help="The runs that were logged there, beside those of the folders, if any."
)
@_folders
def compare(folders: tuple[Path, ...], sort: str | None, metrics: str | None, output: str, wandb: str | None) -> None:
    """Shows finished runs side by side, and finished searches in a table of their own.

    The terminal shows the settings that differ; compare.csv holds every metric, compare_searches.csv every number
    of the searches; compare.html, one file that needs no network, has heatmaps, scatter, convergence and the settings
    of two runs side by side, and the history of every search.
    """
    from igap.output.dashboard.command import compare_runs

    names = None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()]
    compare_runs(folders, sort=sort, metrics=names, output=Path(output), project=wandb)


@click.command(
    cls=Command,
    short_help="Logs finished runs to W&B from disk, and uploads those logged offline.",
    arguments=[(_DIR, "folders of finished runs and searches, or folders that hold such folders")],
    examples=[("igap sync runs project=mine", "all runs, into the project mine")],
    needs_arguments=True,
)
@click.option("--project", cls=Setting, metavar="NAME", help="The W&B project; default: tracking.project of each run.")
@click.option(
    "--entity", cls=Setting, metavar="NAME", help="The W&B user or team; default: tracking.entity of each run."
)
@_folders
def sync(folders: tuple[Path, ...], project: str | None, entity: str | None) -> int:
    """Logs every finished run and search in these folders to W&B, from what is on disk, under its key.

    Online where there is a key and the server answers, offline into the run's folder where not. Runs logged offline
    before are uploaded with wandb sync, or logged from disk again where the folder was moved since or lacks a file.
    What is in W&B already is left alone; the same command again does the rest.
    """
    from igap.output.tracking.sync import sync_runs

    return sync_runs(folders, project=project, entity=entity)


@click.command(
    cls=Command,
    short_help="W&B's offline runs against what is on disk.",
    arguments=[(_DIR, "folders of finished runs and searches, or folders that hold such folders")],
    examples=[("igap verify runs", "all runs")],
    needs_arguments=True,
)
@_folders
def verify(folders: tuple[Path, ...]) -> int:
    """Reads the offline W&B run of every finished run and search back, with W&B's own reader.

    Its summary and config are compared with (search_)summary.json and config.json, number by number. The exit code is 1
    where anything differs or is missing.
    """
    from igap.output.tracking.verify import verify_runs

    return verify_runs(folders)


@click.command(
    cls=Command,
    short_help="A saved W&B workspace for comparing runs.",
    arguments=[("ENTITY/PROJECT", "a project of W&B, as in its address on wandb.ai")],
    examples=[("igap workspace my-team/igap --upload", "write it, and save it as a view of the project")],
    needs_arguments=True,
)
@click.option(
    "--output", cls=Setting, metavar="FILE", default="workspace.json", help="The file; default: workspace.json."
)
@click.option("--upload", is_flag=True, help="Save it as a view of the project as well; needs a W&B key.")
@click.argument("project", metavar="ENTITY/PROJECT")
def workspace(project: str, output: str, upload: bool) -> int:
    """Writes the definition of a W&B workspace.

    It shows the agreement of IG and AP by baseline and by steps, completeness deltas, the overlap of the largest
    components, and plots side by side. Needs pip install -e ".[workspace]" -c constraints.txt
    """
    from igap.output.tracking.workspace import write_workspace

    return write_workspace(project, Path(output), upload=upload)


@click.command(
    cls=Command,
    short_help="What the jobs of a sweep share on disk; --prune removes what no job can use.",
    arguments=[(_DIR, "folders of sweeps, or folders that hold such folders")],
    examples=[("igap store runs --prune", "remove what no job can use, of all sweeps")],
    needs_arguments=True,
    shorthands={"--prune": "--prune=broken"},
)
@click.option(
    "--prune",
    type=OneOf(["broken", "all"]),
    metavar="[broken|all]",
    help="Remove files. broken, which --prune alone means: broken ones and those that other versions of the code made, "
    "which no job can use. all: every file; jobs compute what they need again.",
)
@_folders
def store(folders: tuple[Path, ...], prune: Any) -> int:
    """Lists what the jobs of each sweep share, and checks every file against its hash.

    Shared are AP, AtP and AtP* maps (they do not depend on baseline or steps), clean and corrupted runs, and reference
    means. The exit code is 1 where a file is broken and stays.
    """
    from igap.sweep.cache_command import show_store

    return show_store(folders, prune=prune)


COMMANDS: tuple[click.Command, ...] = (status, plot, compare, sync, verify, workspace, store)
"""In the order in which help lists them."""
