"""The groups of a run's settings, a frozen model each: those of the folders of `conf/`."""

import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from igap.components import sets_problem
from igap.config.schema import Frozen, Words
from igap.vocabulary import (
    ALPHAS,
    LARGEST_SEED,
    MOST_COUNT,
    AblationKind,
    Align,
    BaselineKind,
    DTypeName,
    IGPath,
    Method,
    MetricSetting,
    PositionsKind,
    Processing,
    Quadrature,
    TrackingMode,
    are_alphas,
)

TEXTS = ("clean", "corrupted", "answer", "distractor")
"""What a prompt pair is made of."""


Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
"""What every generator takes: torch's, numpy's, Python's."""


def _check_path(path: str) -> str:
    """Return the path. Raises ValueError if no file system takes it."""
    try:
        whole = os.fsencode(path)
    except UnicodeEncodeError:
        whole = b"\0"
    if b"\0" in whole or len(whole) > 2000 or any(len(part) > 255 for part in whole.split(b"/")):
        raise ValueError("a path of at most 2000 bytes, 255 a name, without NUL")
    return path


PathText = Annotated[str, Field(min_length=1), AfterValidator(_check_path)]
"""A path that a file system may have."""

FolderName = Annotated[
    str,
    Field(min_length=1, pattern=r"^[\w][\w.-]*$", description="a folder's name (letters, digits, dots, dashes)"),
    AfterValidator(_check_path),
]


def _names_or(*words: str) -> AfterValidator:
    """Accepts one of these words, or components and sets of them."""

    def check(components: str) -> str:
        problem = None if components in words else sets_problem(components.split())
        if problem and re.search("[+:]", components):
            raise ValueError(problem)
        if problem:
            raise ValueError(f"{', '.join(words)}, or names such as '9.6 L5.N1234', each once")
        return components

    return AfterValidator(check)


class ModelConfig(Frozen):
    """Which weights, and in which numerics."""

    name: PathText = Field(examples=["gpt2"])
    processing: Processing = "processed"
    dtype: DTypeName = "float32"
    revision: str | None = Field(None, max_length=255, examples=["main"])
    circuit: Literal["ioi"] | None = None
    """The published circuit whose heads this model has."""

    @property
    def short_name(self) -> str:
        """The last part of the name: of a folder or of a name on the hub."""
        return os.path.basename(os.path.abspath(self.name))


class PromptsConfig(Frozen):
    """The prompt pairs: one of four texts, those of a file, or generated ones."""

    clean: str | None = Field(None, min_length=1, examples=["'When John and Mary met, Mary waved to'"])
    corrupted: str | None = Field(None, min_length=1, examples=["'When John and Mary met, John waved to'"])
    answer: Words | None = Field(None, min_length=1, examples=["' John'"])
    distractor: Words | None = Field(None, min_length=1, examples=["' Mary'"])
    n: int | None = Field(None, ge=2, le=100_000, examples=[100])
    """Generated pairs."""
    file: PathText | None = Field(None, examples=["pairs.csv"])
    limit: int | None = Field(None, ge=1, le=10_000_000, examples=[100])
    """Pairs of the file that are taken at most: its first ones."""
    ids_of: PathText = Field("gpt2", examples=["gpt2"])
    """The tokenizer of token ids in the file."""
    skip_invalid: bool = False
    """Whether rows of the file that do not fit are left out."""
    seed: Seed = Field(0, examples=[0])
    """Seed of the generated pairs, and of the bootstrap over several pairs."""
    min_gap: Annotated[float, AfterValidator(abs)] = Field(0.1, ge=0, examples=[0.1])  # -0.0 is 0
    """Logits."""
    align: Align = "error"
    """How prompts of different lengths are matched."""
    bos: str = Field("auto", min_length=1, examples=["none"])
    """The token before every prompt: auto, none, or its text."""

    @model_validator(mode="before")
    @classmethod
    def _texts_are_of_one_pair(cls, values: Any) -> Any:
        """A file and a generator bring their own texts: the option's, which `prompts.n=100` leaves there, are none."""
        if isinstance(values, Mapping) and not (values.get("n") is None and values.get("file") is None):
            return {**values, **dict.fromkeys(TEXTS)}
        return values

    @model_validator(mode="after")
    def _is_of_a_file(self) -> "PromptsConfig":
        if self.limit is not None and self.file is None:
            raise ValueError(
                f"prompts.limit: got {self.limit} without a file, wanted prompts.file, whose first pairs it takes. "
                "Leave it out, or generate as many pairs with prompts.n."
            )
        if (self.skip_invalid or self.ids_of != "gpt2") and self.file is None:
            key, value = ("skip_invalid", "true") if self.skip_invalid else ("ids_of", self.ids_of)
            raise ValueError(
                f"prompts.{key}: got {value} without a file, wanted prompts.file, whose rows it is about. Leave it out."
            )
        return self

    @property
    def has_texts(self) -> bool:
        """Whether the pair's texts are in the config, not in a file or up to a generator."""
        return self.n is None and self.file is None


