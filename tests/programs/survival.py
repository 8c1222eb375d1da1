"""Does a sweep lose anything? Starts sweeps, kills them at drawn moments, starts the same command again, compares.

    python tests/programs/survival.py [--kills 12] [--launcher basic,joblib,submitit_local] [--tracking offline]
    python tests/programs/survival.py --only apart,full_disk,read_only,two_at_once

SIGKILL, SIGTERM and SIGINT by turns, to the command, one of its workers or all. Says what it did, and ends with exit
code 1 on the first thing that is not as it must be. A program and not a test: 12 kills take about 5 minutes.
tests/sweep/test_survival.py runs a short version.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from programs import kills
from programs.kills import Command

from igap import cli
from igap.storage.finished import failed_findings, failures_of

GRID = {12: ["ig.n_steps=2,3,4,5,6,7", "baseline=corrupted,zero"], 3: ["ig.n_steps=2,3,4"]}
"""By the number of jobs."""
QUIET = ["curves.components=none", "explain=false", "device=cpu"]
LAUNCHERS = {
    "basic": [],
    "joblib": ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"],
    "submitit_local": ["hydra/launcher=submitit_local", "hydra.launcher.pack=3"],
}
APART = {"effect": 1e-5, "delta": 1e-5, "score": 1e-6, "pearson": 1e-6, "spearman": 1e-4}
"""How far the same sweep may be off where it ran with another launcher, or other threads: the last digits of float32
numbers of up to 10 logits, and of ranks where neighbours swap places."""


class Sweep(Command):
    """One sweep in a folder of its own: the command, and everything that was ever seen finished."""

    def __init__(
        self, folder: Path, launcher: str = "basic", tracking: str = "disabled", n_jobs: int = 12, threads: int = 1,
        reference: dict[str, object] | None = None, more: Sequence[str] = (), n_plots: int = 8,
    ) -> None:  # fmt: skip
        """A sweep that writes into `folder`/runs, and what must be there in the end.

        `more`: further settings, with which a run has at least `n_plots` pictures.
        """
        arguments = ["run", "-m", *GRID[n_jobs], *QUIET, f"tracking={tracking}", *LAUNCHERS[launcher], *more]
        super().__init__(folder, arguments, threads=threads)
        self.runs, self.n_jobs, self.reference = folder / "runs" / "multirun", n_jobs, reference
        self.n_plots, self.seen, self.drawn = n_plots, dict[str, tuple[int, str]](), True

    def progress(self) -> int:
        """Finished runs."""
        return len(list(self.runs.glob("*/summary.json")))

    def writes(self) -> bool:
        """Whether a file is being written at this moment."""
        return any(self.runs.glob("*/*.unfinished")) or any(self.runs.glob("*/plots/*.unfinished"))

    def works(self, since: float) -> bool:
        """Whether a job was begun after this time; marks of processes killed before do not count."""
        with contextlib.suppress(FileNotFoundError):  # a job that ends takes its mark away
            return any(mark.stat().st_mtime >= since for mark in self.runs.glob(".locks/*.json"))
        return False

    def check(self) -> None:
        """Whatever counts as finished is whole, and what was finished before has not been touched since."""
        finished = {path.parent.name: path for path in self.runs.glob("*/summary.json")}
        for key, path in finished.items():
            content = path.read_bytes()
            assert json.loads(content)["key"] == key, f"{path} is of another run"
            now = (path.stat().st_mtime_ns, hashlib.sha256(content).hexdigest())
            assert self.seen.setdefault(key, now) == now, f"{key} was finished and has been done again"
            whole(path.parent, self.n_plots - (0 if self.drawn else len(undrawn(path.parent))))
        assert set(self.seen) <= set(finished), "a finished run is gone"

    def finished(self) -> None:
        """Raises where the results are not those of a sweep that nobody disturbed."""
        self.check()
        assert len(self.seen) == self.n_jobs
        other = set() if self.reference is None else differing(self.results(), self.reference)
        assert not other, f"other results than undisturbed: {sorted(other)}"
        with contextlib.redirect_stdout(None):
            assert cli.main(["store", str(self.runs)]) == 0, "a shared file is broken"

    def results(self) -> dict[str, object]:
        """All that must not depend on interruptions: numbers without seconds, and the bytes of tables and tensors."""
        found: dict[str, object] = {}
        for path in sorted(self.runs.glob("[0-9a-f]*/*")):
            name = str(path.relative_to(self.runs))
            if path.name == "summary.json":
                numbers = json.loads(path.read_text())
                aside = ("failed", *(entry for each in undrawn(path.parent) for entry in (each, f"{each}/reason")))
                found[name] = {k: v for k, v in numbers.items() if not k.startswith("seconds/") and k not in aside}
            elif path.suffix in (".csv", ".safetensors") and path.name != "record.safetensors":  # it holds seconds
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found


def differing(results: Mapping[str, object], others: Mapping[str, object]) -> set[str]:
    """The files that differ, of a summary the names in it."""
    names = results.keys() | others.keys()
    files = {name for name in names if results.get(name, "absent") != others.get(name, "absent")}
    whole = {name for name in files if not (isinstance(results.get(name), dict) and isinstance(others.get(name), dict))}
    inside = (
        f"{name}: {each}"
        for name in files - whole
        for each in differing(results[name], others[name])  # type: ignore[arg-type]
    )
    return whole | set(inside)


def undrawn(folder: Path) -> list[str]:
    """The pictures that a finished run says it could not draw."""
    summary = json.loads((folder / "summary.json").read_text())
    return sorted(failures_of(summary).keys() - failed_findings(summary))


def whole(folder: Path, n_plots: int) -> None:
    """Raises where a file of a finished run is cut short or missing."""
    assert load_file(folder / "attributions.safetensors")["ap.heads"].shape == (4, 8)
    json.loads((folder / "config.json").read_text())
    with (folder / "heads.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 33
    plots = list((folder / "plots").glob("*.png"))
    assert len(plots) >= n_plots, f"{folder} has {len(plots)} plots"
    for path in plots:
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), f"{path} is cut short"


def survive(
    folder: Path, kills_: int, launcher: str = "basic", tracking: str = "disabled", seed: int = 0, n_jobs: int = 12,
    more: Sequence[str] = (), n_plots: int = 8,
) -> str:  # fmt: skip
    """What was done: sweeps killed so often in all, each carried on until it is done, and compared."""
    drawn: Any = {"more": more, "n_plots": n_plots}
    reference = undisturbed(folder / f"{launcher}_undisturbed", launcher, n_jobs=n_jobs, **drawn).results()

    def make(number: int) -> Sweep:
        return Sweep(folder / f"{launcher}{number}", launcher, tracking, n_jobs, reference=reference, **drawn)

    said = kills.survive(make, kills=kills_, seed=seed, alone=launcher == "basic")
    return (
        f"{launcher}, tracking={tracking}: {said} of {n_jobs} jobs: every finished run whole, none done twice, "
        f"{len(reference)} files bit for bit those of an undisturbed sweep of this launcher"
    )


def undisturbed(folder: Path, launcher: str = "basic", **options: Any) -> Sweep:
    """A sweep that nobody disturbs, at its end."""
    sweep = Sweep(folder, launcher, **options)
    assert sweep.to_the_end() == 0, sweep.said()
    sweep.finished()
    return sweep


def apart(folder: Path) -> str:
    """How far sweeps of other launchers and numbers of threads are from one process with one thread."""
    here = undisturbed(folder / "one_thread", n_jobs=3)
    others = {f"{n} threads": undisturbed(folder / f"threads{n}", n_jobs=3, threads=n) for n in (2, 4)}
    others |= {name: undisturbed(folder / f"apart_{name}", name, n_jobs=3) for name in LAUNCHERS if name != "basic"}
    told = []
    for name, other in others.items():
        furthest = dict.fromkeys(APART, 0.0)
        for run in here.seen:
            for what, far in _differences(here.runs / run, other.runs / run):
                furthest[what] = max(furthest[what], far)
        assert all(furthest[what] <= APART[what] for what in APART), (name, furthest)
        told.append(f"{name}: " + ", ".join(f"{what} {far:.1g}" for what, far in furthest.items()))
    return "off one process with one thread by at most: " + "; ".join(told)


def _differences(one: Path, other: Path) -> Iterator[tuple[str, float]]:
    """What two runs of one key differ by: effects in logits, scores, correlations of heads and of neurons."""
    maps, others = (load_file(run / "attributions.safetensors") for run in (one, other))
    for name, tensor in maps.items():
        kind = name.partition(".")[0]
        yield kind if kind in APART else "score", float((tensor - others[name]).abs().max())
    summary, again = (json.loads((run / "summary.json").read_text()) for run in (one, other))
    for site in ("heads", "neurons"):
        for what in ("pearson", "spearman"):
            yield what, abs(summary[f"{site}/{what}"] - again[f"{site}/{what}"])


@contextlib.contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[None]:
    """A file system of this size at `folder`. Raises PermissionError where one may not be mounted."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PermissionError(f"no file system can be mounted here ({done.stderr.strip()})")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def full_disk(folder: Path) -> str:
    """What a sweep does on a disk that fills up, and once there is room."""
    place, reference = folder / "full", undisturbed(folder / "full_undisturbed").results()
    with small_disk(place, 14):
        sweep = Sweep(place, reference=reference)
        sweep.drawn = False  # a picture that found no room costs itself alone
        assert sweep.to_the_end() == 1, sweep.said()
        assert "No space left on device" in sweep.said()
        assert "Traceback" not in sweep.said()
        sweep.check()
        n_before = len(sweep.seen)
        assert 0 < n_before < sweep.n_jobs, n_before
        subprocess.run(["mount", "-o", "remount,size=200m", str(place)], check=True)
        assert sweep.to_the_end() == 0, sweep.said()
        sweep.finished()
        n_undrawn = sum(len(undrawn(sweep.runs / run)) for run in sweep.seen)
        with contextlib.redirect_stdout(None):
            assert cli.main(["plot", *(str(sweep.runs / run) for run in sweep.seen)]) == 0
        sweep.drawn = True
        sweep.finished()
    return (
        f"full disk: {n_before} jobs finished, the others failed for lack of space; with room the rest was done, and "
        f"igap plot drew {n_undrawn} pictures that had found none"
    )


