"""What a run is: frozen models of `conf/`, which refuse unknown keys, wrong types and impossible combinations.

This module reads no file and imports no heavy library.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    field_validator,
    model_validator,
)

from igap.components import SITES, Site, are_components, is_component, parse_component, sites_named, sites_of
from igap.errors import InputError, short_repr
from igap.vocabulary import (
    ALPHAS,
    LARGEST_SEED,
    MOST_COUNT,
    AblationKind,
    Align,
    BaselineKind,
    Direction,
    DTypeName,
    IGPath,
    Method,
    Processing,
    Quadrature,
    SitesSetting,
    TrackingMode,
    are_alphas,
    denoising_problem,
)

TEXTS = ("clean", "corrupted", "answer", "distractor")
"""What a prompt pair is made of."""


EXECUTION_KEYS = (
    "tracking",
    "output",
    "plots",
    "sweep",
    "stale",
    "keep_going",
    "device",
    "batch_size",
    "memory_gib",
)
"""Keys that say where and how a run is done, and not what it finds."""


Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?|mps)$")]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
"""What every generator takes: torch's, numpy's, Python's."""


if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _Checked(ModelMetaclass):
    """Makes invalid settings from Python an InputError, with the lines of the command line."""

    def __call__(self, **values: Any) -> Any:
        schema: Any = self
        return validate_settings(schema, values)


class Frozen(BaseModel, metaclass=_Checked):
    """A group of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Schema = TypeVar("Schema", bound=Frozen)


def _possible(path: str) -> str:
    """The path, if file systems take it."""
    try:
        whole = os.fsencode(path)
    except UnicodeEncodeError:
        whole = b"\0"
    if b"\0" in whole or len(whole) > 2000 or any(len(part) > 255 for part in whole.split(b"/")):
        raise ValueError("a path of at most 2000 bytes, 255 a name, without NUL")
    return path


PathText = Annotated[str, Field(min_length=1), AfterValidator(_possible)]
"""A path that a file system may have."""


def _names_or(*words: str) -> AfterValidator:
    """Accepts one of these words, or names of components."""

    def check(components: str) -> str:
        if components not in words and not are_components(components.split()):
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
    answer: str | None = Field(None, min_length=1, examples=["' John'"])
    distractor: str | None = Field(None, min_length=1, examples=["' Mary'"])
    n: int | None = Field(None, ge=2, le=100_000, examples=[100])
    """Generated pairs."""
    file: PathText | None = Field(None, examples=["pairs.csv"])
    limit: int | None = Field(None, ge=1, le=10_000_000, examples=[100])
    """Pairs of the file that are taken at most: its first ones."""
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
    def _limit_is_of_a_file(self) -> "PromptsConfig":
        if self.limit is not None and self.file is None:
            raise ValueError(
                f"prompts.limit: got {self.limit} without a file, wanted prompts.file, whose first pairs it takes. "
                "Leave it out, or generate as many pairs with prompts.n."
            )
        return self

    @property
    def given(self) -> bool:
        """Whether the pair's texts are in the config, not in a file or up to a generator."""
        return self.n is None and self.file is None


class BaselineConfig(Frozen):
    """What activations are moved to."""

    kind: BaselineKind = "corrupted"
    prompt: str | None = Field(None, examples=["'When Tom and Anna met, Tom waved to'"])
    n: int = Field(100, ge=1, le=100_000, examples=[100])
    """Reference prompts of `mean`."""
    seed: Seed = Field(0, examples=[0])


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
    def _listed(cls, also: object) -> object:
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
    def _ascending(cls, alphas: object) -> object:
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


