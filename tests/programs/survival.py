"""Does a sweep lose anything? Starts sweeps, kills them at random moments, starts the same command again, compares.

    python tests/programs/survival.py [--kills 20] [--launcher basic|joblib|submitit_local] [--tracking offline]
    python tests/programs/survival.py --only full_disk,read_only,two_at_once,ctrl_c

Says what it did, and ends with exit code 1 on the first thing that is not as it must be. A program and not a test:
20 kills take about 5 minutes. tests/sweep/test_survival.py runs a short version.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file

from igap import cli

GRID = {12: ["ig.n_steps=2,3,4,5,6,7", "baseline=corrupted,zero"], 3: ["ig.n_steps=2,3,4"]}
"""By the number of jobs."""
QUIET = ["curves.components=none", "explain=false", "device=cpu"]
PATIENCE = 300.0
"""Seconds after which something hangs."""


class Sweep:
    """One sweep in a folder of its own: the command, and everything that was ever seen finished."""

    def __init__(self, folder: Path, launcher: str = "basic", tracking: str = "disabled", n_jobs: int = 12) -> None:
        """A sweep that writes into `folder`/runs."""
        self.folder, self.runs, self.n_jobs = folder, folder / "runs" / "multirun", n_jobs
        folder.mkdir(exist_ok=True)
        processes = [] if launcher == "basic" else [f"hydra/launcher={launcher}"]
        processes += ["hydra.launcher.n_jobs=2"] if launcher == "joblib" else []
        processes += ["hydra.launcher.pack=3"] if launcher == "submitit_local" else []
        self.arguments = ["run", "-m", *GRID[n_jobs], *QUIET, f"tracking={tracking}", *processes]
        self.seen: dict[str, tuple[int, str]] = {}
        self.n_checks = 0

    def start(self) -> "subprocess.Popen[str]":
        """The command, in a process group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "igap.cli", *self.arguments],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def to_the_end(self) -> tuple[int, str]:
        """Exit code and output of the command, undisturbed."""
        process = self.start()
        said, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, said

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
            whole(path.parent)
        assert set(self.seen) <= set(finished), "a finished run is gone"
        self.n_checks += 1

    def results(self) -> dict[str, object]:
        """All that must not depend on interruptions: numbers without seconds, and the bytes of tables and tensors."""
        found: dict[str, object] = {}
        for path in sorted(self.runs.glob("[0-9a-f]*/*")):
            name = str(path.relative_to(self.runs))
            if path.name == "summary.json":
                numbers = json.loads(path.read_text())
                found[name] = {k: v for k, v in numbers.items() if not k.startswith("seconds/")}
            elif path.suffix in (".csv", ".safetensors"):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        return found


def whole(folder: Path) -> None:
    """Raises where a file of a finished run is cut short or missing."""
    assert load_file(folder / "attributions.safetensors")["ap.heads"].shape == (4, 8)
    json.loads((folder / "config.json").read_text())
    with (folder / "heads.csv").open(newline="") as file:
        assert len(list(csv.reader(file))) == 33
    plots = list((folder / "plots").glob("*.png"))
    assert len(plots) >= 8, f"{folder} has {len(plots)} plots"
    for path in plots:
        assert path.read_bytes().endswith(b"IEND\xaeB`\x82"), f"{path} is cut short"


def descendants(pid: int) -> list[int]:
    """Processes below this one, nearest first."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def kill(process: "subprocess.Popen[str]", how: str, rng: random.Random) -> bool:
    """Kills the parent, one of its workers, or all; False where there was nothing to kill."""
    below = descendants(process.pid)
    chosen = {"parent": [process.pid], "worker": [rng.choice(below)] if below else [], "all": [process.pid, *below]}[
        how
    ]
    for pid in chosen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(chosen)


def wait_for(condition, process: "subprocess.Popen[str]", seconds: float) -> bool:
    """Whether the condition came true before the process ended and the time was over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if condition():
            return True
        time.sleep(0.002)
    return False


def survive(
    folder: Path,
    reference: dict[str, object],
    *,
    kills: int,
    launcher: str = "basic",
    tracking: str = "disabled",
    seed: int = 0,
    n_jobs: int = 12,
) -> str:
    """What was done: sweeps killed `kills` times in all, each carried on until it is done, and compared."""
    rng, n_kills, n_sweeps, in_writes = random.Random(seed), 0, 0, 0
    hows = ["parent"] if launcher == "basic" else ["parent", "worker", "all"]
    n_checks = 0
    while n_kills < kills:
        sweep = Sweep(folder / f"sweep{n_sweeps}", launcher, tracking, n_jobs)
        n_sweeps += 1
        while True:
            if n_kills >= kills:
                code, said = sweep.to_the_end()
                assert code == 0, said
                break
            before = time.time()
            process = sweep.start()
            busy = wait_for(lambda s=sweep, b=before: s.works(since=b), process, PATIENCE)
            writing = rng.random() < 0.5
            if busy and writing:
                writing = wait_for(sweep.writes, process, rng.uniform(1, 6))
            elif busy:
                wait_for(lambda: False, process, rng.uniform(0, 5))
            how = rng.choice(hows)
            if process.poll() is None and kill(process, how, rng):
                n_kills += 1
                in_writes += busy and writing
                if how == "worker":  # the parent goes on by itself, for a while
                    wait_for(lambda: False, process, rng.uniform(2, 15))
                if process.poll() is None:
                    kill(process, "all", rng)
            said, _ = process.communicate(timeout=PATIENCE)
            sweep.check()
            if process.returncode == 0:
                break
        sweep.check()
        assert sweep.results() == reference, "the results are not those of an uninterrupted sweep"
        assert cli.main(["store", str(sweep.runs)]) == 0, "a shared file is broken"
        n_checks += sweep.n_checks
    return (
        f"{launcher}, tracking={tracking}: {n_kills} kills ({in_writes} while a file was written) in {n_sweeps} sweeps "
        f"of {n_jobs} jobs, looked at {n_checks} times: every finished run whole, none done twice, all results bit for "
        "bit those of an uninterrupted sweep"
    )


