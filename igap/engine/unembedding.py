"""F from the final norm's output: of a difference of logits, a few columns of the unembedding are enough."""

from collections.abc import Callable

import torch
from torch import Tensor

from igap.engine.decoder import Decoder
from igap.engine.metrics import Readout, by_question


def unembed(decoder: Decoder, readout: Readout) -> Callable[[Tensor], Tensor]:
    """The final norm's output `[pair, row, read, d_model]` to F `[question, row]`."""
    alone = [(each, _without_logits(decoder, each)) for each in readout.each]

    def values(read: Tensor) -> Tensor:
        logits = decoder.logits(read) if any(shorter is None for _, shorter in alone) else read
        return by_question([each(logits) if shorter is None else shorter(read) for each, shorter in alone])

    return values


def _without_logits(decoder: Decoder, readout: Readout) -> Callable[[Tensor], Tensor] | None:
    """F of one metric from a few columns of the unembedding; None where that is not enough."""
    scale, cap, known = decoder.logit_scale, decoder.logit_cap, readout.known
    if not readout.is_logit_diff or known.distractor is None:
        return None
    sets = (known.answer, known.distractor)
    if cap is not None and not all(each.are_single for each in sets):
        return None
    n_pairs = len(readout.pairs)
    weights = [each.mean(decoder.unembed.detach().expand(n_pairs, -1, -1)) for each in sets]
    biases = [each.mean(decoder.unembed_bias.detach().expand(n_pairs, -1)) for each in sets]
    if cap is None:
        direction, offset = scale * (weights[0] - weights[1]), scale * (biases[0] - biases[1])
        return lambda read: (read.squeeze(2) * direction[:, None]).sum(-1) + offset[:, None]

    def difference(read: Tensor) -> Tensor:
        last = read.squeeze(2)
        logits = (scale * ((last * w[:, None]).sum(-1) + b[:, None]) for w, b in zip(weights, biases, strict=True))
        first, second = (cap * torch.tanh(logit / cap) for logit in logits)
        return first - second

    return difference
