"""A sweep's folder: which runs are finished, which are being done, by whom, and which plan was last started there.

Jobs of any number of processes and machines meet here only. A run's folder is named by its key; `summary.json` in it is
the mark of a finished run; a lock, which the operating system drops when its holder dies, is the mark of a running one.
Imports nothing heavy.
"""

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from igap.errors import InputError, printable
from igap.storage import atomic, versions
from igap.storage.finished import FinishedRun, failed_findings, is_key, read_run
from igap.storage.untrusted import read_json_object

PLAN = "sweep.json"
SCHEMA = 1
STATES = ("done", "stale", "running", "failed", "planned")
State = Literal["done", "stale", "running", "failed", "planned"]

_PATIENCE = 1.0
"""Seconds to try for a lock: longer than a process that only looks holds it."""


@dataclass(frozen=True)
class PlannedJob:
    """A job as the plan file names it."""

    key: str
    overrides: tuple[str, ...]
    """The overrides that tell it from the plan's other jobs."""


@dataclass(frozen=True)
class JobStatus:
    """The state of one job."""

    key: str
    state: State
    detail: str = ""
    """Why it failed, where it runs, what made it stale; empty where there is nothing to say."""
    run: FinishedRun | None = None
    """The run on disk, where it is finished or is to be done again because something in it failed."""

    @property
    def finished(self) -> bool:
        """True if nothing is left to do."""
        return self.state in ("done", "stale")


