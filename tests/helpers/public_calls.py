"""A valid call of everything public that takes arguments, and hostile values for each of those.

A hostile value has a name. `takes` says which of them a parameter takes all the same.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from transformer_lens.model_bridge import TransformerBridge

import igap
from helpers.handmade import PAIR
from helpers.searched import ABBA
from helpers.small_searches import SPACE
from igap.counterfactual.config import Constraints


@dataclass(frozen=True)
class Call:
    """A public function, class or bound method, and an argument that fits for every one of its parameters."""

    function: Callable[..., object]
    arguments: Mapping[str, object]

    def changed(self, **arguments: object) -> object:
        return self.function(**{**self.arguments, **arguments})


def public() -> dict[str, tuple[str, ...]]:
    """Every public function, class and method that takes arguments, with their names; no exceptions."""
    callables = {}
    for name in igap.__all__:
        thing = getattr(igap, name)
        if inspect.isclass(thing) and issubclass(thing, Exception):
            continue
        callables[name] = thing
        if inspect.isclass(thing):
            for method, function in vars(thing).items():
                if inspect.isfunction(function) and not method.startswith("_"):
                    callables[f"{name}.{method}"] = function
    named = {name: tuple(inspect.signature(each).parameters) for name, each in callables.items()}
    own = {name: tuple(each for each in parameters if each != "self") for name, parameters in named.items()}
    return {name: parameters for name, parameters in own.items() if parameters}


def calls(model: TransformerBridge, checkpoint: Path, scratch: Path, run_folder: Path) -> dict[str, Call]:
    """The calls by the names that `public` has; `model` has at least two layers of four heads."""
    ig = igap.integrated_gradients(model, PAIR, n_steps=3)
    by_position = igap.integrated_gradients(model, PAIR, n_steps=3, positions="each")
    ap = igap.activation_patching(model, PAIR)
    compared = igap.compare(ig, ap)
    both = igap.both_directions(model, PAIR, high=0.1, n_steps=3)
    repair, direct = igap.self_repair(model, PAIR, "1.2"), igap.direct_effect(model, PAIR)
    edges = igap.edge_effects(model, PAIR)
    curves = igap.output_curve(model, PAIR, ["0.1", "1.2"])
    together = igap.set_effects(model, PAIR, "0.1+1.2", n_steps=2)
    prompts = [igap.Prompt(PAIR.clean, PAIR.answer, PAIR.distractor), igap.Prompt(PAIR.corrupted, PAIR.distractor)]
    ablating = {
        "model": model, "prompts": prompts, "components": ["0.1", "1.2"], "kind": "mean", "reference_n": 2, "seed": 1,
        "controls": 1, "generate": False, "batch_size": 2, "memory_gib": 1.0, "on_progress": None,
        "positions": "last", "metric": "prob",
    }  # fmt: skip
    searching = {
        "model": model, "pair": ABBA, "head": "0.2@S2", "space": SPACE, "objective": "ap", "metric": "prob",
        "sign": "abs",
        "aggregate": "mean", "penalty": 1.0, "estimator": "atp", "constraints": Constraints(min_clean=None), "until": 4,
        "sampler": "random", "batch": 4, "control": 1, "clean_n": 1, "heldout_n": 0, "seed": 0, "storage": None,
        "clean_lengths": "one", "heldout": None, "reference": None,
        "name": "study", "identity": {"weights": "these"}, "remember": scratch / "numbers.sqlite", "memory_gib": 1.0,
        "optimality": None, "on_progress": None,
    }  # fmt: skip
    asking = {
        "model": model, "pair": PAIR, "site": "heads", "baseline": "corrupted", "direction": "noising",
        "batch_size": 4, "memory_gib": 1.0, "route": "hooks", "on_progress": None,
    }  # fmt: skip

    finished = igap.open_run(run_folder)
    sweep = igap.open_sweep(run_folder.parent)

    def ask(*without: str, **more: object) -> dict[str, object]:
        return {name: value for name, value in (asking | more).items() if name not in without}

    integrating = {
        "n_steps": 3, "tolerance": 0.01, "tolerance_of": "gap", "method": "riemann_left", "path": "joint",
        "positions": "each", "metric": "kl",
    }  # fmt: skip
    made = {
        "PromptPair": _fields(PAIR),
        "Prompt": _fields(prompts[0]),
        "Baseline": _fields(igap.Baseline("mean", n=3)),
        "AttributionMap": _fields(by_position),
        "Comparison": _fields(compared),
        "OutputCurves": _fields(curves),
        "Ablations": _fields(igap.ablate(**ablating)),
        "SetEffects": _fields(together),
        "SearchResult": _fields(igap.search(**searching)),
        "BothDirections": _fields(both),
        "BothDirections.asymmetry": {"method": "ig", "kind": "score"},
        "BothDirections.names_of": {"kind": "minimal"},
        "both_directions": ask(
            "baseline", "direction", high=0.1, most=2, n_steps=3, metric="prob", positions="last"
        ),
        "SelfRepair": _fields(repair),
        "SelfRepair.change": {"kind": "score"},
        "self_repair": ask("baseline", patched="1.2@early", metric="prob", positions={"early": [1, 2]}),
        "DirectEffects": _fields(direct),
        "DirectEffects.indirect": {"kind": "score"},
        "direct_effect": ask("baseline", "route", metric="prob", positions="last"),
        "EdgeEffects": _fields(edges),
        "EdgeEffects.largest": {"n": 3},
        "EdgeEffects.circuit": {"n_edges": 5},
        "EdgeEffects.to_mib": {"n_edges": 5},
        "edge_effects": ask(
            "site", "baseline", "route", method="ap", readers=["logits"], metric="prob", n_steps=3
        ),
        "activation_patching": ask(positions="all", metric="logit_diff", top=2, tolerance=0.5, seed=1),
        "bound_effects": ask(
            "site", "on_progress", ranking=ap, top=2, confidence=0.9, n_subsets=4, metric="logit_diff", seed=1
        ),
        "EffectBound": _fields(igap.bound_effects(model, PAIR, ap, 2)),
        "Top": _fields(igap.activation_patching(model, PAIR, top=2).top),
        "atp_star": ask("route", metric="prob"),
        "attribution_patching": ask("batch_size", "memory_gib", at=0.5, positions="diff", metric="prob"),
        "integrated_gradients": ask(**integrating),
        "compare": {"ig": ig, "ap": ap},
        "ablate": ablating,
        "output_curve": ask(
            "site", "on_progress", components=["0.1"], alphas=[0.0, 0.5, 1.0], positions="last", metric="prob"
        ),
        "set_effects": ask(
            "site", components="0.1+1.2", positions={"early": [1, 2]}, metric="prob", n_orders=3, n_steps=2, seed=1
        ),
        "search": searching,
        "run": {"overrides": "tracking=disabled", "folder": scratch / "run"},
        "open_run": {"folder": finished.folder},
        "open_sweep": {"folder": finished.folder.parent},
        "run_bench": {"circuits": ["or"], "on_progress": None},
        "bench_model": ask("site", "baseline", "direction", "route", sites=["heads"], top=3),
        "Run": _fields(finished),
        "Sweep": _fields(sweep),
        "Constraints": dict(Constraints()),
        "SpaceConfig": dict(igap.SpaceConfig(slots=SPACE)),
        "load_model": {
            "name": str(checkpoint), "processing": "raw", "device": "cpu", "dtype": "float32", "revision": None
        },
        "AttributionMap.at": {"span": "0"},
        "AttributionMap.incomplete_layers": {"tolerance": 0.01},
        "Comparison.jaccard_at": {"k": 2},
        "Comparison.outliers": {"site": "heads"},
        "OutputCurves.extrema": {"index": 1},
        "SetEffects.reading": {"subset": "0.1+1.2"},
        "Comparison.plot": {"kind": "jaccard"},
        "Run.plot": {"name": "heads_heatmap"},
        "Sweep.to_frame": {"metrics": ["gap"]},
    }  # fmt: skip
    results = {
        "BothDirections": both,
        "DirectEffects": direct,
        "EdgeEffects": edges,
        "SelfRepair": repair,
        "Comparison": compared,
        "OutputCurves": curves,
        "Run": finished,
        "SetEffects": together,
        "Sweep": sweep,
    }
    objects = {"AttributionMap": by_position, **results}
    return {name: Call(_bound(name, objects), arguments) for name, arguments in made.items()}


def _fields(made: object) -> dict[str, object]:
    return {field.name: getattr(made, field.name) for field in fields(made)}


def _bound(name: str, objects: Mapping[str, object]) -> Callable[..., object]:
    if name == "run":
        return lambda overrides, folder: igap.run(overrides, folder=folder)
    owner, _, method = name.partition(".")
    return getattr(objects[owner], method) if method else getattr(igap, name)


class Unspeakable:
    """An object that does not even tell its name."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


