"""Does anything surprise? Draws hostile inputs of every kind, gives each to a process of its own, judges its answer.

    python tests/programs/fuzz.py [--count 300] [--seconds 1200] [--seed 0] [--kinds settings,grids,...] [--all]

An input is answered when the process ends in time with exit code 0, 1 or 2, prints no traceback, refuses (2) in lines
that each say what is wrong, and leaves the finished runs beside it as they were. A kind is a function that yields
cases; the kinds are drawn from in turn. Each case is a fork of one process that has imported everything, so that it
costs what it does and not torch's import. Ends with exit code 1 when an input was not answered, and shows those.
"""

import argparse
import collections
import contextlib
import hashlib
import importlib
import itertools
import os
import random
import resource
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Damage = Callable[[Path], object]
"""Does something to the file at a path."""
PATIENCE = 90.0
"""Seconds after which an input hangs: far above the 20 that a refusal may take, because machines are busy."""
MEMORY = 12 * 2**30
"""Bytes of address space of a case; torch maps some 3 GiB of it."""
N_LINES = 4
"""Lines that a refusal or a failure may have: one a mistake; an analysis or W&B may add one."""

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # the generators of damage stand beside the tests that use them


@dataclass(frozen=True)
class Case:
    """One hostile input."""

    what: str
    act: Callable[[], int]
    """Gives the input to igap, in a process of its own whose folder is the case's, and returns the exit code."""
    limit: float = PATIENCE
    long: bool = False
    """Whether a valid value of this kind may compute for longer than `limit`."""


def command(*arguments: str, what: str = "", long: bool = False) -> Case:
    """A command line."""

    def act() -> int:
        from igap import cli

        return cli.main(list(arguments))

    return Case(what or shlex.join(cut(argument) for argument in arguments), act, long=long)


def cut(text: str, n: int = 120) -> str:
    """Text that fits a line."""
    return text if len(text) <= n else f"{text[:n]}... ({len(text)} characters)"


@dataclass(frozen=True)
class Answer:
    """What a process made of it."""

    code: int | None
    """None: it had to be ended."""
    seconds: float
    said: str
    fault: str | None
    """None: answered."""


def give(case: Case, folder: Path) -> Answer:
    """Runs the case in a fork, in `folder`, and judges it."""
    output = folder / ".output"
    start = time.monotonic()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.chdir(folder)
        null, into = os.open(os.devnull, os.O_RDONLY), os.open(output, os.O_WRONLY | os.O_CREAT)
        for source, target in ((null, 0), (into, 1), (into, 2)):
            os.dup2(source, target)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        code = 70
        try:
            code = case.act()
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    code = None
    while time.monotonic() - start < case.limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)  # whatever it has left behind, W&B's service too
    if code is None:
        os.waitpid(child, 0)
    said = output.read_text(errors="replace")
    return Answer(code, time.monotonic() - start, said, fault_of(case, code, said))


def fault_of(case: Case, code: int | None, said: str) -> str | None:
    """What is wrong with the answer."""
    lines = [line for line in said.splitlines() if line.strip()]
    if "Traceback (most recent call last)" in said:
        return f"a traceback of {len(lines)} lines"
    if code is None:
        return None if case.long else f"no answer within {case.limit:.0f} s"
    if code not in (0, 1, 2):
        return f"exit code {code}"
    if code == 2 and len(lines) > N_LINES:
        return f"a refusal of {len(lines)} lines"
    if code == 2 and not lines:
        return "a refusal without a word"
    if any(len(line) > 3000 for line in lines):
        return f"a line of {max(map(len, lines))} characters"
    return None