class BaselineConfig(Frozen):
    """What activations are moved to."""

    kind: BaselineKind = "corrupted"
    prompt: str | None = Field(None, examples=["'When Tom and Anna met, Tom waved to'"])
    n: int = Field(100, ge=1, le=100_000, examples=[100])
    """Reference prompts of `mean`."""
    seed: Seed = Field(0, examples=[0])


class MetricConfig(Frozen):
    """F, the number that effects are changes of."""

    name: MetricSetting = "logit_diff"
    function: str | None = Field(
        None,
        max_length=1000,
        pattern=r"^\s*[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*\s*$",
        description="a function as package.module:name",
        examples=["my_metrics:margin"],
    )
    """Of metric=custom."""

    @model_validator(mode="after")
    def _custom_has_a_function(self) -> "MetricConfig":
        if self.name == "custom" and self.function is None:
            raise ValueError(
                "metric.function: got nothing with metric=custom, wanted a function of logits and token ids. Name it: "
                "metric.function=package.module:name."
            )
        return self

    @property
    def is_default(self) -> bool:
        """Whether F is the logit difference."""
        return self.name == "logit_diff"


class PositionsConfig(Frozen):
    """Which positions of the prompt change."""

    kind: PositionsKind = "all"
    spans: dict[str, str | int | list[int]] | None = Field(None, examples=["{end: 16}"])
    """Positions, a range of them or words, by name."""

    @model_validator(mode="before")
    @classmethod
    def _spans_are_a_kind(cls, values: Any) -> Any:
        """Spans alone are enough: positions=all, which nobody typed, gives way to them."""
        if isinstance(values, Mapping) and values.get("spans") and values.get("kind", "all") == "all":
            return {**values, "kind": "spans"}
        return values

    @field_validator("spans", mode="before")
    @classmethod
    def _spans_by_name(cls, spans: object) -> object:
        wanted = (
            "spans by name, each a position, a range of them (3-4), a list of them or words of the prompt, such as "
            "{verb: 3-4, end: 16, S2: 'Mary:2'}"
        )
        if spans is None:
            return None
        if not isinstance(spans, Mapping):
            raise ValueError(wanted)
        used: set[int] = set()
        for name, where in spans.items():
            positions = _positions_of(where)
            is_named = isinstance(name, str) and name.isprintable() and re.fullmatch(r"\S(.{0,98}\S)?", name)
            are_words = isinstance(where, str) and not _RANGE.fullmatch(where)
            if not is_named or not (positions or are_words) or len(set(positions)) < len(positions):
                raise ValueError(wanted)
            if taken := sorted(set(positions) & used):
                raise ValueError(f"spans apart from each other: position {taken[0]} is in {name!r} and in another")
            used |= set(positions)
        return {name: list(where) if isinstance(where, tuple) else where for name, where in spans.items()}

    @model_validator(mode="after")
    def _spans_go_with_the_kind(self) -> "PositionsConfig":
        if (self.kind == "spans") != bool(self.spans):
            raise ValueError(
                f"positions.spans: got {self.spans or 'none'} with positions={self.kind}, wanted spans by name and "
                "positions=spans, or none. Try positions.spans='{verb: 3-4, end: 16}'."
            )
        return self

    @property
    def is_default(self) -> bool:
        """Whether all positions change at once."""
        return self.kind == "all"

    @property
    def value(self) -> Literal["all", "each", "last", "diff", "roles", "own"] | dict[str, str | list[int]]:
        """`positions` as the methods take it."""
        if self.kind != "spans":
            return self.kind
        spans: dict[str, str | list[int]] = {}
        for name, where in (self.spans or {}).items():
            spans[name] = sorted(_positions_of(where)) or str(where)
        return spans

    @property
    def has_axis(self) -> bool:
        """Whether maps have an axis of positions or spans."""
        return self.kind in ("each", "roles", "own", "spans")