def _endless() -> list[object]:
    holds_itself: list[object] = []
    holds_itself.append(holds_itself)
    return holds_itself


def _none_left() -> Iterator[object]:
    yield from ()


def hostile(hf_model: object) -> dict[str, object]:
    """Values that are wrong for most parameters; a plain Hugging Face model is among them."""
    return {
        "None": None,
        "True": True,
        "numpy True": np.bool_(True),
        "0": 0,
        "-1": -1,
        "5": 5,
        "numpy 5": np.int64(5),
        "10**400": 10**400,
        "10**5000": 10**5000,
        "1.5": 1.5,
        "numpy 1.5": np.float32(1.5),
        "1e308": 1e308,
        "nan": float("nan"),
        "numpy nan": np.float64("nan"),
        "inf": float("inf"),
        "-inf": float("-inf"),
        "complex": 1j,
        "bytes": b"heads",
        "empty text": "",
        "text": "no such thing",
        "half a character": "\ud800",
        "zero character": "a\0b",
        "long text": "John " * 20_000,
        "path": Path("no/such/place"),
        "empty list": [],
        "list of numbers": [0, 5],
        "list of texts": ["no", "such"],
        "list of None": [None],
        "list with itself": _endless(),
        "tuple of texts": PAIR.texts,
        "set": {"heads"},
        "empty mapping": {},
        "mapping": {"slot": ["word"]},
        "mapping of numbers": {1: 2},
        "generator": _none_left(),
        "array": np.array([0.0, 0.5, 1.0]),
        "array of texts": np.array(["0.1", "1.2"]),
        "matrix": np.zeros((2, 2)),
        "tensor": torch.tensor(0.5),
        "tensor of numbers": torch.tensor([0.0, 0.5, 1.0]),
        "function": lambda *_: None,
        "class": igap.PromptPair,
        "object": object(),
        "unspeakable object": Unspeakable(),
        "namespace": SimpleNamespace(cfg=None, site="heads"),
        "pair": PAIR,
        "baseline": igap.Baseline(),
        "plain model": hf_model,
    }