def contents(folder: Path) -> dict[str, str]:
    """The content of all that lies in `folder`, by name."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and "wandb" not in path.parts
    }


SHARE = 0.02
"""Of the ways to damage a checkpoint, some thousands, those that are tried."""
QUICK = ("device=cpu", "tracking=disabled", "sites=heads", "ig.n_steps=2", "explain=false", "curves.components=1.2",
         "curves.alphas=[0,0.5,1]", "ablation=zero", "ablation.components=0.5", "ablation.n=8", "ablation.controls=1",
         "ablation.reference_n=8", "baseline.n=8")  # fmt: skip
"""A run of seconds that has every analysis whose settings can be hostile."""
READERS = (
    *(("compare", "runs"), ("status", "runs/few"), ("verify", "runs"), ("sync", "runs"), ("store", "runs/few")),
    ("store", "runs/few", "--prune"),
    ("check", "-m", "ig.n_steps=2,4", "sweep=few"),
)
"""The commands that read finished runs."""
SMALL_SEARCH = ("head=1.2", "device=cpu", "tracking=disabled", "search.until=16", "search.control=8", "clean.n=1",
                "heldout.n=2", "full_run=false")  # fmt: skip


def settings(scratch: Path, rng: random.Random) -> Iterator[Case]:
    """Each key of a run and of a search with each value, first checked, then run as well."""
    from helpers.hostile_values import NUMBERS, TEXTS

    from igap.config import RunConfig, keys
    from igap.counterfactual.config import SearchConfig

    run_keys, search_keys = keys(RunConfig), keys(SearchConfig)
    choices = [("run", key) for key in run_keys] + [("search", key) for key in search_keys]
    cases = list(itertools.product(choices, (*TEXTS, *NUMBERS)))
    rng.shuffle(cases)
    for (program, key), value in cases:
        given = f"{key}={value}"
        if program == "run":
            base = [entry for entry in QUICK if entry.partition("=")[0] != key]
            begins = ("run",) if rng.random() < 0.5 else ("check",)
            yield command(*begins, *base, given, long=begins[0] == "run")
        else:
            base = [entry for entry in SMALL_SEARCH if entry.partition("=")[0] != key]
            begins = ("search",) if rng.random() < 0.5 else ("check", "search")
            yield command(*begins, *base, given, long=begins[0] == "search")


def grids(scratch: Path, rng: random.Random) -> Iterator[Case]:
    """Sweeps of absurd size, Hydra's sweep syntax, launchers that are not there."""
    from helpers.hostile_values import GRID_OVERRIDES

    cases = list(GRID_OVERRIDES)
    rng.shuffle(cases)
    for override in cases:
        for before in (("check", "-m"), ("run", "-m"), ("search", "-m")):
            base = SMALL_SEARCH if before[0] == "search" else QUICK
            key = override.partition("=")[0]
            others = [entry for entry in base if entry.partition("=")[0] != key]
            yield command(*before, *others, override, long=before[0] != "check")


def prompt_files(scratch: Path, rng: random.Random) -> Iterator[Case]:
    """Prompt files that a spreadsheet, pandas or a mistake has made, under names that shells and parsers stumble on."""
    from helpers.hostile_values import FILE_NAMES, PROMPT_FILES

    cases = list(itertools.product(PROMPT_FILES.items(), FILE_NAMES))
    rng.shuffle(cases)
    for (what, (suffix, content, _)), stem in cases:

        def act(name: str = stem + suffix, content: bytes = content) -> int:
            from igap import cli

            Path(name).write_bytes(content)
            return cli.main(["check", f"prompts.file={name}"])

        yield Case(f"a file of prompts, {what}, named {stem + suffix!r}", act)


def checkpoints(scratch: Path, rng: random.Random) -> Iterator[Case]:
    """Every field of a checkpoint's files with every value: two families, a run of each."""
    from helpers.checkpoints import save_checkpoint
    from helpers.damage import damaged_checkpoints

    for architecture in rng.sample(("gpt2", "llama", "gpt_neox"), 3):
        whole = made_by(lambda name=architecture: save_checkpoint(name, 1, Path()), scratch / architecture)
        for what, copy in damaged_checkpoints(whole, scratch / "work"):
            if rng.random() > SHARE:
                continue

            def act(copy: Path = copy) -> int:
                from igap import cli

                own = [entry for entry in QUICK if not entry.startswith(("ablation", "curves"))]
                return cli.main(
                    ["run", "model=hf", f"model.name={copy}", *own, "curves.components=none", "prompts.min_gap=0"]
                )

            yield Case(f"{architecture}, {what}", act)