class RunConfig(Frozen):
    """One run."""

    model: ModelConfig
    prompts: PromptsConfig
    baseline: BaselineConfig
    ig: IGConfig
    ablation: AblationConfig
    curves: CurvesConfig
    tracking: TrackingConfig
    sites: SitesSetting = "both"
    """What is attributed to, compared and shown."""
    direction: Direction = "noising"
    explain: bool = True
    interactions: str | None = Field(None, examples=["'9.6'"])  # 9.10 unquoted is a number in YAML
    """The head whose interactions with its layer are listed; needs explain."""
    faithfulness: Literal["none", "heads", "neurons", "both"] = "none"
    analyses: dict[str, dict[str, JsonValue]] = Field({})
    """Settings of further analyses, by their names; each checks its own (`igap.analyses.base.Analysis.settings`)."""
    study: Literal["notebook"] | None = None
    """Several runs that belong together."""
    seed: Seed = Field(0, examples=[0])
    device: Device = Field("auto", examples=["cpu"])
    batch_size: int | None = Field(None, ge=1, le=1_000_000, examples=[64])
    memory_gib: float | None = Field(None, gt=0, le=1_000_000, examples=[2])
    """GiB of one pass, beyond the model."""
    output: PathText = Field("runs", examples=["runs"])
    plots: str = Field("all", min_length=1, max_length=10_000, examples=["'heads_heatmap jaccard'"])
    """The pictures that are drawn: all, none, or names."""
    sweep: PathText = Field("multirun", pattern=r"^[\w][\w.-]*$", examples=["multirun"])
    """The folder in `output` that a multirun's runs go to."""
    stale: Literal["keep", "redo"] = "keep"
    """Finished runs that other versions of the code made."""
    keep_going: bool = False
    """Whether impossible jobs are dropped."""

    @field_validator("output")
    @classmethod
    def _no_interpolation(cls, output: str) -> str:
        if "${" in output:  # Hydra, which logs there, would resolve it
            raise ValueError("a folder without ${ in its name")
        return output

    @field_validator("interactions")
    @classmethod
    def _a_head(cls, name: str | None) -> str | None:
        if name is not None and not (is_component(name) and parse_component(name)[0] == "heads"):
            raise ValueError("a head such as 9.6, or null")
        return name

    @property
    def asked_sites(self) -> tuple[Site, ...]:
        """`sites` one by one."""
        return sites_named(self.sites)

    @model_validator(mode="after")
    def _sites_are_asked_for(self) -> "RunConfig":
        curves, ablated = self.curves.components, self.ablation.components
        ablates = self.ablation.kind != "none"
        about = {
            "study": (self.study, SITES if self.study else ()),
            "faithfulness": (self.faithfulness, sites_named(self.faithfulness)),
            "interactions": (self.interactions, ("heads",) if self.interactions else ()),
            "curves.components": (curves, sites_of(curves.split())),
            "ablation.components": (
                ablated,
                () if not ablates else ("heads",) if ablated in ("outliers", "top") else sites_of(ablated.split()),
            ),
        }
        for item, (got, sites) in about.items():
            for site in sites:
                if site not in self.asked_sites:
                    raise ValueError(
                        f"{item}: got {got} with sites={self.sites}, wanted {site} among the sites. Set sites=both, or "
                        f"another {item}."
                    )
        return self

    @model_validator(mode="after")
    def _possible(self) -> "RunConfig":
        if problem := denoising_problem(self.direction, self.baseline.kind):
            raise ValueError(problem)
        if self.interactions is not None and not (self.explain and self.ig.path == "joint"):
            raise ValueError(
                f"interactions: got {self.interactions} with explain={str(self.explain).lower()} and "
                f"ig.path={self.ig.path}, wanted the joint path, on which heads interact, explained. Set explain=true "
                "ig.path=joint, or interactions=null."
            )
        prompts = self.prompts
        if self.study is not None and not (
            prompts.given and self.baseline.kind == "corrupted" and self.direction == "noising"
        ):
            raise ValueError(
                f"study: got {self.study}, which starts from the texts of one prompt pair, baseline=corrupted and "
                "direction=noising, and varies them itself. Leave prompts.n, prompts.file, baseline, direction alone."
            )
        if prompts.n is not None and prompts.file is not None:
            raise ValueError(
                f"prompts.file: got {prompts.file!r} together with prompts.n={prompts.n}, wanted one of the two: pairs "
                "come from a file or are generated. Leave one out."
            )
        replayed = {"zero", "mean"} <= {self.ablation.kind, *self.ablation.also}
        if self.study is not None and replayed and not self.ablation.generate:
            raise ValueError(
                f"ablation.generate: got false with study={self.study}, wanted true: it compares what the notebook's "
                "criterion says of zero and mean ablation. Set ablation.generate=true."
            )
        for name in TEXTS if prompts.given else ():
            if getattr(prompts, name) is None:
                raise ValueError(f"prompts.{name}: got nothing, wanted a text. Try {example(('prompts', name))}.")
        return self

    def key_of(self, pairs: Sequence[Sequence[str]], contents: Mapping[str, str]) -> str:
        """12 hex digits of what determines the numbers: the settings, and the TEXTS of the pairs, in their order.

        Not tracking, output, device or memory. Pairs, the checkpoint and other files count by what they hold and not
        by their names: `contents` are hashes of all that the settings only name. Of the baseline counts what its kind
        uses.
        """
        fields = self.model_dump(mode="json", exclude=set(EXECUTION_KEYS) | {"seed"})
        fields["contents"] = dict(contents)
        for name in ("name", "revision"):
            del fields["model"][name]
        del fields["ablation"]["file"]
        if not self.analyses:
            del fields["analyses"]
        if self.sites == "both":  # as before there was a choice: a finished run's key stays what it was
            del fields["sites"]
        used = {"prompt": {"prompt"}, "mean": {"n", "seed"}}.get(self.baseline.kind, set())
        prompts = self.prompts
        if len(pairs) == 1:
            fields["prompts"] = dict(zip(TEXTS, pairs[0], strict=True))
        else:
            fields["prompts"] = {"pairs": [list(texts) for texts in pairs], "seed": prompts.seed}
        fields["prompts"] |= {"min_gap": prompts.min_gap, "align": prompts.align}
        if prompts.bos != "auto":
            fields["prompts"]["bos"] = prompts.bos
        if self.faithfulness != "none" or self.analyses:  # random rankings; the mean activation that ablates
            fields["seed"], used = self.seed, used | {"n", "seed"}
        if self.ablation.kind == "none":
            fields["ablation"] = {"kind": "none"}
        fields["baseline"] = self.baseline.model_dump(mode="json", include={"kind", *used})
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def parse(values: Mapping[str, Any]) -> RunConfig:
    """Validate the settings of a run. Raises InputError, one line a mistake: item, got, wanted, remedy."""
    return validate_settings(RunConfig, values)


