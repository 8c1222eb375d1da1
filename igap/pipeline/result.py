"""What a run found out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean

from igap.analyses.base import Finding
from igap.attribution import AttributionMap
from igap.components import Site
from igap.config import RunConfig
from igap.errors.failures import Failure
from igap.inputs.prompts import PromptPair, TokenPair
from igap.statistics.across_pairs import PairStatistics
from igap.statistics.comparison import Comparison
from igap.statistics.warnings import n_unscored


@dataclass(frozen=True, eq=False)
class Result:
    """Everything a run found out."""

    config: RunConfig
    key: str
    """12 hex digits of what determines the numbers: see RunConfig.key_of."""
    checkpoint: str
    """The model's fingerprint."""
    device: str
    pairs: tuple[PromptPair, ...]
    tokens: tuple[TokenPair, ...]
    """The token ids of each pair, BOS included."""
    clean_logit_diffs: tuple[float, ...]
    """logit[answer] - logit[distractor] after each clean prompt, in logits, whatever F is; NaN where an answer or
    distractor is several tokens."""
    corrupted_logit_diffs: tuple[float, ...]
    """The same after each corrupted prompt."""
    clean_values: tuple[float, ...]
    """F(x) of each pair, in F's unit."""
    corrupted_values: tuple[float, ...]
    """F(x') of each pair, in F's unit."""
    route: str
    """How the engine ran the model: what comes after the site (`suffix`) or whole with hooks (`hooks`)."""
    why_route: str
    maps: Mapping[Site, Mapping[str, AttributionMap]]
    """By site, then method: those of `attribution.methods` that the run has. Of several pairs the mean."""
    comparisons: Mapping[Site, Comparison]
    """IG against AP, by site. Of several pairs, of the mean maps."""
    spread: PairStatistics | None
    """None for one pair."""
    findings: Mapping[str, Finding]
    """What the analyses found out, by their names."""
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    warnings: tuple[str, ...]
    beside: Mapping[str, "Result"] = field(default_factory=dict)
    """The other runs of a study, by folder name."""
    left_out: tuple[str, ...] = ()
    """Why rows of the file are no pairs here: `prompts.skip_invalid`."""
    failures: Mapping[str, Failure] = field(default_factory=dict)
    """Why analyses failed, by their names: they have no finding."""

    @property
    def clean_logit_diff(self) -> float:
        """The mean over pairs, in logits; NaN where a pair has none."""
        return fmean(self.clean_logit_diffs)

    @property
    def corrupted_logit_diff(self) -> float:
        """The mean over pairs, in logits; NaN where a pair has none."""
        return fmean(self.corrupted_logit_diffs)

    @property
    def has_logit_diffs(self) -> bool:
        """Whether answer and distractor of every pair are single tokens, whose logits can be compared."""
        return all(tokens.has_logit_diff for tokens in self.tokens)

    @property
    def gaps(self) -> tuple[float, ...]:
        """D = F(x) - F(x') of each pair, in F's unit."""
        return tuple(x - y for x, y in zip(self.clean_values, self.corrupted_values, strict=True))

    @property
    def gap(self) -> float:
        """D = F(x) - F(x'), in F's unit; the mean over pairs."""
        return fmean(self.gaps)

    @property
    def n_unscored(self) -> int:
        """Pairs whose gap is too small to divide by: they have effects, and no scores."""
        return n_unscored(self.config, self.clean_values, self.gaps)

    @property
    def metric(self) -> str:
        """F, as maps name it."""
        return next(iter(self.maps.values()))["ap"].metric

    @property
    def unit(self) -> str:
        """F's unit, which gaps, effects and deltas have."""
        return next(iter(self.maps.values()))["ap"].unit

    @property
    def has_scores(self) -> bool:
        """Whether the maps were compared as scores: some gap is large enough to divide by."""
        return all(comparison.unit == "score" for comparison in self.comparisons.values())
