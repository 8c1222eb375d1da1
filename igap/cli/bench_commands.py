"""`igap bench`: the exam of the attribution methods.

Each command only parses; the work is done by a function that it imports when it runs.
"""

from pathlib import Path

import click

from igap.cli.parsing import Group, OneOf, Positive, Setting
from igap.cli.taken import sections_of, takes_overrides

_PLOTS = ["all", "none"]


@click.group(
    cls=Group,
    default="circuits",
    short_help="An exam of the attribution methods, on models whose right answer is known, or on your own.",
    examples=[
        ("igap bench", "every circuit, in under a minute"),
        ("igap bench circuits=and,or plots=none", "two of them, without pictures"),
        ("igap bench list", "what each circuit computes and teaches"),
        ("igap bench run model=smollm2 sites=heads", "a trained model, against exact activation patching"),
    ],
)
def bench() -> None:
    """Examines every attribution method: which rank wrongly, turn signs, miss what, and how far numbers are off."""


@bench.command(
    "circuits",
    short_help="On transformers with weights written by hand; also igap bench [NAME=VALUE]...",
)
@click.option("--circuits", cls=Setting, metavar="NAME,NAME", help="Names that igap bench list shows; default: all.")
@click.option(
    "--output",
    cls=Setting,
    metavar="FOLDER",
    default="runs/bench",
    help="Where bench.csv, bench.json and the pictures go; default: runs/bench.",
)
@click.option(
    "--plots", cls=Setting, type=OneOf(_PLOTS), default="all", help="A picture of every circuit; default: all."
)
def bench_circuits(circuits: str | None, output: str, plots: str) -> None:
    """Examines every attribution method on transformers with weights written by hand.

    Of each circuit the components that matter and their effects are known exactly. The table says how well each method
    ranks them; bench.csv and bench.json how far its numbers are off, which signs are wrong and what it costs.
    """
    from igap.bench import command

    names = None if circuits is None else [name.strip() for name in circuits.strip("[]").split(",") if name.strip()]
    command.examine(names, Path(output), plots=plots == "all")


@bench.command("list", short_help="What each circuit computes and teaches.")
def bench_list() -> None:
    """Says what each circuit computes and what it teaches about attribution methods."""
    from igap.bench import command

    command.list_circuits()


@bench.command(
    "run",
    short_help="On the model and prompts of a run, against exact activation patching.",
    arguments=[("KEY=VALUE", "as of igap run, which lists them: model, prompts, sites, metric, ig, batch_size, ...")],
    examples=[
        ("igap bench run", "the embedded model on the notebook's prompt pair"),
        ("igap bench run model=smollm2 sites=heads prompts.n=10", "means over ten generated pairs"),
    ],
    sections=sections_of("config_sections", "config"),
)
@click.option(
    "--top",
    metavar="N",
    type=Positive(),
    default=20,
    help="Components that count as those that matter: those with the largest |effect|; default: 20.",
)
@click.option("--plots", type=OneOf(_PLOTS), default="all", help="A picture of the largest effects; default: all.")
@takes_overrides
def bench_run(overrides: tuple[str, ...], top: int, plots: str) -> None:
    """Examines every attribution method on the model and the prompts of a run.

    The truth is activation patching of every component, noising and denoising. bench.csv, bench.json and a picture go
    to the folder bench in output.
    """
    from igap.bench import command
    from igap.cli.compose import compose_one
    from igap.cli.texts import quote_override

    composed = compose_one([quote_override(override, single=True) for override in overrides])
    command.examine_own(composed.config, top, plots=plots == "all")
