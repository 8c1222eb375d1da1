"""Does a search lose anything? Starts searches of several workers, kills them at random moments, starts them again.

    python tests/programs/search_survival.py [--kills 6] [--storage sqlite,journal,postgres] [--workers 3] [--seed 0]

Says what it did, and ends with exit code 1 on the first thing that is not as it must be. A program and not a test: six
kills on each storage take about 4 minutes. tests/counterfactual/test_search_survival.py runs a short version.
PostgreSQL is a server of its own on loopback, from Debian's package (apt-get install postgresql).
"""

import argparse
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.trial import TrialState

sys.path.insert(0, str(Path(__file__).parents[1]))
from programs.survival import PATIENCE, descendants, kill, wait_for

from igap.counterfactual.study import URL, storage_of

UNTIL, BATCH = 96, 8
QUIET = ["tracking=disabled", "full_run=false", "device=cpu", "clean.n=1", "heldout.n=2", "search.control=8"]


class Searching:
    """One search in a folder of its own: the command, and its trials as the storage has them."""

    def __init__(self, folder: Path, storage: str, workers: int = 3, until: int = UNTIL) -> None:
        """A search that writes into `folder`/searches; the folder's name is the study's."""
        self.folder, self.storage, self.until = folder, storage, until
        folder.mkdir()
        self.place = folder / "searches" / folder.name
        self.arguments = [
            "search", "head=1.2", f"name={folder.name}", f"search/storage={storage}", f"search.until={until}",
            f"search.batch={BATCH}", f"search.workers={workers}", *QUIET,
        ]  # fmt: skip

    def start(self) -> "subprocess.Popen[str]":
        """The command, in a process group of its own; its paths are relative, as a user's are."""
        with (self.folder / "said").open("a") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "igap.cli", *self.arguments],
                cwd=self.folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    def said(self) -> str:
        """The output of all commands so far."""
        return (self.folder / "said").read_text()

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """What is in the storage; none before there is a study."""
        if self.storage != "postgres" and not any(self.place.glob("study.*")):
            return []
        try:
            study = optuna.load_study(study_name=self.folder.name, storage=storage_of(self.storage, self.place))
        except KeyError:
            return []
        return study.get_trials(deepcopy=False)

    def check(self) -> int:
        """How many trials there are: each finished and whole, no candidate twice, no more than asked for."""
        trials = self.trials()
        assert all(trial.state == TrialState.COMPLETE for trial in trials), {trial.state.name for trial in trials}
        assert all({"source", "lineage", "rule", "effects"} <= set(trial.user_attrs) for trial in trials)
        candidates = [tuple(trial.params.values()) for trial in trials]
        assert len(set(candidates)) == len(candidates), "a candidate twice"
        assert [trial.number for trial in trials] == list(range(len(trials)))
        assert len(trials) <= self.until, len(trials)
        return len(trials)

    def finished(self) -> None:
        """Checks that the search has come to its end: all trials, and a report of them."""
        assert self.check() == self.until, "not the number that was asked for"
        summary = json.loads((self.place / "search_summary.json").read_text())
        assert summary["n_trials"] == self.until
        assert (self.place / "trials.csv").read_text().count("\n") == self.until + 1


