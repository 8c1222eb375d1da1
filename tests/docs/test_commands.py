"""Every command of the README and of the site's pages is one that igap takes: parsed, composed, validated, not run."""

import re
import shlex
from pathlib import Path

import click
import pytest

from igap.cli.commands import igap
from igap.cli.compose import compose_jobs, compose_multirun, compose_searches
from igap.cli.multirun import sweep_request
from igap.cli.settings import sweep_names
from igap.cli.texts import quote_override
from igap.sweep.plan import RejectedJob

ROOT = Path(__file__).parents[2]


def commands():
    """The arguments of each command in the blocks of bash, and the pages it stands on."""
    found = {}
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for block in re.findall(r"^ *```bash\n(.*?)^ *```", page.read_text(), flags=re.DOTALL | re.MULTILINE):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split("&&"):
                    words = shlex.split(part, comments=True)
                    if words[:1] == ["igap"] and "--help" not in words:
                        found.setdefault(tuple(words[1:]), set()).add(str(page.relative_to(ROOT)))
    return found


COMMANDS = commands()


def parsed(words):
    """The name of a command, its last word, and what click gives its function."""
    context = igap.make_context("igap", list(words))
    while isinstance(context.command, click.Group):
        name, command, arguments = context.command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, arguments, parent=context)  # a parent: click keeps the names of --help
    return context.info_name, context.params


def test_there_are_commands_of_every_kind():
    assert {"run", "sweep", "search", "check", "compare"} <= {words[0] for words in COMMANDS if words}


@pytest.mark.parametrize("words", sorted(COMMANDS), ids=" ".join)
def test_igap_takes_the_command(words):
    name, given = parsed(words)
    if name == "run":
        overrides = list(map(quote_override, given["overrides"]))
        jobs = compose_jobs(overrides, multirun=given["multirun"])
        assert not [job.reason for job in jobs if isinstance(job, RejectedJob)]
    elif name == "sweep":
        compose_multirun(sweep_request(given["name"], given["overrides"]).overrides, sweep=given["name"])
    elif name == "search":
        preset = next(iter(set(given["overrides"][:1]) & set(sweep_names("search"))), None)
        overrides = [quote_override(text) for text in given["overrides"] if text != preset]
        compose_searches(overrides, preset, multirun=given["multirun"])