_RANGE = re.compile(r"\s*(\d{1,18})\s*-\s*(\d{1,18})\s*")


def _positions_of(where: object) -> list[int]:
    """The positions of `3`, `3-4` or a list of them; none of words, a quoted `17` among them, or what is invalid."""
    if isinstance(where, str):
        ends = _RANGE.fullmatch(where)
        first, last = (0, -1) if ends is None else (int(ends[1]), int(ends[2]))
        return list(range(first, last + 1)) if last < MOST_COUNT else []
    given = list(where) if isinstance(where, list | tuple) else [where]
    numbers = [number for number in given if type(number) is int and 0 <= number < MOST_COUNT]
    return numbers if len(numbers) == len(given) else []


class IGConfig(Frozen):
    """How Integrated Gradients integrates."""

    n_steps: int | Literal["auto"] = 50
    tolerance: float = Field(1e-3, gt=0, lt=1, examples=[0.001])
    """With n_steps=auto: the completeness delta allowed, as a share of the layer's effect."""
    method: Quadrature = "gausslegendre"
    path: IGPath = "joint"

    @field_validator("n_steps", mode="before")
    @classmethod
    def _count(cls, n_steps: object) -> object:
        if n_steps != "auto" and (type(n_steps) is not int or not 1 <= n_steps <= MOST_COUNT):
            raise ValueError(f"a whole number from 1 to {MOST_COUNT}, or auto")
        return n_steps

    @field_validator("method", mode="before")
    @classmethod
    def _refuse_biased(cls, method: object) -> object:
        if method == "riemann_trapezoid":
            raise ValueError(
                "a method whose weights sum to 1 (in Captum those of the trapezoid sum to (n_steps - 1) / n_steps, so "
                "that every attribution comes out too small)"
            )
        return method


class AblationConfig(Frozen):
    """What is ablated after the comparison."""

    kind: Literal["none", AblationKind] = "none"
    also: tuple[AblationKind, ...] = ()
    """Further kinds, of the same components."""
    components: Annotated[str, _names_or("outliers", "top")] = Field(
        "outliers", min_length=1, examples=["'9.6 L5.N1234'"]
    )
    """outliers, top, or names."""
    top: int = Field(6, ge=1, le=10_000)
    by: Method = "ap"
    n: int | None = Field(None, ge=2, le=1_000_000, examples=[1000])
    """Prompts."""
    file: PathText | None = Field(None, examples=["prompts.json"])
    seed: Seed = Field(0, examples=[0])
    reference_n: int = Field(100, ge=1, le=100_000)
    """Prompts that means are over."""
    controls: int = Field(10, ge=0, le=1000)
    generate: bool = False

    @field_validator("also", mode="before")
    @classmethod
    def _to_tuple(cls, also: object) -> object:
        return tuple(also) if isinstance(also, list) else also  # YAML has no tuples


class CurvesConfig(Frozen):
    """F along the path of single components."""

    components: Annotated[str, _names_or("default", "none")] = Field(
        "default", min_length=1, examples=["'9.6 L5.N1234'"]
    )
    """default, none, or names."""
    alphas: tuple[float, ...] | None = Field(None, examples=["[-1,0,0.5,1,2]"])

    @field_validator("alphas", mode="before")
    @classmethod
    def _check_ascending(cls, alphas: object) -> object:
        if alphas is None:
            return None
        numbers = list(alphas) if isinstance(alphas, list | tuple) else []
        if not are_alphas(numbers):
            raise ValueError(ALPHAS)
        return tuple(float(number) + 0.0 for number in numbers)  # YAML has no tuples; and -0.0 is 0


class TrackingConfig(Frozen):
    """Where W&B logs to."""

    mode: TrackingMode = "offline"
    project: str = Field("igap", min_length=1, max_length=128, examples=["igap"])
    entity: str | None = Field(None, max_length=128, examples=["my-team"])
    group: str | None = Field(None, max_length=128, examples=["baselines"])
    timeout: float = Field(60.0, gt=0, le=3600, examples=[60])
    """Seconds that a run may take online."""
