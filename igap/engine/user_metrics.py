"""A run's metric from its settings: one of METRICS, or a function of the user's, imported by its name."""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType

import torch

from igap.config import MetricConfig
from igap.engine.metrics import check_custom
from igap.errors import InputError, one_line
from igap.inputs.prompts import TokenPair
from igap.metrics import AnyMetric, CustomMetric


def metric_of(config: MetricConfig) -> AnyMetric:
    """F as the methods take it. Raises InputError where the function cannot be imported."""
    return config.name if config.name != "custom" else _import(config)[1]


def source_digest(config: MetricConfig) -> str:
    """SHA-256 of the file that is named and of the one that the function stands in: a change makes another run.

    Raises InputError where there is no such file.
    """
    module, function = _import(config)
    return file_digest(function, f"metric.function: got {config.function}", str(module.__file__))


def file_digest(function: CustomMetric, got: str, *files: str) -> str:
    """SHA-256 of the file that a function stands in, and of these before it.

    Raises InputError, which begins with `got`, where there is no such file.
    """
    try:
        every = [*files, str(inspect.getsourcefile(inspect.unwrap(function)))]
        return hashlib.sha256(b"".join(Path(file).read_bytes() for file in dict.fromkeys(every))).hexdigest()
    except (AttributeError, TypeError, OSError):
        raise InputError(
            f"{got}, whose source file cannot be read, wanted a Python function, whose text says which metric it is."
        ) from None


def try_metric(config: MetricConfig, pairs: Sequence[TokenPair], n_vocab: int) -> None:
    """Raises InputError where the function is no metric, as far as logits that are drawn by chance show."""
    _, function = _import(config)
    for pair in pairs:
        logits = torch.randn(pair.n_read, n_vocab, generator=torch.Generator().manual_seed(0))
        check_custom(function, pair, logits, made_up=True)


def _import(config: MetricConfig) -> tuple[ModuleType, CustomMetric]:
    """The module and its function, of an installed package or below the working folder, as they stand on disk now."""
    name = str(config.function).strip()
    module, _, attribute = name.partition(":")
    here = str(Path.cwd())
    added = here not in sys.path
    sys.path[:0] = [here] if added else []
    try:
        loaded = _load(module)
        function = getattr(loaded, attribute)
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
    return loaded, function


def _load(name: str) -> ModuleType:
    """A module as its file is now: Python's own would be that of the first import, with the digest of another text."""
    parent, _, _ = name.rpartition(".")
    importlib.invalidate_caches()
    spec = PathFinder.find_spec(name, importlib.import_module(parent).__path__ if parent else None)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return importlib.import_module(name)
    module = module_from_spec(spec)
    exec(compile(Path(spec.origin).read_bytes(), spec.origin, "exec"), module.__dict__)
    return module
