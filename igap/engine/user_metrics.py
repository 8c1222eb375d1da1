"""A run's metric from its settings: one of METRICS, or a function of the user's, imported by its name."""

import hashlib
import importlib
import inspect
import sys
from pathlib import Path

from igap.config import MetricConfig
from igap.engine.metrics import CustomMetric
from igap.errors import InputError, one_line
from igap.vocabulary import MetricName


def metric_of(config: MetricConfig) -> MetricName | CustomMetric:
    """F as the methods take it. Raises InputError where the function cannot be imported."""
    return config.name if config.name != "custom" else _import(str(config.function).strip())


def source_digest(function: CustomMetric) -> str:
    """SHA-256 of the file that the function stands in: a change of it makes another run."""
    try:
        return hashlib.sha256(Path(str(inspect.getsourcefile(function))).read_bytes()).hexdigest()
    except (TypeError, OSError):
        raise InputError(
            f"metric.function: got {function!r:.100}, whose source file cannot be read, wanted a Python function, "
            "whose text says which metric it is."
        ) from None


def _import(name: str) -> CustomMetric:
    """The function `package.module:name`, of an installed package or below the working folder."""
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    sys.path[:0] = [here] if added else []
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise InputError(
            f"metric.function: got {name}, which cannot be imported ({one_line(error)}), wanted package.module:name, "
            "installed or below the working folder."
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    if not callable(function):
        raise InputError(f"metric.function: got {name}, which is {type(function).__name__}, wanted a function.")
    metric: CustomMetric = function
    return metric
