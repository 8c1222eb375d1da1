"""The metrics: F, one number of the logits after the last token, or after each of the last ones.

A metric is one class here, which has its name, its unit and its definition, and one object in `METRICS`. A method takes
the object, its name, or any function of logits `[row, vocab]` and the pair's token ids:
`activation_patching(model, pair, metric=igap.metrics.KL())`. An object is a function of logits too.

Where an answer is several tokens, those before its last follow the prompt, and F is read at several positions
(`TokenPair.n_read`): a metric that can has a second function, which sees the logits of all of them.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from igap.engine.token_sets import TokenSets, logit_diff
from igap.errors import InputError, short_repr
from igap.inputs.prompts import TokenPair
from igap.vocabulary import LEAST_ON_CLEAN, MetricName

__all__ = ["JS", "KL", "LogProb", "Logit", "LogitDiff", "Prob", "ProbDiff"]


@dataclass(frozen=True, eq=False)
class Known:
    """What a metric knows of its pairs."""

    answer: TokenSets
    """Right tokens, nearly always one a pair; the last ones of answers of several tokens."""
    distractor: TokenSets | None
    """Wrong ones; None where they are words of several tokens."""
    clean: Float[Tensor, "pair vocab"] | None = None
    """Log-probabilities after the clean prompt; None where no metric asks for them."""
    pairs: tuple[TokenPair, ...] = ()
    """The pairs, which functions of the caller's are told."""

    def select(self, few: list[int]) -> "Known":
        """What is known of these pairs alone."""
        clean, wrong = self.clean, self.distractor
        return Known(
            self.answer.select(few),
            None if wrong is None else wrong.select(few),
            None if clean is None else clean[few],
            tuple(self.pairs[pair] for pair in few),
        )

    @property
    def forced(self) -> Int[Tensor, "pair token"]:
        """The tokens of each answer before its last."""
        return self.answer.ids.new_tensor([pair.forced for pair in self.pairs])