@dataclass(frozen=True)
class SweepFolder:
    """A sweep's folder."""

    path: Path

    def run(self, key: str) -> Path:
        """The folder of one run."""
        return self.path / key

    @property
    def _locks(self) -> Path:
        return self.path / ".locks"

    def status(self, key: str) -> JobStatus:
        """The state of a job, from the disk alone."""
        folder = self.run(key)
        problem, before = None, None
        if os.path.lexists(folder / "summary.json"):
            run, problem = read_run(folder)
            if run is not None and run.key == key and failed_findings(run.summary):
                before = run
            elif run is not None and run.key == key:
                changes = [problem] if problem else versions.version_differences(run.summary)
                return JobStatus(key, "stale" if changes else "done", printable(", ".join(changes), 1000), run)
            else:
                problem = problem or f"{printable(folder)}: its summary is of another run ({run.key if run else ''})"
        holder = self.holder(key)
        if holder is not None:
            where = f"{holder['host']}, process {holder['pid']}, since {holder['since']}"
            return JobStatus(key, "running", printable(where), before)
        failure = _json(folder / "failure.json")
        if failure is not None:
            return JobStatus(key, "failed", printable(failure.get("reason", ""), 2000), before)
        started = "was interrupted before" if os.path.exists(self._locks / f"{key}.json") else ""
        return JobStatus(key, "planned", problem or started, before)

    @contextmanager
    def claim(self, key: str, *, wait: bool) -> Iterator[bool]:
        """Claims a job for this process while the block runs.

        Args:
            key: the job's key.
            wait: wait until another process that works on the job is done or dead.

        Yields:
            True if the job is claimed; False, and nothing is, where another process works on it.
        """
        self._locks.mkdir(parents=True, exist_ok=True)
        lock, info = self._lock(key, -1.0 if wait else _PATIENCE), self._locks / f"{key}.json"
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            since = datetime.now().astimezone().isoformat(timespec="seconds")
            atomic.write_text(info, json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": since}))
            yield True
            info.unlink(missing_ok=True)
        finally:
            lock.release()

    def holder(self, key: str) -> Mapping[str, Any] | None:
        """The host, pid and start of the process that works on a job; None where there is none."""
        if not (self._locks / f"{key}.lock").exists():
            return None
        try:
            with self._lock(key, 0.0):
                return None
        except (Timeout, PermissionError):  # the second: of another user, whose lock cannot be tried
            record = _json(self._locks / f"{key}.json")
            if record is None and not os.access(self._locks / f"{key}.lock", os.W_OK):
                return None
            return {name: (record or {}).get(name, "?") for name in ("host", "pid", "since")}
        except OSError:  # no file that anybody could hold
            return None

    def take_death_notice(self, key: str) -> bool:
        """Returns True once if the last process that worked on this job vanished without reporting."""
        if self.holder(key) is not None or not (self._locks / f"{key}.json").exists():
            return False
        (self._locks / f"{key}.json").unlink(missing_ok=True)
        return True

    def _lock(self, key: str, timeout: float) -> FileLock:
        return FileLock(self._locks / f"{key}.lock", timeout=timeout)

    def set_aside(self, key: str) -> Path | None:
        """Moves a stale run away, so that it is done again.

        Returns:
            Its new folder; None where the run is not stale, or another process works on it.
        """
        with self.claim(key, wait=False) as mine:
            if not mine or self.status(key).state != "stale":  # another process was there first
                return None
            (self.path / ".stale").mkdir(exist_ok=True)
            stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
            aside = self.path / ".stale" / f"{key}_{stamp}"
            os.replace(self.run(key), aside)
            return aside

    def fail(self, key: str, reason: str, log: str) -> Path:
        """Records that a job failed.

        Args:
            key: the job's key.
            reason: one line, the detail of the job's status.
            log: the whole story.

        Returns:
            The file with the story.

        Raises:
            OSError: when the disk does not take it.
        """
        story = self.run(key) / "failure.log"
        story.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(story, log)
        atomic.write_text(self.run(key) / "failure.json", json.dumps({"reason": reason, "log": str(story)}) + "\n")
        return story

    def forget_failure(self, key: str) -> None:
        """Removes the record of a failure."""
        for name in ("failure.json", "failure.log"):
            (self.run(key) / name).unlink(missing_ok=True)

    def write_plan(self, jobs: Sequence[PlannedJob]) -> str | None:
        """Writes the plan, over that of an earlier sweep, whose runs stay and count for both where keys agree.

        Args:
            jobs: the jobs of the plan.

        Returns:
            A sentence about the earlier plan, where it had other jobs; else None.

        Raises:
            InputError: when the plan cannot be written.
        """
        before = self.plan()
        text = [{"key": job.key, "overrides": list(job.overrides)} for job in jobs]
        grid = hashlib.sha256(json.dumps(sorted(job.key for job in jobs)).encode()).hexdigest()[:12]
        plan = {"schema": SCHEMA, "grid": grid, "jobs": text}
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            atomic.write_text(self.path / PLAN, json.dumps(plan, indent=1) + "\n")
        except OSError as error:
            raise InputError(
                f"output: got {self.path}, whose {PLAN} cannot be written ({error.strerror}). Remove what is there, or "
                "set sweep=NAME."
            ) from error
        if before is None or {job.key for job in before} == {job.key for job in jobs}:
            return None
        shared = len({job.key for job in before} & {job.key for job in jobs})
        return (
            f"{self.path} had another grid, of {len(before)} jobs; {shared} of them are in this one too and count for "
            "both. Its finished runs stay; igap status shows this grid from now on. sweep=NAME takes another folder."
        )

    def plan(self) -> list[PlannedJob] | None:
        """The jobs of the plan last started here; None where no plan can be read."""
        try:
            return self.read_plan()
        except ValueError:
            return None

    def read_plan(self) -> list[PlannedJob]:
        """The jobs of the plan last started here. Raises ValueError, whose text says why it cannot be read."""
        plan = read_json_object(self.path / PLAN)
        if plan.get("schema") != SCHEMA:
            raise ValueError(f"its schema is {printable(plan.get('schema', 'none'), 60)}, this igap knows {SCHEMA}")
        jobs = plan.get("jobs")
        if not (isinstance(jobs, list) and all(map(_is_job, jobs))):
            raise ValueError("its jobs are no list of keys and overrides")
        return [PlannedJob(job["key"], tuple(job["overrides"])) for job in jobs]


def _is_job(job: object) -> bool:
    """True if this is a job as a plan file has it."""
    match job:
        case {"key": str(key), "overrides": [*texts]}:
            return is_key(key) and all(isinstance(text, str) for text in texts)
    return False


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return read_json_object(path)
    except ValueError:
        return None
