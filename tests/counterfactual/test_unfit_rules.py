"""Rules of igap's own slots that have no fitting word in the answers: left out, and told with the reason."""

import pytest

from igap.cli import main

SETS = ["metric=logprob", 'prompts.answer=[" John"," Tom"]', 'prompts.distractor=" Mary"', "constraints.min_clean=null"]
LONG = ["metric=logprob", "prompts.answer=' John Mary'", "constraints.min_clean=null"]
ASKED = ["check", "search", "head=0.3", "clean.n=1", "heldout.n=0"]


@pytest.mark.parametrize(
    ("metric", "why"),
    [
        (["metric=logprob"], ""),
        (SETS, "which needs one answer"),
        (LONG, "whose word takes another number of tokens in a prompt"),
    ],
)
def test_a_rule_that_does_not_fit_the_answers_is_left_out_by_itself(metric, why, capsys):
    assert main([*ASKED, *metric]) == 0
    line = capsys.readouterr().out
    assert line.strip().endswith(f"; left out: subject: =IO, {why}" if why else "in searches/0.3-ap-logprob")
    assert ("2.52e+11 candidates" in line) == bool(why), "one option fewer of 126"
    assert "=S" not in line, "the subject is in the prompt"


def test_a_rule_that_was_written_is_refused(capsys):
    assert main([*ASKED, *SETS, 'search.space.slots.subject=["=keep","=IO"]']) == 2
    assert "search.space.slots.subject offers =IO, which needs one answer" in capsys.readouterr().err
