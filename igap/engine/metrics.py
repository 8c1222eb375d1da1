"""The metrics: F, one number of the logits after the last token, or after each of the last tokens.

A metric is one function and one line of `METRICS`. It sees the logits of a pair's rows and what is known of the pair.
Where an answer is several tokens, those before its last follow the prompt and F is read at several positions
(`TokenPair.n_read`): a metric that can has a second function, which sees the logits of all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from igap.engine.token_sets import TokenSets, answers, logit_diff
from igap.errors import InputError, short_repr
from igap.inputs.prompts import TokenPair
from igap.vocabulary import Direction, MetricName

CustomMetric = Callable[[Tensor, TokenPair], Tensor]
"""Logits `[row, vocab]` after the last token, and the pair as token ids, to F `[row]`. Differentiable, and the same
number each time. Where the answer is several tokens logits are `[row, token, vocab]`: those that each token follows."""


@dataclass(frozen=True, eq=False)
class Known:
    """What a metric knows of its pairs."""

    answer: TokenSets
    """Right tokens, nearly always one a pair; the last ones of answers of several tokens."""
    distractor: TokenSets | None
    """Wrong ones; None where they are words of several tokens."""
    forced: Int[Tensor, "pair token"]
    """The tokens of each answer before its last."""
    clean: Float[Tensor, "pair vocab"] | None = None
    """Log-probabilities after the clean prompt; None where only the logit difference is asked for."""


@dataclass(frozen=True)
class Metric:
    """F as a function of logits."""

    of: Callable[[Float[Tensor, "pair *row vocab"], Known], Float[Tensor, "pair *row"]]
    unit: str
    at_minimum: bool = False
    """Whether F(clean) = 0 is its least value, so that its gradient there is 0."""
    of_several: Callable[[Float[Tensor, "pair *row token vocab"], Known], Float[Tensor, "pair *row"]] | None = None
    """F of answers of several tokens, from the logits that each token follows; None: it is of single tokens."""


def _logit_diff(logits: Tensor, known: Known) -> Tensor:
    assert known.distractor is not None
    return logit_diff(logits, known.answer, known.distractor)


def _logprob(logits: Tensor, known: Known) -> Tensor:
    """Log-probability that an answer comes next."""
    return known.answer.logsumexp(logits.log_softmax(-1))


def _sum_logprobs(logits: Tensor, known: Known) -> Tensor:
    """Sum over the answer's tokens of log p(token | prompt and the answer's tokens before it)."""
    logprobs = logits.log_softmax(-1)
    return known.answer.logsumexp(logprobs[..., -1, :]) + _at_forced(logprobs, known)


def _sum_logits(logits: Tensor, known: Known) -> Tensor:
    return known.answer.mean(logits[..., -1, :]) + _at_forced(logits, known)


def _at_forced(values: Tensor, known: Known) -> Tensor:
    """The sum of the values of the answer's tokens before its last."""
    before = values[..., :-1, :]
    ids = known.forced.view(len(known.forced), *[1] * (before.ndim - 3), -1, 1)
    return before.gather(-1, ids.expand(*before.shape[:-1], 1)).sum((-2, -1))


def _prob_diff(logits: Tensor, known: Known) -> Tensor:
    """Probability that an answer comes next, minus that of a distractor."""
    assert known.distractor is not None
    probabilities = logits.softmax(-1)
    return known.answer.total(probabilities) - known.distractor.total(probabilities)


def _kl(logits: Tensor, known: Known) -> Tensor:
    """KL(clean || row) = sum of p (log p - log q)."""
    clean = _beside(logits, known)
    return (clean.exp() * (clean - logits.log_softmax(-1))).sum(-1)


def _js(logits: Tensor, known: Known) -> Tensor:
    """(KL(clean || mean) + KL(row || mean)) / 2, at most log 2."""
    clean, here = _beside(logits, known), logits.log_softmax(-1)
    mean = torch.logaddexp(clean, here) - torch.log(torch.tensor(2.0, dtype=here.dtype))
    return ((clean.exp() * (clean - mean)).sum(-1) + (here.exp() * (here - mean)).sum(-1)) / 2


def _beside(logits: Tensor, known: Known) -> Tensor:
    assert known.clean is not None
    return known.clean.view(len(known.clean), *[1] * (logits.ndim - 2), -1)


METRICS: Mapping[MetricName, Metric] = {
    "logit_diff": Metric(_logit_diff, "logits"),
    "logit": Metric(lambda logits, known: known.answer.mean(logits), "logits"),
    "logprob": Metric(_logprob, "nats", of_several=_sum_logprobs),
    "prob": Metric(lambda logits, known: known.answer.total(logits.softmax(-1)), "probability"),
    "prob_diff": Metric(_prob_diff, "probability"),
    "kl": Metric(_kl, "nats", at_minimum=True),
    "js": Metric(_js, "nats", at_minimum=True),
}

_SHOWN = Metric(lambda logits, known: known.answer.mean(logits), "logits", of_several=_sum_logits)
"""What any pair has: the logits of its answer, one of each token."""