def validate_settings(schema: type[Schema], values: Mapping[str, Any]) -> Schema:
    """Validate settings against a schema. Raises InputError as `parse` does."""
    try:
        return schema.model_validate(dict(values))
    except ValidationError as error:
        mistakes: list[dict[str, Any]] = [dict(mistake) for mistake in error.errors(include_url=False)]
        lists = {
            mistake["loc"][:-1] for mistake in mistakes
        }  # pydantic calls a list with bad entries too short as well
        mistakes = [each for each in mistakes if each["type"] != "too_short" or each["loc"] not in lists]
        # A key that takes its value from a key of the same name at the top is reported there.
        at_top = {(each["loc"], each["type"], short_repr(each["input"])) for each in mistakes if len(each["loc"]) == 1}
        mistakes = [
            each
            for each in mistakes
            if len(each["loc"]) < 2 or (each["loc"][-1:], each["type"], short_repr(each["input"])) not in at_top
        ]
        lines: dict[tuple[str, ...], str] = {}
        for mistake in mistakes:
            lines.setdefault(_path(mistake), _explain(mistake, schema))  # one line a list, about its first bad entry
        raise InputError("\n".join(lines.values())) from None


def field_at(path: tuple[str, ...], schema: type[Frozen] = RunConfig) -> Any | None:
    """The pydantic field (or the group's class) at a dotted key; None if there is none."""
    model: Any = schema
    field: Any = None
    for name in path:
        if not (isinstance(model, type) and issubclass(model, BaseModel)) or name not in model.model_fields:
            return None
        field = model.model_fields[name]
        model = field.annotation
    return field


def example(path: tuple[str, ...], schema: type[Frozen] = RunConfig) -> str:
    """An override with a valid value of this key: "ig.n_steps=50"."""
    field = field_at(path, schema)
    default = None if field is None or field.is_required() else field.get_default()
    value = default if default is not None else next(iter(getattr(field, "examples", None) or []), "VALUE")
    value = f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else value
    return f"{'.'.join(path)}={value}"


def noun(schema: type[Frozen]) -> str:
    """The schema's subject: "run" or "search"."""
    return schema.__name__.removesuffix("Config").lower()


def keys(schema: type[Frozen] = RunConfig) -> list[str]:
    """All dotted keys of a schema, in order."""
    names = []
    for name, field in schema.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, Frozen):
            names += [f"{name}.{key}" for key in keys(group)]
        else:
            names.append(name)
    return names


def _path(error: dict[str, Any]) -> tuple[str, ...]:
    """The dotted key of a mistake, without indices of a list."""
    return tuple(part for part in error["loc"] if isinstance(part, str))


def _explain(error: dict[str, Any], schema: type[Frozen]) -> str:
    path = _path(error)
    item, got, kind, details = ".".join(path), error["input"], error["type"], error.get("ctx", {})
    group = getattr(field_at(path, schema), "annotation", None) if kind == "value_error" else None
    if not path or (isinstance(group, type) and issubclass(group, Frozen)):
        # a combination, explained where it is checked
        return str(details["error"])
    if kind == "extra_forbidden":
        known = ", ".join(keys(schema))
        return f"{item}: got a key that no {noun(schema)} has, wanted one of {known}. Remove it or correct the name."
    if kind == "model_type" and isinstance(got, str):
        option = f"{'/'.join(path)}={got}"
        return f"{item}: got {short_repr(got)}, wanted settings of this group. Choose an option of it: {option}."
    wanted = {
        "missing": "a value",
        "bool_type": "true or false",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "string_type": "a text",
        "string_too_short": "a text that is not empty",
        "string_too_long": f"at most {details.get('max_length')} characters",
        "too_short": "at least one entry",
        "tuple_type": "a list, [A,B]",
        "dict_type": "settings by name, {NAME: {KEY: VALUE}}",
        "greater_than_equal": f"at least {details.get('ge')}",
        "greater_than": f"more than {details.get('gt', 0):g}",
        "less_than": f"less than {details.get('lt', 0):g}",
        "less_than_equal": f"at most {details.get('le')}",
        "finite_number": "a finite number",
        "literal_error": f"one of {details.get('expected')}",
        "string_pattern_mismatch": {
            "device": "auto, cpu, cuda, cuda:N or mps",
            "sweep": "a folder's name (letters, digits, dots, dashes)",
            "name": "a folder's name (letters, digits, dots, dashes)",
            "search.storage.address": "HOST:PORT",
        }.get(item, "another text"),
        "value_error": str(details.get("error")),
    }.get(kind, error["msg"])
    value = "nothing" if kind == "missing" else short_repr(got)
    return f"{item}: got {value}, wanted {wanted}. Try {example(path, schema)}."