def results(scratch: Path, rng: random.Random) -> Iterator[Case]:
    """Finished runs, files of one of which are damaged, read by every command that reads them."""
    from helpers.damaged_results import damaged, damages

    grid = [entry for entry in QUICK if not entry.startswith("ig.n_steps=")]
    finished = made(scratch / "finished", ["run", "-m", *grid, "ig.n_steps=2,3", "sweep=few"]) / "runs"
    one, other = sorted(path.parent.relative_to(finished) for path in finished.rglob("summary.json"))
    cases = list(itertools.product(damages(finished / one), READERS))
    rng.shuffle(cases)
    for damage, reader in cases:

        def act(damage: Any = damage, reader: tuple[str, ...] = reader) -> int:
            from igap import cli

            shutil.copytree(finished, "runs")
            shutil.rmtree(Path("runs") / one)
            damaged(finished / one, Path("runs") / one, damage)
            before = contents(Path("runs") / other)
            code = cli.main([*reader])
            assert contents(Path("runs") / other) == before, "a finished run has changed"
            return code

        yield Case(f"{shlex.join(reader)} after {damage.description}", act)


def studies(scratch: Path, rng: random.Random) -> Iterator[Case]:
    """Files of a search that are cut, overwritten or of something else, and the same search again."""
    for storage in ("sqlite", "journal"):
        finished = made(scratch / storage, ["search", *SMALL_SEARCH, f"search/storage={storage}"])
        files = [path.relative_to(finished) for path in sorted(finished.rglob("*")) if path.is_file()]
        cases = list(itertools.product(files, damages()))
        rng.shuffle(cases)
        for file, (what, damage) in cases:

            def act(whole: Path = finished, file: Path = file, damage: Damage = damage, storage: str = storage) -> int:
                from igap import cli

                shutil.copytree(whole, ".", dirs_exist_ok=True, symlinks=True)
                damage(file)
                study = next(Path("searches").rglob("study.[dj]*"), None)
                before = (
                    study.read_bytes() if study is not None and study.is_file() and not study.is_symlink() else None
                )
                code = cli.main(["search", *SMALL_SEARCH, f"search/storage={storage}", "search.until=24"])
                assert code != 2 or before is None or study.read_bytes() == before, "what was refused has changed"
                return code

            yield Case(f"search of 8 more trials after {file} was {what}", act)


def damages() -> list[tuple[str, Damage]]:
    """What can happen to any file: how it is said, and what does it."""

    def written(content: bytes) -> Damage:
        return lambda path: path.write_bytes(content)

    def instead(make: Damage) -> Damage:
        def act(path: Path) -> None:
            path.unlink()
            make(path)

        return act

    def cut_to(share: float) -> Damage:
        return lambda path: os.truncate(path, int(path.stat().st_size * share))

    return [
        ("emptied", written(b"")),
        ("cut to a half", cut_to(0.5)),
        ("cut by one byte", lambda path: os.truncate(path, max(0, path.stat().st_size - 1))),
        ("filled with zeros", lambda path: path.write_bytes(b"\0" * path.stat().st_size)),
        ("overwritten by a text", written(b"hello\n")),
        ("overwritten by nested lists", written(b"[" * 100_000)),
        ("followed by garbage", lambda path: path.write_bytes(path.read_bytes() + b"\xff\xfe{")),
        ("replaced by a folder", instead(Path.mkdir)),
        ("replaced by a FIFO", instead(os.mkfifo)),
        ("replaced by a dangling link", instead(lambda path: path.symlink_to("nowhere"))),
        ("replaced by a link to itself", instead(lambda path: path.symlink_to(path.name))),
        ("replaced by /dev/zero", instead(lambda path: path.symlink_to("/dev/zero"))),
        ("removed", Path.unlink),
    ]


def made(folder: Path, arguments: list[str]) -> Path:
    """The folder in which this command has been run; it must succeed."""
    return made_by(command(*arguments).act, folder)


def made_by(act: Callable[[], object], folder: Path) -> Path:
    """The folder in which this has been done, by a process of its own."""
    folder.mkdir(parents=True)
    answer = give(Case("", lambda: int(act() or 0), limit=10 * PATIENCE), folder)
    assert answer.code == 0, answer.said
    (folder / ".output").unlink()
    return folder