@dataclass(frozen=True, eq=False)
class Readout:
    """F of some pairs."""

    name: str
    """A name of METRICS, or of the caller's function."""
    metric: Metric
    pairs: tuple[TokenPair, ...]
    known: Known
    custom: CustomMetric | None = None
    """The caller's function, where F is one."""

    @property
    def is_logit_diff(self) -> bool:
        """Whether F is the difference of two logits, or means of some, for which the engine needs no other."""
        return self.metric is METRICS["logit_diff"]

    @property
    def n_read(self) -> int:
        """Number of positions that F is read at, the last ones, of every pair."""
        return self.pairs[0].n_read

    def __call__(self, logits: Float[Tensor, "pair *row read vocab"]) -> Float[Tensor, "pair *row"]:
        """F of every row, from the logits at `n_read` positions.

        Not of bfloat16: in sums over a vocabulary little would be left of its 8 bits.
        """
        if not self.is_logit_diff and logits.dtype == torch.bfloat16:
            logits = logits.float()
        if self.n_read == 1:
            return self.metric.of(logits.squeeze(-2), self.known)
        assert self.metric.of_several is not None, "encode_pair refuses such answers with this metric"
        return self.metric.of_several(logits, self.known)

    def select(self, few: Sequence[int]) -> "Readout":
        """F of these pairs alone."""
        pairs, index = tuple(self.pairs[pair] for pair in few), list(few)
        known, clean, distractor = self.known, self.known.clean, self.known.distractor
        known = Known(
            known.answer.select(index),
            None if distractor is None else distractor.select(index),
            known.forced[index],
            None if clean is None else clean[index],
        )
        metric = self.metric if self.custom is None else _custom(self.custom, pairs)
        return replace(self, metric=metric, pairs=pairs, known=known)


def read_out(
    pairs: Sequence[TokenPair],
    device: torch.device,
    metric: MetricName | CustomMetric = "logit_diff",
    clean: Float[Tensor, "pair read vocab"] | None = None,
) -> Readout:
    """F of these pairs by one of METRICS, or the caller's function; `clean` are the logits after the clean prompts."""
    last = None
    if clean is not None:
        last = (clean.float() if clean.dtype == torch.bfloat16 else clean)[:, -1].log_softmax(-1)
    known = Known(
        *answers(pairs, device), torch.tensor([pair.forced for pair in pairs], dtype=torch.int64, device=device), last
    )
    if isinstance(metric, str):
        return Readout(metric, METRICS[metric], tuple(pairs), known)
    name = getattr(metric, "__name__", type(metric).__name__)
    return Readout(f"custom {name}", _custom(metric, pairs), tuple(pairs), known, metric)


def show_logits(readout: Readout) -> Readout:
    """The readout of the same pairs that hides no change of their logits, as a probability near 0 or 1 does."""
    if all(pair.has_logit_diff for pair in readout.pairs):
        return read_out(readout.pairs, readout.known.answer.ids.device)
    return replace(readout, name="shown", metric=_SHOWN, custom=None)


def takes_several(metric: MetricName | CustomMetric) -> bool:
    """Whether F is known of answers of several tokens."""
    return not isinstance(metric, str) or METRICS[metric].of_several is not None


def _custom(function: CustomMetric | None, pairs: Sequence[TokenPair]) -> Metric:
    def of(logits: Tensor, known: Known, n_last: int = 1) -> Tensor:  # noqa: ARG001 - the interface of a Metric
        assert function is not None
        shape = logits.shape[:-n_last]
        rows = logits.reshape(len(logits), -1, *logits.shape[len(shape) :])
        each = [function(of_pair, pair) for of_pair, pair in zip(rows, pairs, strict=True)]
        return torch.stack(each).view(shape)

    return Metric(of, "F", of_several=partial(of, n_last=2))


def check_custom(function: CustomMetric, pair: TokenPair, logits: Float[Tensor, "read vocab"]) -> None:
    """Raises InputError where a caller's metric is not one finite, differentiable, repeatable number a row."""
    logits = logits.squeeze(0) if pair.n_read == 1 else logits
    rows = torch.stack([logits, logits * 0.5]).detach().requires_grad_()
    shape = "[row, vocab]" if pair.n_read == 1 else "[row, token, vocab]"

    def refused(got: str) -> InputError:
        return InputError(
            f"metric: got a function that {got}, wanted one from logits {shape} and the pair to one finite number "
            "a row, with a gradient, the same each time."
        )

    with torch.enable_grad():
        try:
            values = function(rows, pair)
        except Exception as error:
            raise refused(f"raises {type(error).__name__} ({short_repr(str(error))})") from error
        if not isinstance(values, Tensor) or values.shape != (2,):
            given = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise refused(f"gives {given} for 2 rows")
        if not values.isfinite().all():
            raise refused("gives NaN or infinity")
        if not values.requires_grad:
            raise refused("has no gradient")
    with torch.no_grad():
        rounding = 1000 * torch.finfo(values.dtype).eps * values.abs().clamp(min=1.0)
        if not ((function(rows, pair) - values).abs() <= rounding).all():
            raise refused("gives another number for the same logits")
        if not ((function(rows[1:], pair) - values[1:]).abs() <= rounding[1:]).all():
            raise refused("gives a row another number when other rows stand beside it")


def is_least_on_clean(metric: MetricName | CustomMetric) -> bool:
    """Whether F is known to be least on the clean prompt, where the second of two moves counts more than the first."""
    return isinstance(metric, str) and METRICS[metric].at_minimum


def check_not_least(metric: MetricName | CustomMetric, what: str) -> None:
    """Raises InputError where `what` would find interactions everywhere: F is least on the clean prompt."""
    if is_least_on_clean(metric):
        raise InputError(
            f"metric: got {metric} with {what}, but it is least on the clean prompt, so that the second of any two "
            "moves counts more than the first. Use logprob, or the logit difference."
        )


def check_gradient(readout: Readout, direction: Direction, method: str) -> None:
    """Raises InputError where F's gradient in the run that is patched is 0 because F is least there."""
    if readout.metric.at_minimum and direction == "noising":
        raise InputError(
            f"metric: got {readout.name} with {method} into the clean run, where it is 0 and its gradient too: every "
            "estimate would be 0. Use direction=denoising, at=0.5, or activation patching."
        )