def read_only(folder: Path) -> str:
    """What a sweep does in a folder that takes nothing."""
    place = folder / "read_only"
    with small_disk(place, 50):
        sweep = Sweep(place / "sweep")
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        done = subprocess.run(
            [sys.executable, "-m", "igap.cli", *sweep.arguments],
            cwd=sweep.folder, capture_output=True, text=True, check=False,
        )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith("igap: ")]
    assert (done.returncode, len(lines)) == (2, 1), done
    assert "Read-only file system" in lines[0]
    assert "Traceback" not in done.stderr
    return f"read-only folder: {lines[0]}"


def two_at_once(folder: Path) -> str:
    """What two sweeps of the same jobs in one folder do, started together."""
    sweep = Sweep(folder / "two", reference=undisturbed(folder / "two_undisturbed").results())
    processes = [sweep.start(), sweep.start()]
    while any(process.poll() is None for process in processes):
        sweep.check()
        time.sleep(0.5)
    assert [process.returncode for process in processes] == [0, 0], sweep.said()
    sweep.finished()
    return "two identical sweeps at once: both end with 0, each job done once"


OTHERS = (apart, full_disk, read_only, two_at_once)


def main() -> int:
    """The exit code: 0 when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=12, help="with each launcher")
    parser.add_argument("--launcher", default="basic,joblib,submitit_local")
    parser.add_argument("--tracking", choices=["disabled", "offline"], default="disabled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help=f"of kills, {', '.join(one.__name__ for one in OTHERS)}")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else ["kills", *(one.__name__ for one in OTHERS)]
    with tempfile.TemporaryDirectory() as name:
        for launcher in options.launcher.split(",") if "kills" in wanted else ():
            print(survive(Path(name), options.kills, launcher, options.tracking, options.seed), flush=True)
        for one in OTHERS:
            if one.__name__ in wanted:
                try:
                    print(one(Path(name)), flush=True)
                except PermissionError as error:
                    print(f"{one.__name__}: skipped: {error}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