_COUNTS = {"5", "numpy 5"}
_NUMBERS = {"0", "-1", *_COUNTS, "1.5", "numpy 1.5", "1e308"}
_NOT_NEGATIVE = _NUMBERS - {"-1"}
_POSITIVE = _NOT_NEGATIVE - {"0"}
_BOOLS = {"True", "numpy True"}
_TEXTS = {"text", "long text"}
_LIMITS = ("min_clean", "min_corrupted", "max_corrupted", "min_fluency")

TAKES: Mapping[str, set[str]] = {
    "batch_size": {"None", *_COUNTS},
    "memory_gib": {"None", *_POSITIVE},
    "route": {"None"},
    "on_progress": {"None", "function", "class", "plain model"},
    "pair": {"pair"},
    "baseline": {"baseline"},
    "at": _NUMBERS,
    **{
        f"{method} {parameter}": set[str]()
        for parameter in ("positions", "metric")
        for method in (
            "ablate",
            "activation_patching",
            "atp_star",
            "attribution_patching",
            "both_directions",
            "integrated_gradients",
            "output_curve",
            "self_repair",
            "set_effects",
        )
    },
    "n_steps": _COUNTS,
    "n_orders": _COUNTS,
    "subset": set(),
    "both_directions high": set(),
    "most": {"0", *_COUNTS},
    "top": _COUNTS,
    "circuits": {"None"},
    "tolerance": _POSITIVE,
    "activation_patching tolerance": _NOT_NEGATIVE,
    "activation_patching top": {"None", *_COUNTS},
    "bound_effects top": _COUNTS,
    "n_subsets": _COUNTS,
    "AttributionMap top": {"None"},
    "generate": _BOOLS,
    "seed": {"0", *_COUNTS},
    "ablate controls": {"0", *_COUNTS},
    "components": {"array of texts"},
    "alphas": {"None", "array"},
    "revision": {"None", "empty text", *_TEXTS},
    "search pair": set(),
    "search optimality": {"None"},  # 5 are too few
    "space": {"None"},
    "penalty": _NOT_NEGATIVE,
    "until": _COUNTS,
    "batch": _COUNTS,
    "control": {"0", *_COUNTS},
    "clean_n": _COUNTS,
    "heldout_n": {"0", *_COUNTS},
    "storage": {"None"},
    "search name": {"empty text", *_TEXTS},
    "identity": {"None", "empty mapping", "mapping"},
    "remember": {"None", "path", "empty text", *_TEXTS},
    # Texts that no model knows are refused by the first that meets them.
    **dict.fromkeys(("clean", "corrupted", "answer", "distractor", "PromptPair bos", "Prompt text"), _TEXTS),
    **{
        f"PromptPair {key}": {*_TEXTS, "list of texts", "tuple of texts", "array of texts"}
        for key in ("answer", "distractor")
    },
    "Prompt distractor": {"None", *_TEXTS},
    **{key: {"empty text", *_TEXTS} for key in ("Prompt bos", "place", "method", "metric", "unit")},
    "integrated_gradients method": set(),
    "min_gap": _NOT_NEGATIVE,
    "prompt": {"None"},
    "n": _COUNTS,
    "gap": _NUMBERS,
    **dict.fromkeys(("signed", "covers"), _BOOLS),
    **{key: {"None"} for key in ("delta", "layer_effect", "rounding", "converged", "together")},
    "AttributionMap n_steps": {"None"},
    "spans": {"None", "array of texts", "empty list", "list of texts", "tuple of texts"},
    "pairs": {"empty list"},
    "where": {"None", "empty list"},
    "AttributionMap.incomplete_layers tolerance": _NOT_NEGATIVE,
    "k": {*_COUNTS, "10**400", "10**5000"},
    "index": {"0"},
    "run folder": {"None", "path", "empty text", *_TEXTS},
    "Comparison.plot kind": set(),
    "Run.plot name": set(),
    "metrics": {"None", "empty list"},
    # Of settings pydantic checks the types: what has a float's value is one.
    **{key: {"None", "numpy True", "tensor", *_NUMBERS} for key in _LIMITS},
    **{
        key: {"None", "numpy True", "tensor", "0", *_COUNTS, "1.5", "numpy 1.5"}
        for key in ("max_percentile", "max_downstream")
    },
    "template": {"None", "zero character", *_TEXTS},
    **{f"SpaceConfig {key}": {"None", "zero character", *_TEXTS} for key in ("answer", "distractor")},
    # The second holds two mistakes, which get a line each; slots without lists are refused where a prompt has them.
    "slots": {"mapping", "mapping of numbers", "empty mapping"},
    "positions": {"None", "list of numbers"},
    "vocabulary": {"list of texts", "tuple of texts"},
    "max_edits": {"None", "5"},
    "prompts": {"empty list", "list of texts", "tuple of texts"},
    "Baseline prompts": {"empty list", "list of texts", "tuple of texts", "array of texts"},
    **{key: {"None"} for key in ("heldout", "reference")},
    "file": {"None", "text"},
    "further": {"empty mapping"},
    "AttributionMap baseline": {"None"},
    "AttributionMap function": {"None", "function", "class", "plain model"},
    "AttributionMap direction": {"None"},
    "ablate prompts": set(),
    "n_edges": _COUNTS,
    "EdgeEffects.to_mib n_edges": {"None", *_COUNTS},
    "edge_effects readers": {"None"},
}
"""Of a parameter of any function, or of one function."""

RESULTS = (
    "Ablations",
    "BothDirections",
    "Comparison",
    "DirectEffects",
    "EdgeEffects",
    "EffectBound",
    "OutputCurves",
    "Run",
    "SearchResult",
    "SelfRepair",
    "SetEffects",
    "Sweep",
    "Top",
)
"""What igap makes and a user only reads: of their fields the types are checked."""


def takes(function: str, parameter: str) -> set[str]:
    """The names of the hostile values that this parameter takes."""
    return TAKES.get(f"{function} {parameter}", TAKES.get(parameter, set()))
