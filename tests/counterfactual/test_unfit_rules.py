"""Rules of igap's own slots that need one answer of one token: left out where the answers are others, and told."""

import pytest

from igap.cli import main

SETS = ["metric=logprob", 'prompts.answer=[" John"," Tom"]', 'prompts.distractor=" Mary"', "constraints.min_clean=null"]
ASKED = ["check", "search", "head=0.3", "clean.n=1", "heldout.n=0"]


@pytest.mark.parametrize(("metric", "unfit"), [(["metric=logprob"], False), (SETS, True)])
def test_a_rule_that_does_not_fit_the_answers_is_left_out_by_itself(metric, unfit, capsys):
    assert main([*ASKED, *metric]) == 0
    line = capsys.readouterr().out
    assert ("; left out: subject: =IO, which needs one answer of one token" in line) == unfit
    assert ("2.52e+11 candidates" in line) == unfit, "one option fewer of 126"
    assert "=S" not in line, "the subject is in the prompt"


def test_a_rule_that_was_written_is_refused(capsys):
    assert main([*ASKED, *SETS, 'search.space.slots.subject=["=keep","=IO"]']) == 2
    assert "search.space.slots.subject offers =IO, which needs one answer" in capsys.readouterr().err
