"""F of pairs: the metrics that are asked for, read from logits; and what is no metric, refused."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from igap.engine.token_sets import answers
from igap.errors import InputError, short_repr
from igap.inputs.prompts import TokenPair
from igap.metrics import METRICS, AnyMetric, CustomMetric, Known, LogitDiff, Metric, at_forced
from igap.vocabulary import Direction


class Custom(Metric):
    """A function of the caller's."""

    unit, takes_several = "F", True

    def __init__(self, function: CustomMetric) -> None:
        """Its name is the function's."""
        self.function = function
        self.name = f"custom {getattr(function, '__name__', type(function).__name__)}"

    def of(self, logits: Tensor, known: Known) -> Tensor:
        """Return what the function gives of the rows of each pair."""
        return self._of_rows(logits, known, n_last=1)

    def of_several(self, logits: Tensor, known: Known) -> Tensor:
        """Return the same of rows with the logits that each token follows."""
        return self._of_rows(logits, known, n_last=2)

    def _of_rows(self, logits: Tensor, known: Known, n_last: int) -> Tensor:
        shape = logits.shape[:-n_last]
        rows = logits.reshape(len(logits), -1, *logits.shape[len(shape) :])
        each = [self.function(of_pair, pair) for of_pair, pair in zip(rows, known.pairs, strict=True)]
        return torch.stack(each).view(shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Custom) and self.function == other.function

    def __hash__(self) -> int:
        return hash(self.name)


class _Shown(Metric):
    """What any pair has: the logits of its answer, one of each token."""

    name, unit, takes_several = "shown", "logits", True

    def of(self, logits: Tensor, known: Known) -> Tensor:
        """Return the mean of the answers' logits."""
        return known.answer.mean(logits)

    def of_several(self, logits: Tensor, known: Known) -> Tensor:
        """Return the sum of the tokens' logits."""
        return known.answer.mean(logits[..., -1, :]) + at_forced(logits, known)


def as_metrics(asked: AnyMetric | Sequence[AnyMetric]) -> tuple[Metric, ...]:
    """The metrics that an argument means. Raises InputError on none, and on two of one name."""
    metrics = tuple(map(as_metric, asked if isinstance(asked, list | tuple) else [asked]))
    names = [metric.name for metric in metrics]
    if not names:
        raise InputError("metric: got none, wanted one or more. Leave it out for the logit difference.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise InputError(
            f"metric: got {len(twice)} called {twice[0]!r}, wanted metrics of different names, by which their maps are "
            "returned. Name each: functions by def, or by __name__."
        )
    return metrics


def as_metric(asked: AnyMetric) -> Metric:
    """The metric that a name, an object or a function means."""
    if isinstance(asked, type) and issubclass(asked, Metric):
        raise InputError(f"metric: got the class {asked.__name__}, wanted an object of it. Write {asked.__name__}().")
    if isinstance(asked, Metric):
        return asked
    if isinstance(asked, str):
        return METRICS[asked]
    return Custom(asked)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Readout:
    """F of some pairs; by several metrics several F of each.

    A pair and a metric are one question; questions come pair by pair, the metrics of each in their order. With one
    metric they are the pairs.
    """

    metrics: tuple[Metric, ...]
    known: Known

    @property
    def metric(self) -> Metric:
        """The only metric."""
        (metric,) = self.metrics
        return metric

    @property
    def pairs(self) -> tuple[TokenPair, ...]:
        """The pairs."""
        return self.known.pairs

    @property
    def each(self) -> tuple["Readout", ...]:
        """F by each metric alone."""
        return tuple(replace(self, metrics=(metric,)) for metric in self.metrics)

    @property
    def is_logit_diff(self) -> bool:
        """Whether F is the difference of two logits, or means of some, for which the engine needs no other."""
        return all(isinstance(metric, LogitDiff) for metric in self.metrics)

    @property
    def n_read(self) -> int:
        """Number of positions that F is read at, the last ones, of every pair."""
        return self.pairs[0].n_read

    def __call__(self, logits: Float[Tensor, "pair *row read vocab"]) -> Float[Tensor, "question *row"]:
        """F of every row, from the logits at `n_read` positions.

        Not of bfloat16: in sums over a vocabulary little would be left of its 8 bits.
        """
        exact = logits.float() if logits.dtype == torch.bfloat16 and not self.is_logit_diff else logits
        if self.n_read > 1:
            return by_question([metric.of_several(exact, self.known) for metric in self.metrics])
        last, exact = logits.squeeze(-2), exact.squeeze(-2)
        return by_question(
            [metric.of(last if isinstance(metric, LogitDiff) else exact, self.known) for metric in self.metrics]
        )

    def select(self, few: Sequence[int]) -> "Readout":
        """F of these pairs alone."""
        return replace(self, known=self.known.select(list(few)))