def reference_of(folder: Path, n_jobs: int = 12) -> dict[str, object]:
    """The results of a sweep that nobody disturbs."""
    sweep = Sweep(folder / "reference", n_jobs=n_jobs)
    code, said = sweep.to_the_end()
    assert code == 0, said
    sweep.check()
    assert len(sweep.seen) == n_jobs
    return sweep.results()


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


def full_disk(folder: Path, reference: dict[str, object]) -> str:
    """What a sweep does on a disk that fills up, and once there is room."""
    place = folder / "full"
    with small_disk(place, 14):
        sweep = Sweep(place)
        code, said = sweep.to_the_end()
        assert code == 1, said
        assert "No space left on device" in said
        assert "Traceback" not in said
        sweep.check()
        n_before = len(sweep.seen)
        assert 0 < n_before < sweep.n_jobs, n_before
        subprocess.run(["mount", "-o", "remount,size=200m", str(place)], check=True)
        code, said = sweep.to_the_end()
        assert code == 0, said
        sweep.check()
        assert sweep.results() == reference
    return f"full disk: {n_before} jobs finished, the others failed for lack of space; with room the rest was done"


def read_only(folder: Path, reference: dict[str, object]) -> str:
    """What a sweep does in a folder that takes nothing."""
    place = folder / "read_only"
    with small_disk(place, 50):
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        code, said = Sweep(place).to_the_end()
    assert code == 2, said
    lines = [line for line in said.splitlines() if line.startswith("igap: ")]
    assert len(lines) == 1, said
    assert "Read-only file system" in lines[0]
    assert "Traceback" not in said
    return f"read-only folder: {lines[0]}"


def two_at_once(folder: Path, reference: dict[str, object]) -> str:
    """What two sweeps of the same jobs in one folder do, started together."""
    sweep = Sweep(folder / "two")
    processes = [sweep.start(), sweep.start()]
    while any(process.poll() is None for process in processes):
        sweep.check()
        time.sleep(0.5)
    said = [process.communicate()[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    sweep.check()
    assert sweep.results() == reference
    here = [sum(line.startswith("[") for line in text.splitlines()) for text in said]
    return f"two identical sweeps at once: both end with 0, each job done once, {here[0]} and {here[1]} told by each"


def ctrl_c(folder: Path, reference: dict[str, object], launcher: str = "basic") -> str:
    """What Ctrl-C leaves, and the same command after it."""
    sweep = Sweep(folder / f"ctrl_c_{launcher}", launcher)
    process = sweep.start()
    assert wait_for(lambda: any(sweep.runs.glob("*/summary.json")), process, PATIENCE)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, (process.returncode, said)
    assert "igap: interrupted" in said, said
    assert "Traceback" not in said, said
    assert "the same command again does the rest" in said, said
    sweep.check()
    n_before = len(sweep.seen)
    code, said = sweep.to_the_end()
    assert code == 0, said
    assert f"{n_before} done already" in said, said
    sweep.check()
    assert sweep.results() == reference
    return f"Ctrl-C, {launcher}: exit code 130, {n_before} finished jobs kept, the rest done by the same command"


def ctrl_c_joblib(folder: Path, reference: dict[str, object]) -> str:
    """`ctrl_c` with two worker processes."""
    return ctrl_c(folder, reference, "joblib")


OTHERS = (full_disk, read_only, two_at_once, ctrl_c, ctrl_c_joblib)


def main() -> int:
    """The exit code: 0 when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--launcher", choices=["basic", "joblib", "submitit_local"], default="basic")
    parser.add_argument("--tracking", choices=["disabled", "offline"], default="disabled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help=f"of kills, {', '.join(one.__name__ for one in OTHERS)}")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else ["kills", *(one.__name__ for one in OTHERS)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reference = reference_of(folder)
        print(f"reference: {len(reference)} files to compare", flush=True)
        if "kills" in wanted:
            settings = {name: getattr(options, name) for name in ("kills", "launcher", "tracking", "seed")}
            print(survive(folder, reference, **settings), flush=True)
        for one in OTHERS:
            if one.__name__ in wanted:
                try:
                    print(one(folder, reference), flush=True)
                except PermissionError as error:
                    print(f"{one.__name__}: skipped: {error}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
