"""The command line. Hydra and OmegaConf are imported here only; `igap --help` imports nothing heavy.

Hydra composes and launches; before it does, every job is composed, validated and tokenised here, so that a mistake
costs one line and no time.
"""

import difflib
import importlib.metadata
import itertools
import logging
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igap.errors import InputError

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from igap.config import RunConfig
    from igap.records import Summary

USAGE = """\
igap: when do Integrated Gradients and activation patching agree about which heads and neurons matter, and why not?

usage: igap COMMAND [overrides]

commands
  run            one comparison of both methods; igap run -m KEY=A,B ... runs every combination
  sweep NAME     the combinations listed in sweeps/NAME.yaml
  run --help     lists every option, with examples

  igap run                                  the embedded model on the notebook's prompt pair, offline
  igap run baseline=zero ig.n_steps=200     another baseline, more steps
  igap run prompts.n=100                    means over 100 generated pairs, with intervals
  igap run model=gpt2-small                 GPT-2 small from the Hugging Face hub or its cache

exit codes: 0 done, 1 something failed, 2 bad input
"""

_COMMANDS = ("run", "sweep")
_PAIR_KEYS = ("prompts.clean", "prompts.corrupted", "prompts.answer", "prompts.distractor")
_TEXT_KEYS = ("output", "baseline.prompt", "curves.components", "ablation.components", "interactions", *_PAIR_KEYS)
_HERE = Path(__file__).parent

log = logging.getLogger("igap")


