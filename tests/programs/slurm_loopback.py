"""Do sweeps and searches run on SLURM? Brings up one of one node on this machine, on loopback, and runs them on it.

    python tests/programs/slurm_loopback.py

Debian's packages are unpacked into a temporary folder and nothing is installed; where they cannot be had, or where the
daemons do not come up, it says why and ends with 0. A sweep is run in packs; one of its tasks is killed with SIGKILL;
the same command again must finish it. Two workers share a search; one of two is killed, and the command does the rest.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from programs.search_survival import BATCH, Searching
from programs.survival import PATIENCE, Sweep, descendants, reference_of, wait_for

PACKAGES = "slurmctld slurmd slurm-client slurm-wlm-basic-plugins munge libmunge2 libhwloc15".split()
CONFIG = """\
ClusterName=igap
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/none
CredType=cred/none
PluginDir={plugins}
StateSaveLocation={work}/state
SlurmdSpoolDir={work}/spool
SlurmctldPidFile={work}/slurmctld.pid
SlurmdPidFile={work}/slurmd.pid
SlurmctldLogFile={work}/slurmctld.log
SlurmdLogFile={work}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
KillWait=3
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=60 State=UP
"""


class CannotBeHad(Exception):
    """No SLURM on this machine."""


def unpack(folder: Path) -> Path:
    """Debian's packages below `folder`/root."""
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        raise CannotBeHad("this is no Debian: no apt-get, no dpkg")
    if os.geteuid() != 0:
        raise CannotBeHad("its daemons run as root here, and this is another user")
    debs = folder / "debs"
    debs.mkdir()
    for command in (["apt-get", "update", "-qq"], ["apt-get", "download", "-qq", *PACKAGES]):
        done = subprocess.run(command, cwd=debs, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotBeHad(f"{' '.join(command[:2])}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    for deb in debs.glob("*.deb"):
        subprocess.run(["dpkg", "-x", deb, folder / "root"], check=True)
    return folder / "root"


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """A SLURM of one node, whose commands are on PATH. Raises CannotBeHad."""
    root, work = unpack(folder), folder / "slurm"
    libraries = root / "usr" / "lib" / "x86_64-linux-gnu"
    for name in ("state", "spool"):
        (work / name).mkdir(parents=True)
    plugins = libraries / "slurm-wlm"
    (work / "slurm.conf").write_text(CONFIG.format(host=socket.gethostname(), plugins=plugins, work=work))
    os.environ["LD_LIBRARY_PATH"] = f"{libraries}:{plugins}"
    os.environ["SLURM_CONF"] = str(work / "slurm.conf")
    os.environ["PATH"] = f"{root / 'usr' / 'bin'}:{os.environ['PATH']}"
    daemons = []
    try:
        for command in (
            [root / "usr/sbin/slurmctld-wlm", "-D", "-c"],
            [root / "usr/sbin/slurmd-wlm", "-D", "-d", root / "usr/sbin/slurmstepd-wlm"],
        ):
            daemons.append(
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
            )
        deadline = time.monotonic() + 30
        while (
            "idle"
            not in subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, check=False).stdout
        ):
            if time.monotonic() > deadline:
                raise CannotBeHad(f"its node does not become idle; {work}/slurmctld.log says why")
            time.sleep(0.5)
        yield
    finally:
        subprocess.run(["scancel", "--user=root"], capture_output=True, check=False)
        time.sleep(1)
        for daemon in reversed(daemons):
            daemon.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
            daemon.kill()


def tasks() -> list[int]:
    """Processes of igap that SLURM has started on this node."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if b"submitit.core._submit" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
    return [pid for pid in found if not set(descendants(pid)) & set(found)]


def main() -> int:
    """The exit code: 0 when the sweeps came out as without SLURM, or where there is none to be had."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            with slurm(folder):
                searches(folder)
                return sweeps(folder)
        except CannotBeHad as error:
            print(f"skipped: {error}")
            return 0


def searches(folder: Path) -> None:
    """Runs a search of two workers as it is, and one of which a worker is killed."""
    for name, killing in (("whole-search", False), ("killed-search", True)):
        search = Searching(folder / name, "journal", workers=1, until=400)
        search.arguments += ["-m", "search.worker=range(2)", "hydra/launcher=submitit_slurm"]
        search.arguments += ["hydra.launcher.cpus_per_task=1"]
        process = search.start()
        if killing:
            assert wait_for(
                lambda search=search: len(search.trials()) > 2 * BATCH and len(tasks()) == 2, process, PATIENCE
            )
            os.kill(tasks()[0], signal.SIGKILL)
        assert process.wait(PATIENCE) == 0, search.said()
        search.finished()
        logs = [log.read_text() for log in search.folder.glob("searches/.workers/.submitit/*/*_log.err")]
        assert len(logs) == 2, f"{len(logs)} workers"
        what = "one of two workers killed" if killing else "two workers"
        print(f"SLURM: a search, {what}: 400 trials, no candidate twice, one report", flush=True)


def sweeps(folder: Path) -> int:
    """Runs a sweep as it is, and one whose task is killed."""
    reference = reference_of(folder)
    options = ["hydra/launcher=submitit_slurm", "hydra.launcher.pack=3", "hydra.launcher.cpus_per_task=1"]
    whole = Sweep(folder / "whole")
    whole.arguments += options
    code, said = whole.to_the_end()
    assert code == 0, said
    whole.check()
    assert whole.results() == reference
    results = list((whole.runs / ".submitit").glob("*/*_result.pkl"))
    assert len(results) == 4, f"12 jobs in packs of 3 are 4 tasks, not {len(results)}"
    print(f"SLURM: 12 jobs in {len(results)} tasks of 3, all results bit for bit those without SLURM", flush=True)

    killed = Sweep(folder / "killed")
    killed.arguments += options
    process = killed.start()
    assert wait_for(lambda: any(killed.runs.glob("*/summary.json")), process, PATIENCE), process.communicate()[0]
    victims = tasks()
    assert victims, "no task of SLURM is running"
    os.kill(victims[0], signal.SIGKILL)
    said, _ = process.communicate(timeout=PATIENCE)
    killed.check()
    n_before, first = len(killed.seen), process.returncode
    code, said = killed.to_the_end()
    assert code == 0, said
    killed.check()
    assert killed.results() == reference
    print(
        f"SLURM: a task killed: exit code {first} with {n_before} of 12 jobs finished; the same command again: all 12"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
