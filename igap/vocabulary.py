"""The words that settings and methods share, and the checks that both make, each defined once.

`config` must not import torch, and the modules that use these words do: both sides import them from here. This
module imports nothing but Python. Sites are in `components.py`, the words of a search in `counterfactual/config.py`.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

Align = Literal["error", "end", "diff"]
"""How two prompts of different token length are matched; prompts of one length always are position by position.

`error`: not at all, the pair is rejected. `end`: positions counted from the end. `diff`: by a diff of the tokens.
"""

BaselineKind = Literal["corrupted", "zero", "zero_input", "mean", "prompt"]
"""What IG moves a site's activation to.

`corrupted`: its value on the corrupted prompt, as in activation patching. `zero`: 0. `zero_input`: its value when its
layer's input is 0: 0 for heads, act(b_in) for neurons. `mean`: its mean over generated reference prompts.
`prompt`: its value on another prompt.
"""

BASELINE_SETTINGS: Mapping[BaselineKind, tuple[str, ...]] = {"mean": ("n", "seed"), "prompt": ("prompt",)}
"""The settings of a baseline that a kind uses; a run's key and its results know no others. Kinds left out use none."""

Direction = Literal["noising", "denoising"]
"""`noising`: corrupted activations into the clean run. `denoising`: clean activations into the corrupted run."""

Quadrature = Literal["gausslegendre", "riemann_left", "riemann_middle", "riemann_right"]
"""Captum's rules for the path integral of IG.

Not its `riemann_trapezoid`: those weights sum to (n_steps - 1) / n_steps, so that every attribution is too small.
"""

IGPath = Literal["joint", "single"]
"""What moves along IG's path: all components of a layer together (`joint`), or one component alone (`single`)."""

MetricName = Literal["logit_diff", "logit", "logprob", "prob", "prob_diff", "kl", "js"]
"""F, one number of the logits after the last token.

`logit_diff`: logit[answer] - logit[distractor]. `logit`, `logprob`, `prob`: of the answer; logits, nats, probability.
`logprob` of an answer of several tokens: the sum over them, each after the prompt and those before it.
`prob_diff`: probability of the answer minus that of the distractor. Of answer sets the means of logits, and the sums of
probabilities.
`kl`: KL(clean || run) of the next token's distributions, nats. `js`: their Jensen-Shannon divergence, nats.
"""

LEAST_ON_CLEAN: tuple[MetricName, ...] = ("kl", "js")
"""Metrics that are 0 after the clean prompt and above 0 elsewhere, so that their gradient there is 0."""

MetricSetting = Literal[MetricName, "custom"]
"""A run's metric; `custom` is a function of the user's."""

PositionsKind = Literal["all", "each", "last", "diff", "roles", "own", "spans"]
"""Which positions change. `all`: every one at once. `each`: one at a time. `last`: the one that the answer follows.
`diff`: those whose token differs between the prompts, at once. `roles`: those of the names in an IOI prompt. `own`:
named in the column `spans` of the file of pairs. `spans`: named by the user."""

ROLES = ("IO", "S1", "S1+1", "S2", "END")
"""Names of positions in a prompt of indirect object identification: the indirect object, the subject twice, the token
after its first time, and the last token."""

Method = Literal["ig", "ap", "atp"]
"""Integrated Gradients, activation patching, attribution patching (its first-order estimate)."""

AblationKind = Literal["zero", "mean", "mean_positional", "resample"]
"""What an ablated component is replaced by.

`zero`: 0. `mean`: its mean over reference prompts and positions. `mean_positional`: its mean over reference prompts at
each position. `resample`: its value on another prompt of the same length.
"""

Processing = Literal["processed", "raw"]
"""`processed`: layer norms and value biases folded, weights centred. `raw`: the checkpoint's own weights."""

DTypeName = Literal["float32", "float64", "bfloat16"]
"""torch's name of the type that the model computes in."""

TrackingMode = Literal["offline", "online", "auto", "disabled"]
"""Where W&B logs to: a folder, the server, the server if there is a key and it answers (`auto`), or nowhere."""

MOST_COUNT = 1_000_000
"""The largest number of steps, rows or prompts that any setting takes."""

LARGEST_SEED = 2**63 - 1
"""The largest seed that torch's, numpy's and Python's generators all take."""

_MOST_ALPHAS = 10_000
_FARTHEST = 1_000_000  # models still compute with an activation that is moved so many times as far as the baseline

ALPHAS = f"3 to {_MOST_ALPHAS} numbers from {-_FARTHEST} to {_FARTHEST}, each above the last"
"""What `are_alphas` wants, for messages."""


def are_alphas(numbers: Sequence[object]) -> bool:
    """Whether these can be the alphas of an output curve: as `ALPHAS` says."""
    if not 3 <= len(numbers) <= _MOST_ALPHAS:
        return False
    known = [x for x in numbers if isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= _FARTHEST]
    return len(known) == len(numbers) and all(left < right for left, right in itertools.pairwise(known))


def denoising_problem(direction: Direction, baseline: BaselineKind) -> str | None:
    """The message for a baseline that this direction does not take; None if it takes it."""
    if direction == "noising" or baseline == "corrupted":
        return None
    return (
        f"baseline: got {baseline} with direction=denoising, wanted corrupted, the only path that direction has. "
        "Use baseline=corrupted or direction=noising."
    )
