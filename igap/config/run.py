"""A run's settings: its groups, the keys at the top, what goes together, and the hash that names a run."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from igap.components import SITES, Site, is_component, parse_component, sites_named, sites_of
from igap.config.groups import (
    TEXTS,
    AblationConfig,
    BaselineConfig,
    CurvesConfig,
    FolderName,
    IGConfig,
    ModelConfig,
    PathText,
    PromptsConfig,
    Seed,
    TrackingConfig,
)
from igap.config.schema import Frozen, example, validate_settings
from igap.vocabulary import Direction, SitesSetting, denoising_problem

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


Device = Annotated[
    str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,3})?|mps)$", description="auto, cpu, cuda, cuda:N or mps")
]


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
    sweep: FolderName = Field("multirun", examples=["multirun"])
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
    def _combinations_are_valid(self) -> "RunConfig":
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
                raise ValueError(
                    f"prompts.{name}: got nothing, wanted a text. Try {example(('prompts', name), RunConfig)}."
                )
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
