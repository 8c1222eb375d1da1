"""First-order scores of fluency against finite differences of a run through plain hooks."""

import pytest
import torch
from counterfactual.objective.test_evaluator import HEAD, evaluated, some
from helpers.plain import Whole
from helpers.searched import PAIRS

from igap.counterfactual.objective.evaluator import Evaluator
from igap.counterfactual.objective.objective import Objective
from igap.counterfactual.spaces.substitution import bind_substitution, substitution_space
from igap.engine.activations import borrow


def difference_quotient(model, own, other, step=1e-4):
    """Mean log-probability of a prompt between two, each embedding and each token that is predicted mixed, by share."""
    shares = torch.tensor([step, -step], dtype=torch.float64)
    rows = torch.arange(len(own) - 1)
    with torch.no_grad():
        embedded = model.run_with_cache(torch.stack([own, other]), names_filter=["hook_embed"])[1]["hook_embed"]
        mixed = embedded[:1] + shares[:, None, None] * (embedded[1:] - embedded[:1])
        hooks = [("hook_embed", lambda old, hook: mixed)]
        said = model.run_with_hooks(torch.stack([own, own]), fwd_hooks=hooks)[:, :-1].log_softmax(-1)
    words = said[:, rows, own[1:]] + shares[:, None] * (said[:, rows, other[1:]] - said[:, rows, own[1:]])
    up, down = words.mean(1).tolist()
    return (up - down) / (2 * step)


def check_against_differences(model, found):
    """The scores of every option of every slot of a candidate."""
    space, sizes = found.bound.space, []
    anchor = some(space, 2)[-1]
    scores = found.fluency_scores(anchor)
    assert [len(score) for score in scores] == list(space.sizes)
    own = found.bound.tokens([anchor])[:, 0]
    for slot, score in enumerate(scores):
        others = found.bound.tokens([(*anchor[:slot], o, *anchor[slot + 1 :]) for o in range(len(score))])
        for option, value in enumerate(score.tolist()):
            slopes = [difference_quotient(model, a, b) for a, b in zip(own, others[:, option], strict=True)]
            assert value == pytest.approx(sum(slopes) / len(slopes), rel=1e-5, abs=1e-8)
            sizes.append(abs(value))
    assert max(sizes) > 0.1
    return scores


@pytest.mark.parametrize(
    ("architecture", "kind"), [("gpt2", "rules"), ("gpt2", "words"), ("gpt2", "substitute"), ("gemma", "words")]
)
def test_scores_of_fluency_are_finite_differences(small, architecture, kind):
    """Gemma scales its embeddings and turns queries and keys."""
    model = small(architecture)
    found = evaluated(model, HEAD, kind, 2)
    with Whole():  # Gemma's norms are float32 in transformers
        scores = check_against_differences(model, found)
        alone = evaluated(model, HEAD, kind, 2, batch_size=1).fluency_scores(some(found.bound.space, 2)[-1])
    torch.testing.assert_close(alone, scores)
    found.cost = 0.0
    Objective(("ap", "fluency")).first_order_scores(found, some(found.bound.space)[0], 1)
    assert found.cost == 3 * found.bound.n_corrupted, "a forward and a backward pass of every corrupted prompt"


def test_the_first_word_is_predicted_by_nothing(small, monkeypatch):
    model = small("gpt2")
    monkeypatch.setattr(model.cfg, "default_prepend_bos", False)
    with borrow(model):
        space = substitution_space(PAIRS[0], [0, 4], ["John", "cat", "milk"], None, model.tokenizer, prepend_bos=False)
        bound = bind_substitution(space, PAIRS[:1], model.tokenizer, prepend_bos=False)
        assert bound.first == 0
        check_against_differences(model, Evaluator(model, bound, HEAD))
