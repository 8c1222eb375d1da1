"""The schema of a search, `conf/search.yaml`. Reads no file and imports no heavy library."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from igap.components import is_component, names_wanted, parse_component
from igap.config import Device, Frozen, MetricConfig, ModelConfig, PathText, PromptsConfig, Seed, TrackingConfig
from igap.counterfactual.samplers.registry import SamplerNames
from igap.counterfactual.target import normalize_target
from igap.counterfactual.terms import Term, check_terms

Sign = Literal["drop", "raise", "abs"]
"""Whether the patch should lower F, raise it, or either."""
Lengths = Literal["one", "any"]
"""Whether the clean prompts of a search have one length in tokens, or any."""
Aggregate = Literal["mean", "cvar", "min"]
"""Over clean prompts: the mean, the mean of the worst quarter, the worst."""


def _as_tuple(value: object) -> object:
    """YAML has no tuples."""
    return tuple(value) if isinstance(value, list) else value


class SpaceConfig(Frozen):
    """Which corrupted prompts there are: what `search` takes as its `space`.

    Args:
        kind: "slots" (default): words and rules for the slots of a template. "substitute": other words at token
            positions of the prompt. "prompts": corrupted prompts of your own.
        template: Of slots. The prompt with its slots in braces; None (default): the one of igap's IOI templates that
            the clean prompt follows.
        slots: Of slots. Words and rules for each slot, such as "=keep"; conf/search/space/slots.yaml says which. What
            goes with a word stands after it: "Paris; country=France".
        answer: Of slots. The answer of further clean prompts, with names in braces of slots, or of what goes with
            their words: "{country}". None (default): of igap's IOI templates the name that does not act.
        distractor: Of slots. The same of the corrupted prompt; None (default): its answer.
        positions: Of substitute. Token positions, the BOS token counted as 0; None (default): every whole word.
        vocabulary: Of substitute. "words" (default), every word of the tokenizer that is one token; or lists and words.
        max_edits: Slots or positions that may differ from the clean prompt; None (default): all.
        prompts: Of prompts. The corrupted prompts.
        file: Of prompts. A file with one prompt a line, in place of `prompts`; None (default): no file.

    Raises:
        InputError: A value is invalid, or the kind lacks what it needs.

    Example:
        >>> space = SpaceConfig(slots={"subject": ["John", "Tom"]})
        >>> space.kind, space.slots["subject"]
        ('slots', ('John', 'Tom'))
    """

    kind: Literal["slots", "substitute", "prompts"] = "slots"
    template: str | None = Field(default=None, min_length=1)
    slots: dict[str, tuple[str, ...]] = Field(default={})
    answer: str | None = Field(default=None, min_length=1, examples=["{country}"])
    distractor: str | None = Field(default=None, min_length=1, examples=["{country}"])
    positions: tuple[int, ...] | None = Field(default=None, min_length=1, examples=["[2,4,10]"])
    vocabulary: tuple[str, ...] = Field(default=("words",), min_length=1)
    max_edits: int | None = Field(default=None, ge=1, le=1_000_000, examples=[3])
    prompts: tuple[str, ...] = ()
    file: PathText | None = Field(default=None, examples=["prompts.txt"])

    @field_validator("slots", mode="before")
    @classmethod
    def _tuples(cls, slots: object) -> object:
        return {name: _as_tuple(words) for name, words in slots.items()} if isinstance(slots, dict) else slots

    _positions = field_validator("positions", "vocabulary", "prompts", mode="before")(_as_tuple)

    @model_validator(mode="after")
    def _whole(self) -> "SpaceConfig":
        if self.distractor is not None and self.answer is None:
            raise ValueError(
                f"search.space.distractor: got {self.distractor!r} without search.space.answer, wanted both, or "
                "the answer alone, of which the corrupted prompt's is the distractor. Add it."
            )
        if self.answer is not None and self.kind != "slots":
            raise ValueError(
                f"search.space.answer: got {self.answer!r} in a space without slots, wanted search/space=slots, or "
                "template. Leave it out."
            )
        if self.kind == "prompts" and bool(self.prompts) == (self.file is not None):
            raise ValueError(
                "search.space.prompts: got "
                + ("a list and a file" if self.file else "no prompt")
                + ", wanted one of the two: search.space.file=FILE with one prompt a line, or search.space.prompts."
            )
        return self


class StorageConfig(Frozen):
    """Where the trials are kept."""

    kind: Literal["sqlite", "journal", "memory", "postgres", "grpc"] = "sqlite"
    address: str = Field(
        "localhost:13000", pattern=r"^[\w.-]+:\d+$", description="HOST:PORT", examples=["localhost:13000"]
    )


class StudyConfig(Frozen):
    """How candidates are chosen, and how many."""

    space: SpaceConfig
    storage: StorageConfig
    sampler: Literal["auto"] | str = "auto"
    """The name of a registered sampler; auto: the first that serves the study."""
    until: int = Field(300, ge=1, le=10_000_000)
    batch: int = Field(16, ge=1, le=100_000)
    control: int = Field(60, ge=0, le=1_000_000)
    workers: int = Field(1, ge=1, le=1000)
    worker: int = Field(0, ge=0, le=100_000)
    dashboard: bool = False

    @field_validator("sampler", mode="before")
    @classmethod
    def _check_registered(cls, sampler: object) -> object:
        if sampler not in SamplerNames():
            raise ValueError(str(SamplerNames()))
        return sampler


class CleanConfig(Frozen):
    """The clean prompts that the search sees."""

    n: int = Field(8, ge=1, le=500)
    file: PathText | None = Field(None, examples=["pairs.csv"])
    """A file of pairs in place of the one pair of `prompts`."""
    lengths: Lengths = "one"
    """In tokens, of clean and held-out prompts."""


class HeldoutConfig(Frozen):
    """Clean prompts that the search does not see."""

    n: int = Field(32, ge=0, le=500)
    file: PathText | None = Field(None, examples=["heldout.csv"])


class ReferenceConfig(Frozen):
    """Ordinary prompts: what is usual of the component's activation, and its mean."""

    file: PathText | None = Field(None, examples=["reference.csv"])


