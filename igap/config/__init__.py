"""What a run is: frozen models of `conf/`, which refuse unknown keys, wrong types and impossible combinations.

`schema`: what all schemas share, those of searches too. `groups`: a model for each group. `run`: the whole run. Nothing
here reads a file or imports a heavy library.
"""

from igap.config.groups import (
    TEXTS,
    AblationConfig,
    BaselineConfig,
    MetricConfig,
    ModelConfig,
    PathText,
    PositionsConfig,
    PromptsConfig,
    Seed,
    TrackingConfig,
)
from igap.config.run import EXECUTION_KEYS, Device, Idle, RunConfig, parse
from igap.config.schema import Frozen, Schema, example, field_at, keys, noun, validate_settings

__all__ = [
    "EXECUTION_KEYS",
    "TEXTS",
    "AblationConfig",
    "BaselineConfig",
    "Device",
    "Frozen",
    "Idle",
    "MetricConfig",
    "ModelConfig",
    "PathText",
    "PositionsConfig",
    "PromptsConfig",
    "RunConfig",
    "Schema",
    "Seed",
    "TrackingConfig",
    "example",
    "field_at",
    "keys",
    "noun",
    "parse",
    "validate_settings",
]
