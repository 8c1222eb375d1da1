"""What storages and caches know a model and a metric by."""

import hashlib
import json
from collections.abc import Mapping
from operator import itemgetter

import torch
from transformer_lens.model_bridge import TransformerBridge

from igap.engine.metrics import Custom
from igap.engine.user_metrics import file_digest
from igap.errors import InputError, short_repr
from igap.metrics import Metric


def check_json(identity: Mapping[str, object] | None) -> None:
    """Raises InputError on what is not written as JSON, as storages have it."""
    try:
        json.dumps(identity)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"identity: got {short_repr(identity)}, which is no JSON ({error}), wanted texts and numbers by "
            "names. Leave it out: then it is a hash of the model's weights."
        ) from None


def source_of(metric: Metric) -> dict[str, str]:
    """The caller's metric by its name and a hash of its text; nothing of one of igap's.

    Raises InputError on a function that these do not tell from others: a lambda, or one with values of its own.
    """
    if not isinstance(metric, Custom):
        return {}
    function = metric.function
    name = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', '')}"
    if "<lambda>" in name or getattr(function, "__closure__", None):
        raise InputError(
            f"metric: got {name}, a lambda or a function with values of its own, wanted one that its name and its text "
            "tell from others, since storage and remember keep its numbers. Write a function at the top of a module."
        )
    return {"metric/function": name, "metric/source": file_digest(function, "metric: got a function")}


def hash_weights(model: TransformerBridge) -> dict[str, str]:
    """A hash of the model's weights, as they are now."""
    digest = hashlib.sha256()
    for name, weight in sorted((*model.named_parameters(), *model.named_buffers()), key=itemgetter(0)):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {"weights": digest.hexdigest()[:16]}
