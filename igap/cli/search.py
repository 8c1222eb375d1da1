"""`igap search [overrides]`: the study for counterfactual prompts."""

import sys

from igap.cli.compose import compose_one, compose_search, data_folder, quote_text
from igap.errors import InputError

_USAGE = """\
usage: igap search head=HEAD [overrides]

Corrupted prompts for which a head's (9.6) or neuron's (L5.N1234) effect is as large as it gets, and how far to believe
it. Trials are kept in searches/HEAD-OBJECTIVE: the same command goes on where it was, also after a kill, and
search.until=N sets how many there are in the end.

  igap search head=1.2                                 the embedded model, the notebook's pair: seconds
  igap search head=9.6 model=gpt2-small objective=ig   the head's share on the joint path
  igap search head=1.2 search/space=relational         rules ("subject := IO") in place of words: they transfer
  igap search head=1.2 'search.space.slots.verb=[gave,sold,lent]' search.until=600
  igap search head=L2.N17 sign=drop aggregate=min      a neuron whose patch lowers F in every clean prompt

Exit codes: 0 done, 1 something failed, 2 bad input.

Keys and their defaults (groups: model, prompts, tracking, search/space, search/storage):

"""


def main(arguments: list[str]) -> int:
    """The exit code of `igap search`."""
    if not arguments or {"-h", "--help"} & set(arguments):
        sys.stdout.write(_USAGE + (data_folder("conf") / "search.yaml").read_text(encoding="utf-8"))
        return 0 if arguments else 2
    options = [argument for argument in arguments if argument.startswith("-")]
    if options:
        raise InputError(f"option: got {options[0]}, which igap search does not have. igap search --help lists keys.")
    config = compose_search([quote_text(argument) for argument in arguments])

    from rich.console import Console

    from igap import report, tracking
    from igap.counterfactual import job

    tracking.check(config.tracking)
    defaults = compose_one([]).config
    return job.run(config, defaults, report.terminal(), Console(stderr=True))