@dataclass(frozen=True)
class Outcome:
    """How one job ended."""

    overrides: tuple[str, ...]
    folder: Path
    summary: "Summary | None"
    """None when it failed."""
    bad_input: bool = False


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code of one command: 0 done, 1 something failed, 2 bad input, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = arguments[0] if arguments else "--help"
    try:
        if command in ("-h", "--help", "help"):
            _say(USAGE)
            return 0
        if command == "--version":
            _say(f"igap {importlib.metadata.version('igap')}\n")
            return 0
        if command not in _COMMANDS:
            raise InputError(
                f"command: got {command!r}, wanted one of {', '.join(_COMMANDS)}."
                f"{_nearest(command, _COMMANDS)} igap --help shows them."
            )
        return (_run if command == "run" else _sweep)(arguments[1:])
    except InputError as error:
        sys.stderr.write(f"igap: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("igap: interrupted; a run without summary.json is not finished.\n")
        return 130


def data_folder(name: str) -> Path:
    """The folder `conf` or `sweeps`: inside the installed package (wheel), or beside it (checkout, editable)."""
    packaged = _HERE / name
    return packaged if packaged.is_dir() else _HERE.parent / name


def _sweep(arguments: list[str]) -> int:
    """`igap sweep NAME [overrides]`: a multirun over the grid of sweeps/NAME.yaml; overrides replace its keys."""
    from omegaconf import OmegaConf

    files = {file.stem: file for file in sorted(data_folder("sweeps").glob("*.yaml"))}
    if not arguments or arguments[0] in ("-h", "--help"):
        _say(f"usage: igap sweep NAME [overrides]\n\nsweeps: {', '.join(files)} (in {data_folder('sweeps')})\n")
        return 0 if arguments else 2
    name, *overrides = arguments
    options = [override for override in overrides if override.startswith("-")]
    if options:
        raise InputError(f"option: got {options[0]}, which a sweep, many jobs at once, does not have. Try igap run.")
    if name not in files:
        raise InputError(f"sweep: got {name!r}, wanted one of {', '.join(files)}.{_nearest(name, list(files))}")
    grid = OmegaConf.to_container(OmegaConf.load(files[name]).hydra.sweeper.params)
    assert isinstance(grid, dict)
    given = {override.partition("=")[0].lstrip("+~") for override in overrides}
    choices = {str(key): ",".join(map(str, v)) if isinstance(v, list) else v for key, v in grid.items()}
    return _run(["-m", *(f"{key}={values}" for key, values in choices.items() if key not in given), *overrides])


def _run(arguments: list[str]) -> int:
    import hydra
    from hydra._internal.utils import get_args_parser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    arguments = [_quote_text(argument) for argument in arguments]
    arguments.sort(key=lambda argument: argument not in ("-m", "--multirun"))  # argparse takes it before overrides only
    parsed, unknown = get_args_parser().parse_known_args(arguments)
    unknown += ["--experimental-rerun"] if parsed.experimental_rerun else []
    if unknown:
        raise InputError(f"option: got {unknown[0]}, which igap run does not have. igap run --help lists what it has.")
    if parsed.help:
        arguments = ["--help"]  # whatever else is asked: help must not fail
    elif not (parsed.hydra_help or parsed.info or parsed.shell_completion):
        jobs = compose_jobs(
            parsed.overrides, multirun=parsed.multirun, config_name=parsed.config_name, config_dir=parsed.config_dir
        )
        if not parsed.cfg:
            _check(jobs, parsed.overrides)
    outcomes: list[Outcome] = []
    task = hydra.main(version_base="1.3", config_path=str(data_folder("conf")), config_name="config")(
        lambda config: outcomes.append(_job(config))
    )
    program, sys.argv = sys.argv, ["igap run", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises what goes wrong, where it would print it and exit
    try:
        task()
    except (HydraException, OmegaConfBaseException, OSError) as error:
        raise InputError(f"hydra: {_line(error)}") from error
    finally:
        sys.argv = program
        if parsed.multirun and outcomes:  # also when interrupted
            from igap import report

            report.show_sweep(_console(), [(o.overrides, o.summary, o.folder) for o in outcomes])
    failed = [outcome for outcome in outcomes if outcome.summary is None]
    return 0 if not failed else 2 if all(outcome.bad_input for outcome in failed) and not parsed.multirun else 1


def compose_jobs(
    overrides: Sequence[str], *, multirun: bool, config_name: str | None = None, config_dir: str | None = None
) -> "list[RunConfig]":
    """The checked config of every job these overrides ask for. Raises InputError on the first that cannot be."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    extra = [f"hydra.searchpath=[{Path(config_dir).resolve()}]"] if config_dir else []
    if config_dir and not Path(config_dir).is_dir():
        raise InputError(f"--config-dir: got {config_dir!r}, wanted a folder of config groups. Correct the path.")
    jobs: list[RunConfig] = []
    with initialize_config_dir(str(data_folder("conf")), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        groups = {name: set(loader.get_group_options(name)) for name in loader.list_groups("") if name != "hydra"}
        for group in Path(config_dir).iterdir() if config_dir else ():
            groups[group.name] = groups.get(group.name, set()) | {file.stem for file in group.glob("*.yaml")}
        parser = OverridesParser.create(loader)
        choices: list[list[str]] = []
        for text in overrides:
            try:
                override = parser.parse_override(text)
            except HydraException as error:
                reason = str(error).splitlines()[0]
                raise InputError(
                    f"{text.partition('=')[0]}: got {text!r}, which is no override ({reason}), wanted KEY=VALUE. "
                    "Quote values with special characters: KEY='\"some, text\"'."
                ) from None
            if override.is_sweep_override():
                values = list(override.sweep_string_iterator())
                choices.append([f"{override.get_key_element()}={value!s}" for value in values])
                if not multirun:
                    raise InputError(
                        f"{override.key_or_group}: got {len(values)} values ({', '.join(values)}), wanted one. "
                        "Add -m to run each of them, or quote a text that holds a comma."
                    )
            else:
                choices.append([text])
            _check_override(override, text, groups)
        for job in itertools.product(*choices):
            try:
                jobs.append(_parse(compose(config_name or "config", [*extra, *job])))
            except (HydraException, OmegaConfBaseException) as error:
                raise InputError(f"{' '.join(job) or 'config'}: {_line(error)}") from None
            _check_source(jobs[-1], job)
    return jobs


def _check_source(config: "RunConfig", overrides: Sequence[str]) -> None:
    """Raises InputError on a text for one pair in a run whose pairs come from elsewhere, where it would be ignored."""
    source = "prompts.n" if config.prompts.n is not None else "prompts.file"
    for key, _, value in (override.partition("=") for override in overrides):
        if key in _PAIR_KEYS and value != "null" and not config.prompts.given:
            raise InputError(
                f"{key}: got {value} together with {source}, wanted one of the two: the text belongs to a single "
                f"pair. Leave it out, or set {source}=null."
            )


def _check_override(override: Any, text: str, groups: dict[str, set[str]]) -> None:
    """Raises InputError on a group option or a key that does not exist."""
    from igap.config import field_at, keys

    key = override.key_or_group
    if override.is_delete():
        raise InputError(f"{key}: got a deletion ({text!r}); a run needs every key. Set another value: {key}=VALUE.")
    if key.split(".")[0] == "hydra" or key.startswith("hydra/"):
        return
    if key in groups:
        asked = [*override.sweep_string_iterator()] if override.is_sweep_override() else [override.value()]
        for option in asked:
            if key == "experiment" and option is None:
                continue
            if str(option) not in groups[key]:
                wanted = sorted(groups[key])
                raise InputError(
                    f"{key}: got {option!r}, wanted one of {', '.join(wanted)}.{_nearest(str(option), wanted)} "
                    "igap run --help lists every group."
                )
    elif field_at(tuple(key.split("."))) is None:
        raise InputError(
            f"{key}: got a key that no run has (in {text!r}).{_nearest(key, [*keys(), *groups])} "
            "igap run --help lists every key."
        )
    if override.is_add():
        raise InputError(f"{key}: got {text!r}, but every run has that key. Write {text.lstrip('+')!r} without the +.")


def _parse(config: "DictConfig") -> "RunConfig":
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue

    from igap.config import example, parse

    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        item = str(error.full_key)
        raise InputError(f"{item}: got nothing, wanted a value. Add {example(tuple(item.split('.')))}.") from None
    assert isinstance(values, dict)
    return parse({str(key): value for key, value in values.items()})


def _check(jobs: "list[RunConfig]", overrides: Sequence[str]) -> None:
    """Raises InputError on the first job that the tokenizer, the device or the output folder refuses."""
    from igap import pipeline, records, tracking
    from igap.notebook.jobs import configs

    for key, _, folder in (override.partition("=") for override in overrides):
        if key in ("hydra.run.dir", "hydra.sweep.dir"):  # before Hydra writes its config over that of a finished run
            records.check_unfinished(Path(folder))
    seen = set()
    for job in jobs:
        asked = job.model_dump_json(exclude={"output", "batch_size", "memory_gib"})
        if asked not in seen:
            pipeline.check(job)
            for other in configs(job).values() if job.study else ():
                pipeline.check(other)
            tracking.check(job)
            seen.add(asked)
    for output in {Path(job.output) for job in jobs}:
        records.check_writable(output)


def _job(config: "DictConfig") -> Outcome:
    """One job of a run or a multirun: compute, write to disk, log, show. Never raises but on interruption."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from rich.console import Console

    from igap import pipeline, records, report, tracking
    from igap.notebook import jobs

    hydra = HydraConfig.get()
    job, folder = tuple(hydra.overrides.task), Path(hydra.runtime.output_dir)
    multirun = folder.parent.name if hydra.mode == RunMode.MULTIRUN else None
    try:
        run = _parse(config)
        records.prepare(folder)
        progress = Console(stderr=True)
        work = jobs.run if run.study else pipeline.run
        result = work(run, lambda name: report.stage(progress, name))
        summary = records.write(result, folder)
    except InputError as error:
        log.error("%s", error)
        return Outcome(job, folder, None, bad_input=True)
    except Exception:
        log.exception("the run in %s failed", folder)
        return Outcome(job, folder, None)
    console = _console()
    report.show(console, result, folder)
    try:
        tracked = tracking.log(run, summary, folder, multirun=multirun)
    except Exception as error:
        log.warning("W&B did not take the run (%s: %s); everything is in %s", type(error).__name__, error, folder)
    else:
        console.print(f"W&B run: {tracked}" if tracked else "W&B: disabled", markup=False, soft_wrap=True)
    return Outcome(job, folder, summary)


def _quote_text(argument: str) -> str:
    """The override with a free text quoted for Hydra, whose grammar gives commas, brackets and edge spaces a meaning.

    Texts already quoted, and functions such as choice(...), stay as they are.
    """
    key, equals, value = argument.partition("=")
    if not equals or key.lstrip("+") not in _TEXT_KEYS or re.match(r"null$|(choice|shuffle|sort|tag|glob)\(", value):
        return argument
    if value[:1] in ("'", '"'):
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from hydra.errors import HydraException

        try:
            OverridesParser.create().parse_override(argument)
            return argument
        except HydraException:
            pass
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value.replace("${", r"\${"))
    escaped = re.sub(r"(\\+)$", r"\1\1", escaped)
    return f"{key}='{escaped}'"


def _nearest(name: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {found[0]}?" if found else ""


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _console() -> Any:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:  # a log file has no width to fold tables to
        console.width = 160
    return console


def _say(text: str) -> None:
    sys.stdout.write(text)


if __name__ == "__main__":
    sys.exit(main())
