"""What a search is: the frozen model of `conf/search.yaml`. Reads no file and imports no heavy library."""

from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from igap.config import Frozen, ModelConfig, PromptsConfig, TrackingConfig
from igap.sites import is_component

SAMPLERS = ("hybrid", "gradient", "evolution", "thompson", "tpe", "nsga2", "gp", "random", "brute")


class SpaceConfig(Frozen):
    """Which corrupted prompts there are."""

    kind: Literal["slots"] = "slots"
    template: str | None = Field(None, min_length=1)
    slots: dict[str, tuple[str, ...]] = Field(min_length=1)

    @field_validator("slots", mode="before")
    @classmethod
    def _listed(cls, slots: object) -> object:
        if not isinstance(slots, dict):
            return slots
        return {name: tuple(words) if isinstance(words, list) else words for name, words in slots.items()}


class StorageConfig(Frozen):
    """Where the trials are kept."""

    kind: Literal["sqlite", "journal", "memory"] = "sqlite"


class StudyConfig(Frozen):
    """How candidates are chosen, and how many."""

    space: SpaceConfig
    storage: StorageConfig
    sampler: Literal["hybrid", "gradient", "evolution", "thompson", "tpe", "nsga2", "gp", "random", "brute"] = "hybrid"
    until: int = Field(300, ge=1, le=10_000_000)
    batch: int = Field(16, ge=1, le=100_000)
    control: int = Field(60, ge=0, le=1_000_000)


class CleanConfig(Frozen):
    """The clean prompts that the search sees."""

    n: int = Field(8, ge=1, le=10_000)


class HeldoutConfig(Frozen):
    """Clean prompts that the search does not see."""

    n: int = Field(32, ge=0, le=10_000)


class SearchConfig(Frozen):
    """One search."""

    model: ModelConfig
    prompts: PromptsConfig
    tracking: TrackingConfig
    search: StudyConfig
    clean: CleanConfig
    heldout: HeldoutConfig
    head: str = Field(examples=["9.6"])
    objective: Literal["ap", "ig", "disagreement"] = "ap"
    sign: Literal["drop", "raise", "abs"] = "abs"
    aggregate: Literal["mean", "cvar", "min"] = "mean"
    name: str | None = Field(None, pattern=r"^[\w][\w.-]*$", examples=["my-search"])
    seed: int = Field(0, ge=0, examples=[0])
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$", examples=["cpu"])
    memory_gib: float | None = Field(None, gt=0, examples=[2])
    output: str = Field("searches", min_length=1, examples=["searches"])

    @field_validator("head", mode="before")
    @classmethod
    def _named(cls, head: object) -> Any:
        if not (isinstance(head, str) and is_component(head)):
            raise ValueError("a head such as 9.6 or a neuron such as L5.N1234")
        return head

    @model_validator(mode="after")
    def _possible(self) -> "SearchConfig":
        if not self.prompts.given:
            raise ValueError(
                "prompts: got several pairs, wanted the one pair that the search starts from; it makes further clean "
                "prompts itself (clean.n). Use prompts=ioi or the four texts of a pair."
            )
        return self

    @property
    def folder_name(self) -> str:
        """Of the search in `output`: `name`, or head and objective."""
        return self.name or f"{self.head}-{self.objective}"