class Constraints(Frozen):
    """What a candidate must satisfy; None: no limit. Limits hold for means over clean prompts, `min_clean` for each.

    Those of clean and corrupted prompts are of the logit difference, whatever metric effects are changes of.

    Args:
        min_clean: Least logit difference of a clean prompt, in logits; default 0.
        min_corrupted: Least logit difference of the corrupted prompt, in logits; default None.
        max_corrupted: Largest logit difference of the corrupted prompt, in logits; default None.
        min_fluency: Least fluency, in nats a token beside the clean prompt; default None.
        max_percentile: Percentile, 0 to 100, of the component's distance from its usual activations that the corrupted
            prompt's may have at most; default None.
        max_downstream: Percentile, 0 to 100, of the later residual streams' distance from those of ordinary runs at the
            farthest layer, among ordinary runs' own farthest, that the patched run may have at most; default None.

    Raises:
        InputError: A value is invalid, or nothing is between the limits of the corrupted prompt.

    Example:
        >>> Constraints(min_clean=2.0, min_fluency=-1.0).min_clean
        2.0
    """

    min_clean: float | None = Field(default=0.0, examples=[0.0])
    min_corrupted: float | None = Field(default=None, examples=[-10.0])
    max_corrupted: float | None = Field(default=None, examples=[10.0])
    min_fluency: float | None = Field(default=None, examples=[-2.0])
    max_percentile: float | None = Field(default=None, ge=0, le=100, examples=[99])
    max_downstream: float | None = Field(default=None, ge=0, le=100, examples=[99])

    @property
    def bounds(self) -> dict[str, float]:
        """Those of corrupted prompts that are set, by their names."""
        return {name: value for name, value in self if name != "min_clean" and value is not None}

    @model_validator(mode="after")
    def _in_order(self) -> "Constraints":
        low, high = self.min_corrupted, self.max_corrupted
        if low is not None and high is not None and low > high:
            raise ValueError(
                f"constraints.min_corrupted: got {low:g}, above constraints.max_corrupted={high:g}; nothing is "
                "between them. Swap them."
            )
        return self


