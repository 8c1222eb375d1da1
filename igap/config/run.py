"""A run's settings: its groups, the keys at the top, what goes together, and the hash that names a run."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, JsonValue, field_validator, model_validator

from igap.components import PLACES, SITES, Site, component_name, parse_component, setting_with, sites_named, sites_of
from igap.config.ap import APConfig, top_problem
from igap.config.groups import (
    TEXTS,
    AblationConfig,
    BaselineConfig,
    CurvesConfig,
    FolderName,
    IGConfig,
    MetricConfig,
    ModelConfig,
    PathText,
    PositionsConfig,
    PromptsConfig,
    Seed,
    TrackingConfig,
)
from igap.config.schema import Frozen, example, validate_settings
from igap.vocabulary import BASELINE_SETTINGS, LEAST_ON_CLEAN, AblationKind, Direction, denoising_problem

EXECUTION_KEYS = (
    *("tracking", "output", "plots", "sweep", "stale", "keep_going"),
    *("device", "batch_size", "memory_gib"),
)
"""Keys that say where and how a run is done, and not what it finds."""

Device = Annotated[
    str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?|mps)$", description="auto, cpu, cuda, cuda:N or mps")
]


@dataclass(frozen=True)
class Idle:
    """Settings that change nothing in a run, for one reason; those that have their default values are none."""

    values: Mapping[str, Any]
    """Dotted key to value."""
    defaults: Mapping[str, Any]
    """Dotted key to the value that the run would have without the setting."""
    reason: str


class RunConfig(Frozen):
    """One run."""

    model: ModelConfig
    prompts: PromptsConfig
    baseline: BaselineConfig
    ig: IGConfig
    ablation: AblationConfig
    curves: CurvesConfig
    tracking: TrackingConfig
    metric: MetricConfig = MetricConfig()
    positions: PositionsConfig = PositionsConfig()
    ap: APConfig = APConfig()
    sites: str = "both"
    """What is attributed to, compared and shown: both (heads and neurons), or names of `PLACES`, a space between."""
    methods: str = Field("default", examples=["[conductance,relp]"])
    """Attribution methods beside those that every run has: default (none), all, or their names, a space between."""
    direction: Direction = "noising"
    explain: bool | str = Field(True, examples=["true", "[heads,resid_pre]"])
    """Whether AP - IG of heads is taken apart; all: of every site of the run; or names of sites, a space between."""
    interactions: str | None = Field(None, examples=["'9.6'"])  # 9.10 unquoted is a number in YAML
    """The component of an explained site whose interactions with its layer are listed; by positions `9.6@S2`."""
    faithfulness: str = "none"
    """The sites whose rankings are tried: none, both, or names."""
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
    sweep: FolderName = Field("multirun", examples=["multirun"])
    """The folder in `output` that a multirun's runs go to."""
    stale: Literal["keep", "redo"] = "keep"
    """Finished runs that other versions of the code made."""
    keep_going: bool = False
    """Whether impossible jobs are dropped."""

    @field_validator("sites", mode="before")
    @classmethod
    def _sites_by_name(cls, sites: object) -> str:
        return _names_of_sites(sites, ("both",))

    @field_validator("methods", mode="before")
    @classmethod
    def _methods_by_name(cls, methods: object) -> str:
        listed = methods.replace(",", " ").split() if isinstance(methods, str) else methods
        names = [*listed] if isinstance(listed, list | tuple) else []
        told = all(isinstance(name, str) and name.isidentifier() for name in names)
        if not names or not told or len(set(names)) < len(names) or (len(names) > 1 and {"default", "all"} & {*names}):
            raise ValueError("default, all, or names of methods, [conductance,relp], each once")
        return " ".join(sorted(names))

    @field_validator("faithfulness", mode="before")
    @classmethod
    def _ranked_sites_by_name(cls, sites: object) -> str:
        return _names_of_sites(sites, ("none", "both"))

    @field_validator("explain", mode="before")
    @classmethod
    def _true_false_or_sites(cls, explain: object) -> bool | str:
        if isinstance(explain, bool) or explain == "all":
            return explain
        listed = explain.replace(",", " ").split() if isinstance(explain, str) else explain
        names = list(listed) if isinstance(listed, list | tuple) else []
        known = all(isinstance(name, str) and name in PLACES for name in names)
        if not names or not known or len(set(names)) < len(names):
            raise ValueError("true, false, all, or sites of the run, [heads,resid_pre], each once")
        return " ".join(site for site in PLACES if site in names)

    @field_validator("output")
    @classmethod
    def _no_interpolation(cls, output: str) -> str:
        if "${" in output:  # Hydra, which logs there, would resolve it
            raise ValueError("a folder without ${ in its name")
        return output

    @field_validator("interactions")
    @classmethod
    def _a_component(cls, name: str | None) -> str | None:
        if name is None:
            return None
        component, at, span = name.partition("@")
        try:
            return component_name(*parse_component(component)) + at + span
        except ValueError:
            raise ValueError(
                "a head such as 9.6 or another component, by positions with one, 9.6@10, or null"
            ) from None

    @property
    def asked_sites(self) -> tuple[Site, ...]:
        """`sites` one by one."""
        return sites_named(self.sites)

    @property
    def explained_sites(self) -> tuple[Site, ...]:
        """The sites whose AP - IG is taken apart."""
        if self.explain == "all":
            return self.asked_sites
        named = ("heads",) if self.explain is True else sites_named(self.explain or "none")
        return tuple(site for site in self.asked_sites if site in named)

    @property
    def _split_site(self) -> tuple[Site, ...]:
        return () if self.interactions is None else (parse_component(self.interactions.partition("@")[0])[0],)

    @model_validator(mode="after")
    def _sites_are_asked_for(self) -> "RunConfig":
        curves, ablated = self.curves.components, self.ablation.components
        ablates = self.ablation.kind != "none"
        about = {
            "study": (self.study, SITES if self.study else ()),
            "faithfulness": (self.faithfulness, sites_named(self.faithfulness)),
            "interactions": (self.interactions, self._split_site),
            "explain": (self.explain, sites_named(self.explain) if isinstance(self.explain, str) else ()),
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
                        f"{item}: got {got} with sites={self.sites}, wanted {site} among the sites. Set "
                        f"sites={setting_with(self.asked_sites, site)}, or another {item}."
                    )
        return self

    @model_validator(mode="after")
    def _combinations_are_valid(self) -> "RunConfig":
        others = [site for site in self.asked_sites if site not in SITES]
        if self.baseline.kind == "zero_input" and others:
            raise ValueError(
                f"baseline: got zero_input with sites={self.sites}, wanted heads or neurons, which have such a "
                "baseline. Use baseline=zero."
            )
        if self.study is not None and not (self.metric.is_default and self.positions.is_default):
            raise ValueError(
                f"study: got {self.study} with metric={self.metric.name} and positions={self.positions.kind}, wanted "
                "the logit difference and all positions, which it is about. Leave metric and positions alone."
            )
        if problem := denoising_problem(self.direction, self.baseline.kind):
            raise ValueError(problem)
        if problem := top_problem(self.ap, self.metric, self.direction, self.positions, self.study, self.asked_sites):
            raise ValueError(problem)
        unexplained = set(self._split_site) - set(self.explained_sites)
        if self.interactions is not None and (unexplained or self.ig.path != "joint"):
            name = str(self._split_site[0])
            raise ValueError(
                f"interactions: got {self.interactions} with explain={str(self.explain).lower()} and "
                f"ig.path={self.ig.path}, wanted the joint path, on which {name} interact, explained. Set explain="
                f"{'true' if name == 'heads' else name} ig.path=joint, or interactions=null."
            )
        prompts = self.prompts
        if self.study is not None and not (
            prompts.has_texts and self.baseline.kind == "corrupted" and self.direction == "noising"
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
        for name in TEXTS if prompts.has_texts else ():
            if getattr(prompts, name) is None:
                raise ValueError(
                    f"prompts.{name}: got nothing, wanted a text. Try {example(('prompts', name), RunConfig)}."
                )
        return self

    @property
    def idle(self) -> tuple[Idle, ...]:
        """Settings of what was not asked for, seeds apart, which `seed` sets all; the run warns of them.

        None is refused: `ablation=none,zero ablation.n=50` is a grid.
        """
        idle = []
        for group, names, reason in self._find_unused():
            settings = getattr(self, group) if group else self
            defaults = {name: type(settings).model_fields[name].get_default() for name in names}
            keys = {name: f"{group}.{name}" if group else name for name in names}
            values = {key: each for name, key in keys.items() if (each := getattr(settings, name)) != defaults[name]}
            if values:
                idle.append(Idle(values, {key: defaults[name] for name, key in keys.items()}, reason))
        return tuple(idle)

    def _find_unused(self) -> Iterator[tuple[str, list[str], str]]:
        """Groups ("" at the top), their keys that the run does not read, and why not."""
        ablation, curves = self.ablation, self.curves.components
        if ablation.kind == "none":
            names = [name for name in AblationConfig.model_fields if name not in ("kind", "seed")]
            yield "ablation", names, f"no ablation was asked for (ablation={'|'.join(get_args(AblationKind))})"
        else:
            if ablation.components != "top":
                yield "ablation", ["top", "by"], "only ablation.components=top takes the first of a ranking"
            if not {ablation.kind, *ablation.also} & {"mean", "mean_positional"}:
                yield "ablation", ["reference_n"], "only ablation=mean|mean_positional takes means"
        if curves in ("default", "none") and self.positions.has_axis:
            reason = f"the run chooses no heads for curves with positions={self.positions.kind}; name them"
            yield "curves", ["components", "alphas"], reason
        elif curves == "none" or (curves == "default" and "heads" not in self.asked_sites):
            yield "curves", ["alphas"], "no curves were asked for (curves.components='9.6 L5.N1234')"
        if self.direction == "noising" and self.metric.name in LEAST_ON_CLEAN:
            yield "", ["explain"], f"metric={self.metric.name} has no gradient on the clean prompt to explain with"
        if self.ap.top is None:
            yield "ap", ["tolerance"], "every effect is exact (ap.top=100 asks for the largest alone)"
        if self.ig.n_steps != "auto":
            yield "ig", ["tolerance"], f"ig.n_steps={self.ig.n_steps} is fixed, only ig.n_steps=auto has a tolerance"
        if self.metric.name != "custom":
            yield "metric", ["function"], f"metric={self.metric.name} is no function of yours (metric=custom)"
        if "n" not in BASELINE_SETTINGS.get(self.baseline.kind, ()) and not self._draws:
            yield "baseline", ["n"], "no mean over reference prompts was asked for (baseline=mean)"

    @property
    def _draws(self) -> bool:
        """Whether it draws: random rankings, the mean activation that ablates, orders and references of methods."""
        return self.faithfulness != "none" or bool(self.analyses) or self.methods != "default"

    def key_of(self, pairs: Sequence[Sequence[str | Sequence[str]]], contents: Mapping[str, str]) -> str:
        """12 hex digits of what determines the numbers: the settings, and the TEXTS of the pairs, in their order.

        Not tracking, output, device or memory. Pairs, the checkpoint and other files count by what they hold and not
        by their names: `contents` are hashes of all that the settings only name. Of the baseline counts what its kind
        uses; what changes nothing (`idle`) counts as if it were not set.
        """
        fields = self.model_dump(mode="json", exclude=set(EXECUTION_KEYS) | {"seed"})
        for idle in self.idle:
            for key, default in idle.defaults.items():
                group, _, name = key.rpartition(".")
                (fields[group] if group else fields)[name] = default
        fields["contents"] = dict(contents)
        for name in ("name", "revision"):
            del fields["model"][name]
        del fields["ablation"]["file"]
        fields["positions"] = self.positions.value  # however it was written
        defaults = {
            "analyses": not self.analyses,
            "methods": self.methods == "default",
            "sites": self.sites == "both",
            "metric": self.metric.is_default,
            "positions": self.positions.is_default,
            "ap": self.ap.top is None,
        }
        for name in (each for each, is_default in defaults.items() if is_default):
            del fields[name]  # a finished run's key stays what it was before there was a choice
        used = set(BASELINE_SETTINGS.get(self.baseline.kind, ()))
        prompts = self.prompts
        if len(pairs) == 1:
            fields["prompts"] = dict(zip(TEXTS, pairs[0], strict=True))
        else:
            fields["prompts"] = {"pairs": [list(texts) for texts in pairs], "seed": prompts.seed}
        fields["prompts"] |= {"min_gap": prompts.min_gap, "align": prompts.align}
        if prompts.bos != "auto":
            fields["prompts"]["bos"] = prompts.bos
        if self._draws:
            used |= {"n", "seed"}
        if self._draws or self.ap.top is not None:  # whose subsets are drawn
            fields["seed"] = self.seed
        if self.ablation.kind == "none":
            fields["ablation"] = {"kind": "none"}
        fields["baseline"] = self.baseline.model_dump(mode="json", include={"kind", *used})
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def _names_of_sites(sites: object, words: Sequence[str]) -> str:
    """Names in the order of `PLACES`, `both` for what is that, or one of the words that stand alone."""
    listed = sites.replace(",", " ").split() if isinstance(sites, str) else sites
    names = list(listed) if isinstance(listed, list | tuple) else []
    if len(names) == 1 and names[0] in words:
        return str(names[0])
    known = all(isinstance(name, str) and name in PLACES for name in names)
    if not names or not known or len(set(names)) < len(names):
        wanted = f"one of {', '.join(map(repr, (*words, *PLACES)))}"
        raise ValueError(wanted if len(names) == 1 else f"{wanted}, or several sites, [heads,resid_pre], each once")
    chosen = tuple(site for site in PLACES if site in names)
    return "both" if chosen == SITES else " ".join(chosen)


def parse(values: Mapping[str, Any]) -> RunConfig:
    """Validate the settings of a run. Raises InputError, one line a mistake: item, got, wanted, remedy."""
    return validate_settings(RunConfig, values)