def alive(below: list[int]) -> list[int]:
    """Those of the workers that have outlived their parent: they go on until there are all trials."""
    found = []
    for pid in below:
        with contextlib.suppress(OSError):
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def survive(folder: Path, storage: str, *, kills: int, workers: int = 3, until: int = UNTIL, seed: int = 0) -> str:
    """What was done: searches killed `kills` times in all, each carried on until it has all its trials."""
    rng, n_kills, n_searches, longest = random.Random(seed), 0, 0, 0.0
    hows: dict[str, int] = {}
    while n_kills < kills:
        search = Searching(folder / f"{storage}{n_searches}", storage, workers, until)
        n_searches += 1
        n_before, code = 0, None
        orphans: list[int] = []
        while code != 0:
            process = search.start()
            below: list[int] = []
            if n_kills < kills:
                least = n_before + rng.randrange(0, 2 * BATCH)
                wait_for(lambda s=search, n=least: len(s.trials()) > n, process, PATIENCE)
                time.sleep(rng.uniform(0, 0.3))
                below, how = descendants(process.pid), rng.choice(["parent", "worker", "all"])
                if process.poll() is None and kill(process, how, rng):
                    n_kills += 1
                    hows[how] = hows.get(how, 0) + 1
                    if how == "worker":  # the parent goes on, with the other workers
                        time.sleep(rng.uniform(0, 2))
                        kill(process, rng.choice(["parent", "all"]), rng)
            since = time.monotonic()
            code = process.wait(timeout=PATIENCE)
            longest = max(longest, time.monotonic() - since)
            orphans += below
            if rng.random() < 0.5:  # or else they work beside the next ones
                for pid in alive(orphans):
                    os.kill(pid, signal.SIGKILL)
            assert code in (0, -signal.SIGKILL), search.said()
            n = search.check()
            assert n >= n_before, "a trial is gone"
            n_before = n
        deadline = time.monotonic() + PATIENCE
        while alive(orphans):
            assert time.monotonic() < deadline, "a worker does not end"
            time.sleep(0.1)
        search.finished()
    told = ", ".join(f"{n} of {'the ' if how != 'all' else ''}{how}" for how, n in sorted(hows.items()))
    return (
        f"{storage}: {n_kills} kills ({told}) in {n_searches} searches of {workers} workers and {until} trials: each "
        f"ended with exactly {until} finished trials, no candidate twice, none running, and its report; the longest "
        f"command after a kill took {longest:.0f} s"
    )


@contextlib.contextmanager
def postgres(folder: Path) -> Iterator[str]:
    """The URL of a PostgreSQL server on loopback, its data in `folder`. Raises PermissionError where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not found:
        raise PermissionError("PostgreSQL is not installed (apt-get install postgresql)")
    binaries, data, password = found[-1].parent, folder / "data", secrets.token_hex(12)
    user: dict[str, object] = {}
    folder.mkdir()
    (folder / "password").write_text(password)
    if os.getuid() == 0:  # it does not run as root
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres", "postgres")
        for path in folder.parents:
            if not os.stat(path).st_mode & 1 and path != Path(tempfile.gettempdir()):
                path.chmod(path.stat().st_mode | 0o11)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def do(*command: str) -> None:
        done = subprocess.run(  # type: ignore[call-overload]
            [str(binaries / command[0]), *command[1:]], cwd=folder, capture_output=True, text=True, check=False, **user
        )
        if done.returncode:
            raise PermissionError(f"{command[0]} cannot be used here: {done.stderr.strip()[:200]}")

    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
    do("initdb", "-D", str(data), "-U", "igap", "-A", "scram-sha-256", f"--pwfile={folder / 'password'}", "-N")
    do("pg_ctl", "-D", str(data), "-o", options, "-l", str(folder / "log"), "-w", "start")
    try:
        (folder / "password").unlink()
        yield f"postgresql+psycopg://igap:{password}@127.0.0.1:{port}/postgres"
    finally:
        do("pg_ctl", "-D", str(data), "-m", "immediate", "-w", "stop")


def on_postgres(folder: Path, **settings: int) -> str:
    """`survive` on a server of its own; its password must be in no file that a search wrote."""
    with postgres(folder / "server") as url:
        os.environ[URL] = url
        try:
            said = survive(folder, "postgres", **settings)
        finally:
            del os.environ[URL]
    password = url.split("igap:")[1].split("@")[0].encode()
    written = [path for path in folder.glob("postgres*/**/*") if path.is_file()]
    assert written
    assert not [path for path in written if password in path.read_bytes()], "the password is in a file"
    return f"{said}; its password in none of {len(written)} files"


def main() -> int:
    """The exit code: 0 when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=6)
    parser.add_argument("--storage", default="sqlite,journal,postgres")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    settings = {name: getattr(options, name) for name in ("kills", "workers", "seed")}
    with tempfile.TemporaryDirectory() as name:
        for storage in options.storage.split(","):
            try:
                if storage == "postgres":
                    said = on_postgres(Path(name), **settings)
                else:
                    said = survive(Path(name), storage, **settings)
            except PermissionError as error:
                said = f"{storage}: skipped: {error}"
            print(said, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
