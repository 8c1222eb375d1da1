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
from igap.storage.finished import Finished, is_key, lost_findings, read
from igap.storage.untrusted import read_names

PLAN = "sweep.json"
SCHEMA = 1
STATES = ("done", "stale", "running", "failed", "planned")
State = Literal["done", "stale", "running", "failed", "planned"]

_PATIENCE = 1.0
"""Seconds to try for a lock: longer than anybody who only looks holds it."""


@dataclass(frozen=True)
class Planned:
    """A job as the plan names it."""

    key: str
    overrides: tuple[str, ...]
    """Those that tell it from the others."""


@dataclass(frozen=True)
class Standing:
    """How one job stands."""

    key: str
    state: State
    detail: str = ""
    """Why it failed, where it runs, what made it stale; empty where there is nothing to say."""
    run: Finished | None = None
    """The run, where it is finished, or is to be done again because something in it failed."""

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
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

    def standing(self, key: str) -> Standing:
        """How a job stands, from the disk alone."""
        folder = self.run(key)
        trouble, before = None, None
        if os.path.lexists(folder / "summary.json"):
            run, trouble = read(folder)
            if run is not None and run.key == key and lost_findings(run.summary):
                before = run
            elif run is not None and run.key == key:
                changes = [trouble] if trouble else versions.changed(run.summary)
                return Standing(key, "stale" if changes else "done", printable(", ".join(changes), 1000), run)
            else:
                trouble = trouble or f"{printable(folder)}: its summary is of another run ({run.key if run else ''})"
        holder = self.holder(key)
        if holder is not None:
            where = f"{holder['host']}, process {holder['pid']}, since {holder['since']}"
            return Standing(key, "running", printable(where), before)
        failure = _json(folder / "failure.json")
        if failure is not None:
            return Standing(key, "failed", printable(failure.get("reason", ""), 2000), before)
        started = "was interrupted before" if os.path.exists(self._locks / f"{key}.json") else ""
        return Standing(key, "planned", trouble or started, before)

    @contextmanager
    def claimed(self, key: str, *, wait: bool) -> Iterator[bool]:
        """A block in which this process alone works on a job; False, and nothing is claimed, where another one does.

        With `wait` the block begins when that one is done or dead.
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
        """Host, pid and start of the process that works on a job, None where there is none."""
        if not (self._locks / f"{key}.lock").exists():
            return None
        try:
            with self._lock(key, 0.0):
                return None
        except (Timeout, PermissionError):  # the second: of another user, whose lock cannot be tried
            found = _json(self._locks / f"{key}.json")
            if found is None and not os.access(self._locks / f"{key}.lock", os.W_OK):
                return None
            return {name: (found or {}).get(name, "?") for name in ("host", "pid", "since")}
        except OSError:  # no file that anybody could hold
            return None

    def died(self, key: str) -> bool:
        """Whether a process that worked on this job ended without a word; asked once, the next time it is not."""
        if self.holder(key) is not None or not (self._locks / f"{key}.json").exists():
            return False
        (self._locks / f"{key}.json").unlink(missing_ok=True)
        return True

    def _lock(self, key: str, timeout: float) -> FileLock:
        return FileLock(self._locks / f"{key}.lock", timeout=timeout)

    def set_aside(self, key: str) -> Path | None:
        """Where a stale run has been moved, so that it is done again; None where it is not stale, or being done."""
        with self.claimed(key, wait=False) as mine:
            if not mine or self.standing(key).state != "stale":  # another process was there first
                return None
            (self.path / ".stale").mkdir(exist_ok=True)
            stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S-%f")
            aside = self.path / ".stale" / f"{key}_{stamp}"
            os.replace(self.run(key), aside)
            return aside

    def fail(self, key: str, reason: str, log: str) -> Path:
        """The file with the whole story of a failure; its reason is what `standing` says. Raises OSError."""
        story = self.run(key) / "failure.log"
        story.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_text(story, log)
        atomic.write_text(self.run(key) / "failure.json", json.dumps({"reason": reason, "log": str(story)}) + "\n")
        return story

    def forget_failure(self, key: str) -> None:
        """Takes the marks of a failure away."""
        for name in ("failure.json", "failure.log"):
            (self.run(key) / name).unlink(missing_ok=True)

    def write_plan(self, jobs: Sequence[Planned]) -> str | None:
        """Writes the plan; a sentence where another one was there, whose runs stay and are shared where keys agree.

        Raises InputError where it cannot be written.
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

    def plan(self) -> list[Planned] | None:
        """The jobs of the plan last started here, None where there is none that can be read."""
        try:
            return self.read_plan()
        except ValueError:
            return None

    def read_plan(self) -> list[Planned]:
        """The jobs of the plan last started here. Raises ValueError, whose text says why it cannot be read."""
        plan = read_names(self.path / PLAN)
        if plan.get("schema") != SCHEMA:
            raise ValueError(f"its schema is {printable(plan.get('schema', 'none'), 60)}, this igap knows {SCHEMA}")
        jobs = plan.get("jobs")
        if not (isinstance(jobs, list) and all(map(_is_job, jobs))):
            raise ValueError("its jobs are no list of keys and overrides")
        return [Planned(job["key"], tuple(job["overrides"])) for job in jobs]


def _is_job(job: object) -> bool:
    """Whether this is a job as a plan has it."""
    match job:
        case {"key": str(key), "overrides": [*texts]}:
            return is_key(key) and all(isinstance(text, str) for text in texts)
    return False


def _json(path: Path) -> dict[str, Any] | None:
    try:
        return read_names(path)
    except ValueError:
        return None
