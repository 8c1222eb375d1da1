"""What the terminal says of a plan and of each of its jobs."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from igap.components import PLACES, SITES, Site
from igap.console import duration, number
from igap.sweep.folder import JobStatus
from igap.sweep.plan import Estimate, Plan


def show_plan(console: Console, plan: Plan, time_left: Estimate | None, *, single: bool = False) -> None:
    """How many jobs a multirun has, how they stand, how long the rest takes, and which were rejected; or a single run.

    Args:
        console: where to.
        plan: the jobs.
        time_left: of the jobs to do; None where nothing tells.
        single: whether it is one run, in a folder of its own.
    """
    counts = {state: len(plan.in_state(state)) for state in ("done", "stale", "running", "failed")}
    notes = [f"{counts['done']} done already"] if counts["done"] else []
    notes += [f"{counts['running']} running in another process"] if counts["running"] else []
    notes += [f"{counts['failed']} failed before"] if counts["failed"] else []
    notes += [f"{plan.n_duplicates} duplicate{'s' * (plan.n_duplicates != 1)} left out"] if plan.n_duplicates else []
    n = len(plan.jobs)
    text = ", ".join([f"{n} job{'s' * (n != 1)} in {plan.folder.path}", f"{len(plan.to_do)} to do", *notes])
    if single:
        text = f"1 run, key {plan.jobs[0].key}, which can be done"
    console.print(text, markup=False, soft_wrap=True)
    if counts["stale"]:
        stale = plan.in_state("stale")
        done = "done again" if stale[0] in plan.to_do else "kept; stale=redo does them again"
        console.print(
            f"{counts['stale']} stale, made by other code ({plan.statuses[stale[0].key].detail}): {done}", markup=False
        )
    for job in plan.rejected:
        console.print(f"[yellow]dropped[/] {escape(' '.join(job.overrides))}: {escape(job.reason)}")
    if plan.to_do:
        text = "nothing of this kind has run here to tell how long it takes"
        if time_left is not None:
            runs = f"{time_left.n_runs} finished run{'s' * (time_left.n_runs != 1)}"
            text = f"about {duration(time_left.seconds)}, going by {runs} in {plan.folder.path.parent}"
        console.print(text, markup=False, soft_wrap=True)


def show_job(console: Console, count: str, overrides: Sequence[str], status: JobStatus, reason: str = "") -> None:
    """One line for a job that has ended: its key numbers, or why there are none."""
    parts = []
    if status.run is not None:
        summary = status.run.summary
        names = [name for site in PLACES if (name := f"{site}/pearson") in summary]
        numbers = (f"{name} {number(summary[name])}" for name in names)
        parts.append(f"{', '.join(numbers)} ({number(summary.get('seconds/total'))} s)")
    if not status.finished:
        parts.append(f"failed: {reason or status.detail}")
    text = f"[{count}] {status.key} {' '.join(overrides)}: {'; '.join(parts)}"
    console.print(text, markup=False, highlight=False, soft_wrap=True)


_NUMBERS: Mapping[Site, Sequence[str]] = {
    "heads": ("pearson", "jaccard@10", "max_abs_delta"),
    "neurons": ("pearson", "jaccard@30"),
}


def _columns(summaries: Sequence[Mapping[str, object]]) -> list[str]:
    """The gap, and what says most of each site that some job has; before any job is done, of heads and neurons."""
    sites = [site for site in PLACES if any(f"{site}/pearson" in summary for summary in summaries)] or SITES
    vector, others = ("max_abs_delta",), ("pearson", "jaccard@10")  # one vector a layer has no correlation
    numbers = {site: _NUMBERS.get(site, vector if PLACES[site].is_vector else others) for site in sites}
    return ["gap", *(f"{site}/{name}" for site, names in numbers.items() for name in names)]


def show_plan_end(console: Console, plan: Plan, reasons: Mapping[str, str]) -> None:
    """A line a finished job, which runs have warnings, those that failed with reasons and logs, and where all is."""
    statuses = {job.key: plan.folder.status(job.key) for job in plan.jobs}
    names = _columns([status.run.summary for status in statuses.values() if status.run is not None])
    table = Table(title="Jobs", title_justify="left")
    for column in ("folder", "overrides", *names):
        table.add_column(column, justify="right" if column in names else "left", overflow="fold")
    n_finished, warned = 0, []
    for job in plan.jobs:
        status = statuses[job.key]
        numbers: list[str] = [status.state] * len(names)
        if status.run is not None:
            numbers = [number(status.run.summary.get(name)) for name in names]
            warned += [job.key] if status.run.summary.get("warnings") else []
        n_finished += status.finished
        table.add_row(job.key, escape(" ".join(job.distinct_overrides)), *numbers)
    console.print(table)
    if warned:
        text = f"warnings of {len(warned)} run{'s' * (len(warned) != 1)}, in their summary.json: {' '.join(warned)}"
        console.print(text, markup=False, soft_wrap=True)
    if reasons:
        failures = Table(title="Failed", title_justify="left")
        for column in ("folder", "overrides", "reason", "log"):
            failures.add_column(column, overflow="fold")
        for job in plan.jobs:
            if job.key in reasons:
                story = plan.folder.run(job.key) / "failure.log"
                output = next((p for p in (plan.folder.path / n for n in (".submitit", ".launch")) if p.exists()), "-")
                log = str(story) if story.exists() else str(output)
                failures.add_row(
                    job.key, escape(" ".join(job.distinct_overrides)), escape(reasons[job.key]), escape(log)
                )
        console.print(failures)
    n = len(plan.jobs)
    jobs = "job" if n == 1 else "jobs"
    console.print(f"{n_finished} of {n} {jobs} finished in {plan.folder.path}", markup=False, soft_wrap=True)
    if n_finished < n:
        console.print("the same command again does the rest", markup=False)