class SearchConfig(Frozen):
    """One search."""

    model: ModelConfig
    prompts: PromptsConfig
    tracking: TrackingConfig
    search: StudyConfig
    clean: CleanConfig
    heldout: HeldoutConfig
    reference: ReferenceConfig = ReferenceConfig()
    constraints: Constraints
    metric: MetricConfig = MetricConfig()
    head: str = Field(examples=["9.6"])
    """One target, or several with a blank between them, as `normalize_target` in `target.py` writes them."""
    objective: tuple[Term, ...] = Field(("ap",), min_length=1, examples=["ap"])
    sign: Sign = "abs"
    aggregate: Aggregate = "mean"
    penalty: float = Field(1.0, ge=0)
    atlas: bool | Literal["shared"] = Field(False, examples=["shared"])
    """Whether the searches of several heads become an atlas; `shared`: one search serves all of them."""
    estimator: str = Field("atp", min_length=1, examples=["ig_zero"])
    """Of `error`: a name of `igap.attribution.estimators.estimators`."""
    optimality: int | None = Field(None, ge=1, le=100_000_000, examples=[20000])
    full_run: bool = True
    name: PathText | None = Field(
        None,
        pattern=r"^[\w][\w.-]*$",
        description="a folder's name (letters, digits, dots, dashes)",
        examples=["my-search"],
    )
    seed: Seed = Field(0, examples=[0])
    device: Device = Field("auto", examples=["cpu"])
    memory_gib: float | None = Field(None, gt=0, le=1_000_000, examples=[2])
    output: PathText = Field("searches", examples=["searches"])

    @field_validator("atlas", mode="before")
    @classmethod
    def _is_an_atlas(cls, value: object) -> object:
        if value not in (True, False, "shared"):
            raise ValueError("true, false or shared")
        return value

    @field_validator("head", mode="before")
    @classmethod
    def _normalize_head(cls, head: object) -> Any:
        names = re.split(r"[\s,]+", head.strip()) if isinstance(head, str) else [""]
        if names == ["all"]:
            return "all"
        try:
            return " ".join(dict.fromkeys(map(normalize_target, names)))
        except ValueError as error:
            several = ", several (0.6,1.2), or all" if str(error).startswith(names_wanted()) else ""
            raise ValueError(f"{error}{several}") from None

    @field_validator("objective", mode="before")
    @classmethod
    def _terms(cls, objective: object) -> object:
        return (objective,) if isinstance(objective, str) else _as_tuple(objective)

    @model_validator(mode="after")
    def _possible(self) -> "SearchConfig":
        if not self.prompts.has_texts:
            raise ValueError(
                "prompts: got several pairs, wanted the one pair that the search starts from; it makes further clean "
                "prompts itself (clean.n). Use prompts=ioi or the four texts of a pair, or the file as clean.file."
            )
        check_terms(self.objective, self.search.sampler, self.estimator, self.optimality)
        if self.atlas:
            self._check_atlas()
        return self

    def _check_atlas(self) -> None:
        """Raises ValueError on searches that make no atlas."""
        got, heads = f"atlas: got {str(self.atlas).lower()} with", self.head.split()
        if "error" in self.objective or (heads != ["all"] and len(heads) < 2):
            asked = f"head={self.head}" if "error" not in self.objective else "objective=error"
            raise ValueError(f"{got} {asked}, wanted effects of several heads. Use head=all objective=ap.")
        for head in heads:
            component = head.partition("@")[0]
            if component != "all" and (not is_component(component) or parse_component(component)[0] != "heads"):
                raise ValueError(f"{got} head={head}, wanted heads alone, which its matrix is of. Leave {head} out.")
        if len({head.partition("@")[2] for head in heads}) > 1:
            raise ValueError(f"{got} head={self.head}, wanted one span for all, at which effects compare. Name one.")
        if self.atlas != "shared":
            return
        how = self.search
        faults = {
            "objective": ",".join(self.objective) if self.objective != ("ap",) else None,
            "sign": self.sign if self.sign != "abs" else None,
            "aggregate": self.aggregate if self.aggregate != "mean" else None,
            **{f"constraints.{name}": f"{bound:g}" for name, bound in self.constraints.bounds.items()},
            "optimality": self.optimality,
            "clean.lengths": "any" if self.clean.lengths == "any" else None,
            "search.sampler": "brute" if how.sampler == "brute" else None,
            "search.workers": how.workers if how.workers > 1 else None,
            "search.worker": how.worker or None,
        }
        given = [f"{name}={value}" for name, value in faults.items() if value is not None]
        if given:
            raise ValueError(
                f"{got} {', '.join(given)}, wanted the default: one search by one process, of mean AP effects of "
                f"either sign, without bounds. Leave {'it' if len(given) == 1 else 'them'} out, or use atlas=true, "
                "with a search for each head."
            )

    @property
    def folder_name(self) -> str:
        """The name of the search's folder in `output`: `name`, or head and question."""
        head = re.sub(r"[^\w.@+-]", "_", self.head)
        return self.name or f"{head}-{self.question}"

    @property
    def question(self) -> str:
        """What is asked of the head, as folders name it: the objective, and the metric where it is another one."""
        estimator = [self.estimator] if "error" in self.objective else []
        metric = [] if self.metric.is_default else [self.metric.name]
        function = re.sub(r"[^\w.]", "_", str(self.metric.function).rpartition(":")[2].strip())
        return "-".join([*self.objective, *estimator, *metric, *([function] if self.metric.name == "custom" else [])])