def calls(scratch: Path, rng: random.Random) -> Iterator[Case]:
    """Every parameter of every public function with every value: taken, or refused with an InputError of one line."""
    from helpers.public_calls import RESULTS, public

    runs = made(scratch / "finished", ["run", *QUICK]) / "runs"
    [finished] = (path.parent for path in runs.rglob("summary.json"))
    # Results are what igap makes and a user only reads: the tests check the types of their fields.
    cases = [
        (name, parameter) for name, parameters in public().items() if name not in RESULTS for parameter in parameters
    ]
    rng.shuffle(cases)
    for name, parameter in cases:

        def act(name: str = name, parameter: str = parameter) -> int:
            from helpers import handmade, public_calls
            from transformers import AutoModelForCausalLM

            import igap

            answers = []
            model = handmade.one_still_head(Path())
            call = public_calls.calls(model, Path(), Path(), finished)[name]
            for what, value in public_calls.hostile(AutoModelForCausalLM.from_pretrained(".")).items():
                if what in public_calls.takes(name, parameter):
                    continue  # some are long computations
                try:
                    call.changed(**{parameter: value})
                    answers.append(f"{what}: taken")
                except igap.InputError as error:
                    answers.append(f"{what}: refused" + (" in several lines" if "\n" in str(error) else ""))
                except Exception as error:
                    answers.append(f"{what}: {type(error).__name__}: {error}")
            wrong = [answer for answer in answers if not answer.endswith(": refused")]
            sys.stdout.write("\n".join(wrong))
            return 70 if wrong else 0

        yield Case(f"{name}({parameter}=...)", act)


KINDS: dict[str, Callable[[Path, random.Random], Iterator[Case]]] = {
    kind.__name__: kind for kind in (settings, grids, prompt_files, checkpoints, results, studies, calls)
}


def main() -> int:
    """0 when every input was answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="inputs in all")
    parser.add_argument("--seconds", type=float, default=1200, help="no input is begun after these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS), help="of %(default)s")
    parser.add_argument("--all", action="store_true", help="print every input with its answer, not only the faults")
    asked = parser.parse_args()
    load()
    start = time.monotonic()
    tried: collections.Counter[str] = collections.Counter()
    answered: collections.Counter[str] = collections.Counter()
    faults: list[str] = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        kinds = {}
        for kind in asked.kinds.split(","):
            (Path(scratch) / kind).mkdir()
            kinds[kind] = KINDS[kind](Path(scratch) / kind, random.Random(f"{asked.seed} {kind}"))
        while kinds and sum(tried.values()) < asked.count and time.monotonic() - start < asked.seconds:
            for kind in list(kinds):
                case = next(kinds[kind], None)
                if case is None:
                    del kinds[kind]
                    continue
                folder = Path(tempfile.mkdtemp(dir=scratch))
                answer = give(case, folder)
                shutil.rmtree(folder, ignore_errors=True)
                tried[kind] += 1
                answered[kind] += answer.fault is None
                if answer.fault or asked.all:
                    line = f"{kind}: {cut(case.what, 300)} -> {answer.fault or f'exit code {answer.code}'}"
                    print(f"{line} ({answer.seconds:.1f} s)\n{indented(answer.said)}", flush=True)
                faults += [f"{kind}: {case.what}"] if answer.fault else []
    for kind, n in tried.items():
        print(f"{kind:12} {n:5} tried {answered[kind]:5} answered")
    total = sum(tried.values())
    print(f"{'all':12} {total:5} tried {total - len(faults):5} answered, {time.monotonic() - start:.0f} s")
    return 1 if faults else 0


def load() -> None:
    """Imports what every case needs, so that a fork has it; nothing of torch may run before a fork."""
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["WANDB_MODE"] = "offline"
    for name in (
        "cli.run",
        "cli.multirun",
        "cli.search",
        "pipeline",
        "output.disk",
        "counterfactual.runner",
        "models.load",
    ):
        importlib.import_module(f"igap.{name}")


def indented(said: str, n: int = 12) -> str:
    """The last lines of what a process said."""
    lines = [cut(line, 240) for line in said.splitlines() if line.strip()]
    return "\n".join(f"    {line}" for line in ([f"({len(lines) - n} lines)"] if len(lines) > n else []) + lines[-n:])


if __name__ == "__main__":
    sys.exit(main())