class Metric(ABC):
    """F as a function of logits. Two objects of one class are one metric."""

    name: str
    """As `metric=` takes it."""
    unit: str
    """F's, which effects, gaps and completeness deltas have."""
    takes_several = False
    """Whether F is known of answers of several tokens."""

    @property
    def at_minimum(self) -> bool:
        """Whether F(clean) = 0 is its least value, so that its gradient there is 0."""
        return self.name in LEAST_ON_CLEAN

    @abstractmethod
    def of(self, logits: Float[Tensor, "pair *row vocab"], known: Known) -> Float[Tensor, "pair *row"]:
        """F of every row of each pair. Differentiable."""

    def of_several(
        self,
        logits: Float[Tensor, "pair *row token vocab"],  # noqa: ARG002 - the interface of those that take them
        known: Known,  # noqa: ARG002
    ) -> Float[Tensor, "pair *row"]:
        """F of answers of several tokens, from the logits that each token follows."""
        raise AssertionError(f"encode_pair refuses such answers with {self.name}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class _OfAnswer(Metric):
    """A metric of the answer alone."""

    def __call__(self, logits: Float[Tensor, "*row vocab"], answer: int | Sequence[int]) -> Float[Tensor, "*row"]:
        """F of each row of logits; `answer` is a token's id, or those of several right tokens."""
        right = _set_of(logits, "answer", answer)
        return self.of(logits[None], Known(right, right))[0]


class _OfBoth(Metric):
    """A metric of answer and distractor."""

    def __call__(
        self, logits: Float[Tensor, "*row vocab"], answer: int | Sequence[int], distractor: int | Sequence[int]
    ) -> Float[Tensor, "*row"]:
        """F of each row of logits; `answer` and `distractor` are ids of tokens, one or several each."""
        right, wrong = _set_of(logits, "answer", answer), _set_of(logits, "distractor", distractor)
        if both := set(right.ids[0].tolist()) & set(wrong.ids[0].tolist()):
            raise InputError(f"distractor: got token {min(both)}, which is an answer too, wanted others. Take it out.")
        return self.of(logits[None], Known(right, wrong))[0]


class _OfDistributions(Metric):
    """A metric of the whole distribution beside the clean one."""

    def __call__(self, logits: Float[Tensor, "*row vocab"], clean: Float[Tensor, " vocab"]) -> Float[Tensor, "*row"]:
        """F of each row of logits; `clean` are the logits after the clean prompt."""
        if clean.shape != logits.shape[-1:]:
            raise InputError(
                f"clean: got logits {list(clean.shape)} beside logits {list(logits.shape)}, wanted those of one "
                f"prompt, {list(logits.shape[-1:])}."
            )
        ids = TokenSets.of([[0]], logits.device)  # which it does not read
        return self.of(logits[None], Known(ids, ids, clean[None].log_softmax(-1)))[0]


def _set_of(logits: Tensor, name: str, tokens: int | Sequence[int]) -> TokenSets:
    """The set of one pair. Raises InputError on an empty one, and on what is no token of these logits."""
    ids, n_tokens = list(tokens) if isinstance(tokens, Sequence) else [tokens], logits.shape[-1]
    known = all(isinstance(token, int) and 0 <= token < n_tokens for token in ids)
    if not ids or not known or len(set(ids)) < len(ids):
        raise InputError(
            f"{name}: got {short_repr(tokens)}, wanted the id of a token of these logits, or several, each once: 0 to "
            f"{n_tokens - 1}. Take them from the model's tokenizer."
        )
    return TokenSets.of([ids], logits.device)


class LogitDiff(_OfBoth):
    """Logit of the answer minus logit of the distractor, in logits; of sets, their means. The default.

    Above 0 where the answer is the likelier one. Adding a number to all logits changes nothing.

    Example:
        >>> import torch, igap
        >>> float(igap.metrics.LogitDiff()(torch.tensor([1.0, 3.0, 0.5]), answer=1, distractor=0))
        2.0
    """

    name, unit = "logit_diff", "logits"

    def of(self, logits: Tensor, known: Known) -> Tensor:
        """Return the difference of means."""
        assert known.distractor is not None
        return logit_diff(logits, known.answer, known.distractor)


class Logit(_OfAnswer):
    """Logit of the answer, in logits; of a set, the mean.

    Its zero means nothing: every logit may be shifted.

    Example:
        >>> import torch, igap
        >>> float(igap.metrics.Logit()(torch.tensor([1.0, 3.0, 0.5]), answer=1))
        3.0
    """

    name, unit = "logit", "logits"

    def of(self, logits: Tensor, known: Known) -> Tensor:
        """Return the mean of the answers' logits."""
        return known.answer.mean(logits)


class LogProb(_OfAnswer):
    """Log-probability of the answer, in nats, at most 0; of a set, the logarithm of the sum of probabilities.

    Of an answer of several tokens it is the sum over them of log p(token | prompt and the answer's tokens before it).

    Example:
        >>> import torch, igap
        >>> round(float(igap.metrics.LogProb()(torch.tensor([1.0, 3.0, 0.5]), answer=1)), 4)
        -0.1967
    """

    name, unit, takes_several = "logprob", "nats", True

    def of(self, logits: Tensor, known: Known) -> Tensor:
        """Return the logarithm of the answers' probability."""
        return known.answer.logsumexp(logits.log_softmax(-1))

    def of_several(self, logits: Tensor, known: Known) -> Tensor:
        """Return the sum of the tokens' log-probabilities."""
        logprobs = logits.log_softmax(-1)
        return known.answer.logsumexp(logprobs[..., -1, :]) + at_forced(logprobs, known)


class Prob(_OfAnswer):
    """Probability that the answer comes next, from 0 to 1; of a set, the sum.

    Example:
        >>> import torch, igap
        >>> round(float(igap.metrics.Prob()(torch.tensor([1.0, 3.0, 0.5]), answer=1)), 4)
        0.8214
    """

    name, unit = "prob", "probability"

    def of(self, logits: Tensor, known: Known) -> Tensor:
        """Return the sum of the answers' probabilities."""
        return known.answer.total(logits.softmax(-1))


class ProbDiff(_OfBoth):
    """Probability of the answer minus that of the distractor, from -1 to 1; of sets, their sums.

    Example:
        >>> import torch, igap
        >>> round(float(igap.metrics.ProbDiff()(torch.tensor([1.0, 3.0, 0.5]), answer=1, distractor=[0, 2])), 4)
        0.6428
    """

    name, unit = "prob_diff", "probability"

    def of(self, logits: Tensor, known: Known) -> Tensor:
        """Return the difference of sums."""
        assert known.distractor is not None
        probabilities = logits.softmax(-1)
        return known.answer.total(probabilities) - known.distractor.total(probabilities)


class KL(_OfDistributions):
    """KL(clean || here) = sum of p (log p - log q) over the vocabulary, in nats, at least 0.

    p is the next token's distribution after the clean prompt and q that here. 0 after the clean prompt, where its
    gradient is 0 too; so the gap F(clean) - F(corrupted) is negative, and effects of noising are positive.

    Example:
        >>> import torch, igap
        >>> clean = torch.tensor([1.0, 3.0, 0.5])
        >>> rows = torch.stack([clean, torch.zeros(3)])
        >>> [round(value, 4) + 0.0 for value in igap.metrics.KL()(rows, clean).tolist()]
        [0.0, 0.511]
    """

    name, unit = "kl", "nats"

    def of(self, logits: Tensor, known: Known) -> Tensor:
        """Return the divergence."""
        clean = _beside(logits, known)
        return (clean.exp() * (clean - logits.log_softmax(-1))).sum(-1)


class JS(_OfDistributions):
    """Jensen-Shannon divergence (KL(clean || mean) + KL(here || mean)) / 2, in nats, from 0 to log 2.

    `mean` is that of the two distributions. Its sign and its zero are those of `KL`.

    Example:
        >>> import torch, igap
        >>> clean = torch.tensor([1.0, 3.0, 0.5])
        >>> round(float(igap.metrics.JS()(torch.zeros(3), clean)), 4)
        0.1304
    """

    name, unit = "js", "nats"

    def of(self, logits: Tensor, known: Known) -> Tensor:
        """Return the divergence."""
        clean, here = _beside(logits, known), logits.log_softmax(-1)
        mean = torch.logaddexp(clean, here) - torch.log(torch.tensor(2.0, dtype=here.dtype))
        return ((clean.exp() * (clean - mean)).sum(-1) + (here.exp() * (here - mean)).sum(-1)) / 2


def at_forced(values: Float[Tensor, "pair *row token vocab"], known: Known) -> Float[Tensor, "pair *row"]:
    """The sum of the values of each answer's tokens before its last."""
    before = values[..., :-1, :]
    ids = known.forced.view(len(known.pairs), *[1] * (before.ndim - 3), -1, 1)
    return before.gather(-1, ids.expand(*before.shape[:-1], 1)).sum((-2, -1))


def _beside(logits: Tensor, known: Known) -> Tensor:
    assert known.clean is not None
    return known.clean.view(len(known.clean), *[1] * (logits.ndim - 2), -1)


METRICS: Mapping[MetricName, Metric] = {
    "logit_diff": LogitDiff(),
    "logit": Logit(),
    "logprob": LogProb(),
    "prob": Prob(),
    "prob_diff": ProbDiff(),
    "kl": KL(),
    "js": JS(),
}
"""By name."""

CustomMetric = Callable[[Tensor, TokenPair], Tensor]
"""Logits `[row, vocab]` after the last token, and the pair as token ids, to F `[row]`. Differentiable, and the same
number each time. Where the answer is several tokens logits are `[row, token, vocab]`: those that each token follows."""

AnyMetric = MetricName | Metric | CustomMetric
"""F as methods take it: a name of METRICS, an object of this module, or a function of the caller's."""
