"""`igap workspace ENTITY/PROJECT`: a saved W&B workspace for comparing runs, built offline; uploading it is optional.

wandb-workspaces is an extra and is imported here only.
"""

import errno
import importlib
import importlib.util
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from igap.errors import InputError
from igap.output.tracking.places import missing_key, no_cache
from igap.storage.atomic import write_text

SECTIONS = {
    "Agreement of IG and AP": ("heads/pearson", "neurons/pearson", "heads/spearman", "heads/sign_agreement"),
    "Largest components": ("heads/jaccard@10", "neurons/jaccard@30", "heads/n_outliers", "neurons/n_outliers"),
    "Completeness": ("heads/max_abs_delta", "neurons/max_abs_delta"),
}
"""Section to the summary's numbers in it, each a panel with a bar for every baseline, the mean over its runs."""
AGAINST_STEPS = ("heads/max_abs_delta", "heads/pearson")
PLOTS = ("plots/heads_heatmap", "plots/heads_scatter", "plots/heads_mean_difference")


def write_workspace(project: str, output: Path = Path("workspace.json"), *, upload: bool = False) -> int:
    """Writes the definition of a W&B workspace, and saves it as a view of the project where asked.

    Args:
        project: "ENTITY/PROJECT" of W&B.
        output: the file that the definition is written to.
        upload: whether W&B gets it as well; needs a key.

    Returns:
        The exit code: 0, or 1 where W&B did not take it.

    Raises:
        InputError: on another project, without the extra, on a file that cannot be written, or without a key.
    """
    if project.count("/") != 1 or not all(project.split("/")):
        raise InputError(f"project: got {project}, wanted one ENTITY/PROJECT.")
    workspace = build(*project.split("/"))
    try:
        if output.exists() and not output.is_file():  # a device would be replaced
            raise OSError(errno.EEXIST, "it is no file")
        write_text(output, definition(workspace) + "\n")
    except OSError as error:
        raise InputError(
            f"output: got {output}, which cannot be written ({error.strerror}). Set output=FILE."
        ) from error
    sys.stdout.write(f"written to {output}\n")
    if upload:
        if missing := missing_key():
            raise InputError(f"--upload: {missing}. Run wandb login, or set WANDB_API_KEY.")
        try:
            with no_cache():
                workspace.save()
        except Exception as error:  # wandb, its network layer and its server each have their own
            sys.stderr.write(f"igap: W&B did not take the workspace ({type(error).__name__}: {error})\n")
            return 1
        sys.stdout.write(f"saved as {workspace.url}\n")
    return 0


def build(entity: str, project: str) -> Any:
    """The workspace, not saved anywhere. Raises InputError where the extra is not installed."""
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise InputError(
            "workspace: the package wandb-workspaces is not installed. pip install -e '.[workspace]' -c constraints.txt"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its pydantic models are of an older kind
        reports: Any = importlib.import_module("wandb_workspaces.reports.v2")
        workspaces: Any = importlib.import_module("wandb_workspaces.workspaces")

        sections = [
            workspaces.Section(
                name=name,
                panels=[
                    reports.BarPlot(
                        title=f"{metric}, mean over the runs of a baseline",
                        metrics=[metric],
                        groupby="config.baseline.kind",
                        groupby_aggfunc="mean",
                        groupby_rangefunc="minmax",
                    )
                    for metric in metrics
                ],
                is_open=True,
            )
            for name, metrics in SECTIONS.items()
        ]
        convergence = [
            reports.ScatterPlot(
                title=f"{metric} against steps",
                x=reports.Config("ig.n_steps"),
                y=reports.SummaryMetric(metric),
                log_x=True,
                log_y=metric.endswith("delta"),
            )
            for metric in AGAINST_STEPS
        ]
        sections.append(workspaces.Section(name="Convergence", panels=convergence, is_open=True))
        pictures = [reports.MediaBrowser(title=name, media_keys=[name]) for name in PLOTS]
        sections.append(workspaces.Section(name="Plots", panels=pictures))
        return workspaces.Workspace(
            entity=entity,
            project=project,
            name="igap: IG against AP",
            sections=sections,
            runset_settings=workspaces.RunsetSettings(groupby=[workspaces.Metric("Group")]),
        )


def definition(workspace: Any) -> str:
    """The workspace as JSON: what W&B would be sent."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        text = workspace._to_model().model_dump_json(by_alias=True, exclude_none=True)
    return json.dumps(json.loads(text), indent=1)