def by_question(values: Sequence[Float[Tensor, "pair *row"]]) -> Float[Tensor, "question *row"]:
    """What each metric gives of the pairs, question by question."""
    return values[0] if len(values) == 1 else torch.stack(list(values), 1).flatten(0, 1)


def read_out(
    pairs: Sequence[TokenPair],
    device: torch.device,
    metrics: Sequence[Metric] = (LogitDiff(),),
    clean: Float[Tensor, "pair read vocab"] | None = None,
) -> Readout:
    """F of these pairs by these metrics; `clean` are the logits after the clean prompts."""
    last = None
    if clean is not None:
        last = (clean.float() if clean.dtype == torch.bfloat16 else clean)[:, -1].log_softmax(-1)
    return Readout(tuple(metrics), Known(*answers(pairs, device), last, tuple(pairs)))


def show_logits(readout: Readout) -> Readout:
    """The readout of the same pairs that hides no change of their logits, as a probability near 0 or 1 does."""
    metric = LogitDiff() if all(pair.has_logit_diff for pair in readout.pairs) else _Shown()
    return replace(readout, metrics=(metric,))


def check_custom(
    function: CustomMetric, pair: TokenPair, logits: Float[Tensor, "read vocab"], *, made_up: bool = False
) -> None:
    """Raises InputError where a caller's metric is not one finite, differentiable, repeatable number a row.

    Of logits that are `made_up` it need not be finite: they may be none that a model gives.
    """
    logits = logits.squeeze(0) if pair.n_read == 1 else logits
    rows = torch.stack([logits, logits * 0.5]).detach().requires_grad_()
    wanted = "[row, vocab]" if pair.n_read == 1 else "[row, token, vocab]"

    def as_error(got: str) -> InputError:
        return InputError(
            f"metric: got a function that {got}, wanted one from logits {wanted} and the pair to one finite number "
            "a row, with a gradient, the same each time."
        )

    with torch.enable_grad():
        try:
            values = function(rows, pair)
        except Exception as error:
            raise as_error(f"raises {type(error).__name__} ({short_repr(str(error))})") from error
        if not isinstance(values, Tensor) or values.shape != (2,):
            shape = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise as_error(f"gives {shape} for 2 rows")
        if not values.isfinite().all() and not made_up:
            raise as_error("gives NaN or infinity")
        if not values.requires_grad:
            raise as_error("has no gradient")
    if not values.isfinite().all():
        return
    with torch.no_grad():
        rounding = 1000 * torch.finfo(values.dtype).eps * values.abs().clamp(min=1.0)
        if not ((function(rows, pair) - values).abs() <= rounding).all():
            raise as_error("gives another number for the same logits")
        if not ((function(rows[1:], pair) - values[1:]).abs() <= rounding[1:]).all():
            raise as_error("gives a row another number when other rows stand beside it")


def check_not_least(metric: AnyMetric, what: str) -> None:
    """Raises InputError where `what` would find interactions everywhere: F is least on the clean prompt."""
    asked = as_metric(metric)
    if asked.at_minimum:
        raise InputError(
            f"metric: got {asked.name} with {what}, but it is least on the clean prompt, so that the "
            "second of any two moves counts more than the first. Use logprob, or the logit difference."
        )


def check_gradient(readout: Readout, direction: Direction, method: str) -> None:
    """Raises InputError where F's gradient in the run that is patched is 0 because F is least there."""
    least = [metric.name for metric in readout.metrics if metric.at_minimum]
    if least and direction == "noising":
        raise InputError(
            f"metric: got {least[0]} with {method} into the clean run, where it is 0 and its gradient too: every "
            "estimate would be 0. Use direction=denoising, attribution patching at=0.5, or activation patching."
        )
