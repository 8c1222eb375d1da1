"""Does a search lose anything? Starts searches, kills them at drawn moments, starts the same command again, compares.

    python tests/programs/search_survival.py [--kills 6] [--storage sqlite,journal,postgres] [--workers 1,2] [--seed 0]

SIGKILL, SIGTERM and SIGINT by turns. Says what it did, and ends with exit code 1 on the first thing that is not as it
must be. A program and not a test: six kills of each kind take about 10 minutes.
tests/counterfactual/test_search_survival.py runs a short version. PostgreSQL is a server of its own on loopback, from
Debian's package (apt-get install postgresql).
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import optuna
from optuna.trial import TrialState

sys.path.insert(0, str(Path(__file__).parents[1]))
from programs import kills
from programs.kills import PATIENCE, Command

from igap.counterfactual.trials.storages import URL, open_storage

UNTIL, BATCH = 96, 8
APART = 1e-5
"""Logits that a candidate's value may be off where another worker evaluated it, in another batch of candidates."""
COSTS = {"seconds", "forward_equivalents", "n_from_disk", "key"}
QUIET = ["tracking=disabled", "full_run=false", "device=cpu", "clean.n=1", "heldout.n=2", "search.control=8"]


class Searching(Command):
    """One search in a folder of its own: the command, and its trials as the storage has them."""

    def __init__(
        self, folder: Path, storage: str, workers: int = 2, until: int = UNTIL, reference: "Searching | None" = None
    ) -> None:
        """A search that writes into `folder`/searches; the folder's name is the study's.

        `reference` is one that nobody disturbed.
        """
        name, self.storage, self.workers, self.until = folder.name, storage, workers, until
        self.place, self.reference = folder / "searches" / name, reference
        arguments = [
            "search", "head=1.2", f"name={name}", f"search/storage={storage}", f"search.until={until}",
            f"search.batch={BATCH}", f"search.workers={workers}", *QUIET,
        ]  # fmt: skip
        super().__init__(folder, arguments)

    def progress(self) -> int:
        """Finished batches."""
        return len(self.trials()) // BATCH

    def works(self, since: float) -> bool:
        """Whether there is a study; which batch is being evaluated cannot be seen."""
        return self.storage == "postgres" or any(self.place.glob("study.*"))

    def writes(self) -> bool:
        """Whether a batch is being put into the file of a database."""
        return any(self.place.glob("study.db-journal"))

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """What is in the storage; none before there is a study."""
        if self.storage != "postgres" and not any(self.place.glob("study.*")):
            return []
        try:
            study = optuna.load_study(study_name=self.folder.name, storage=open_storage(self.storage, self.place))
        except KeyError:
            return []
        return study.get_trials(deepcopy=False)

    def check(self) -> None:
        """Each trial is finished and whole, no candidate is there twice, nor more of them than asked for."""
        trials = self.trials()
        assert all(trial.state == TrialState.COMPLETE for trial in trials), {trial.state.name for trial in trials}
        assert all({"source", "lineage", "rule", "effects"} <= set(trial.user_attrs) for trial in trials)
        candidates = [tuple(trial.params.values()) for trial in trials]
        assert len(set(candidates)) == len(candidates), "a candidate twice"
        assert [trial.number for trial in trials] == list(range(len(trials)))
        assert len(trials) <= self.until, len(trials)

    def finished(self) -> None:
        """Checks that the search has come to its end: all trials, a report of them, and the reference's numbers."""
        self.check()
        trials = self.trials()
        assert len(trials) == self.until, "not the number that was asked for"
        summary = json.loads((self.place / "search_summary.json").read_text())
        assert summary["n_trials"] == self.until
        assert (self.place / "trials.csv").read_text().count("\n") == self.until + 1
        if self.reference is None:
            return
        if self.workers == 1:
            assert self.results() == self.reference.results(), "other results than undisturbed"
        values = {tuple(trial.params.values()): trial.value or 0.0 for trial in self.reference.trials()}
        both = [(trial.value or 0.0, values.get(tuple(trial.params.values()))) for trial in trials]
        self.apart = max(abs(value - other) for value, other in both if other is not None)
        assert self.apart <= APART, self.apart

    def results(self) -> dict[str, object]:
        """All that must not depend on interruptions: the tables' bytes, and the summary but for what it cost."""
        summary = json.loads((self.place / "search_summary.json").read_text())
        numbers = {name: value for name, value in summary.items() if name not in COSTS}
        return numbers | {path.name: path.read_bytes() for path in self.place.glob("*.csv")}


def survive(folder: Path, storage: str, *, kills_: int, workers: int, seed: int = 0) -> str:
    """What was done: searches killed so often in all, each carried on until it has all its trials, and compared."""
    reference = Searching(folder / f"{storage}{workers}_undisturbed", storage, 1)
    assert reference.to_the_end() == 0, reference.said()
    reference.finished()
    searches = []

    def make(number: int) -> Searching:
        searches.append(Searching(folder / f"{storage}{workers}_{number}", storage, workers, reference=reference))
        return searches[-1]

    said = kills.survive(make, kills=kills_, seed=seed, alone=workers == 1)
    same = "every table bit for bit that of an undisturbed search, " if workers == 1 else ""
    return (
        f"{storage}, {workers} workers: {said} of {UNTIL} trials: exactly as many in the end, no candidate twice, none "
        f"running, {same}a candidate's value off by at most {max(one.apart for one in searches):.1g} logits"
    )


def two_at_once(folder: Path, storage: str) -> str:
    """What two identical searches in one folder do, started together."""
    search = Searching(folder / f"{storage}_two", storage, 1)
    processes = [search.start(), search.start()]
    ends = [process.wait(timeout=PATIENCE) for process in processes]
    assert ends == [0, 0], search.said()
    search.finished()
    return f"{storage}, two identical searches at once: both end with 0, and {UNTIL} trials in all"


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


@contextlib.contextmanager
def served(folder: Path) -> Iterator[None]:
    """A block with a server of its own; its password must be in no file that a search wrote."""
    with postgres(folder / "server") as url:
        os.environ[URL] = url
        try:
            yield
        finally:
            del os.environ[URL]
    password = url.split("igap:")[1].split("@")[0].encode()
    written = [path for path in folder.glob("postgres*/**/*") if path.is_file()]
    assert written
    assert not [path for path in written if password in path.read_bytes()], "the password is in a file"


def main() -> int:
    """The exit code: 0 when nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=6, help="of each storage and number of workers")
    parser.add_argument("--storage", default="sqlite,journal,postgres")
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for storage in options.storage.split(","):
            try:
                with served(folder) if storage == "postgres" else contextlib.nullcontext():
                    for workers in map(int, options.workers.split(",")):
                        said = survive(folder, storage, kills_=options.kills, workers=workers, seed=options.seed)
                        print(said, flush=True)
                    print(two_at_once(folder, storage), flush=True)
            except PermissionError as error:
                print(f"{storage}: skipped: {error}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
