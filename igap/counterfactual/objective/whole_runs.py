"""Numbers of whole runs on corrupted prompts: what the other heads do, how likely the words are, what is answered."""

from collections.abc import Callable, Collection
from functools import cached_property, partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad

from igap.components import Site, hook_name
from igap.counterfactual.objective.embeddings import scores_of_options
from igap.counterfactual.objective.patch import Patch
from igap.counterfactual.spaces.base import BoundSpace, Candidate
from igap.engine.activations import from_hook
from igap.engine.batching import AdaptiveBatch
from igap.engine.contrast import Contrast
from igap.engine.hooks import Change, edit_hooks
from igap.engine.token_sets import answers, logit_diff

WholeNumber = Literal["mean_other_heads", "fluency", "corrupted"]
"""- `mean_other_heads`: mean |AtP| of all other heads at the target's positions, first order around the clean run; F's
  unit.
- `fluency`: mean log-probability of the corrupted prompt's tokens less that of the clean prompt's; nats.
- `corrupted`: logit difference of the corrupted run, with the clean prompt's answer and distractor; logits.
"""


class WholeRuns:
    """Numbers that need the whole model on the corrupted prompts."""

    def __init__(self, bound: BoundSpace, around: Contrast, patch: Patch) -> None:
        """`around` are the clean runs, `patch` the target in them."""
        self._bound, self._around, self._patch = bound, around, patch
        self._model, self._first = around.model, around.first

    def numbers(
        self, tokens: Int[Tensor, "corrupted candidate pos"], names: Collection[str]
    ) -> dict[str, Float[Tensor, "pair candidate"]]:
        """Those of these numbers that are named."""
        logits, others = self._run(tokens, heads="mean_other_heads" in names)
        numbers: dict[str, Tensor] = {}
        if "corrupted" in names:
            last = logits[:, :, -1].expand(len(self._bound.pairs), -1, -1)
            answer, distractor = answers(self._around.pairs, last.device)
            assert distractor is not None, "check_answers has seen to it"
            numbers["corrupted"] = logit_diff(last, answer, distractor)
        if "fluency" in names:
            n = self._around.pairs[0].n_prompt  # without an answer's tokens
            own = _mean_log_probability(logits[:, :, :n], tokens[:, :, :n])
            numbers["fluency"] = own - self._clean_fluency[:, None]
        if others is not None:
            numbers["mean_other_heads"] = others
        return numbers

    def activations(
        self, prompts: Int[Tensor, "prompt pos"], places: Collection[tuple[Site, int]]
    ) -> dict[tuple[Site, int], Float[Tensor, "1 prompt pos *component"]]:
        """Activations of any prompts of one length, by site and layer."""
        seen: dict[tuple[Site, int], Tensor] = {}

        def keep(place: tuple[Site, int], activation: Tensor) -> None:
            seen[place] = from_hook(place[0], activation)[None]

        hooks: dict[str, Change] = {hook_name(*place): partial(keep, place) for place in places}
        with torch.no_grad(), edit_hooks(self._model, hooks):
            self._model(prompts, logits_to_keep=1)
        return seen

    def fluency_scores(
        self, tokens: Int[Tensor, "corrupted pos"], candidate: Candidate, embed: Tensor, rows: AdaptiveBatch
    ) -> list[Float[Tensor, " _option"]]:
        """For every option of every slot, the change of `fluency`, its mean over clean prompts, to first order; nats.

        A word changes what is said of the words after it, which its embedding's gradient tells to first order, and
        its own probability, which is known.
        """
        by_embedding, by_token = self.fluency_gradient(tokens, rows)
        # An answer's tokens behind the prompt, of which fluency is not.
        by_embedding = pad(by_embedding, (0, 0, 0, self._bound.clean.shape[1] - tokens.shape[1]))
        own = by_token.gather(-1, tokens[..., None])[..., 0]
        indirect = scores_of_options(self._bound, embed, candidate, by_embedding[:, self._first :])
        scores = []
        for slot, table, score in zip(self._bound.space.slots, self._bound.tables, indirect, strict=True):
            where = list(slot.positions)
            words = table.transpose(1, 2)  # [corrupted, width, option]
            direct = by_token[:, where].gather(-1, words) - own[:, where, None]
            scores.append((score + direct.sum((0, 1)).cpu()) / len(tokens))
        return scores

    def fluency_gradient(
        self, tokens: Int[Tensor, "corrupted pos"], rows: AdaptiveBatch
    ) -> tuple[Float[Tensor, "corrupted pos d_model"], Float[Tensor, "corrupted pos d_vocab"]]:
        """How each corrupted prompt's mean log-probability changes with its tokens.

        Returns:
            The gradient in each token's embedding, by which the later tokens are predicted; and what each token of the
            vocabulary would add as the one that is predicted. Nats a token.
        """
        n = tokens.shape[1]

        def compute(items: Tensor) -> Tensor:
            own = tokens[items]
            moved: list[Tensor] = []

            def move(embedded: Tensor) -> Tensor:
                moved.append(torch.zeros_like(embedded, requires_grad=True))
                return embedded + moved[0]

            with torch.enable_grad(), edit_hooks(self._model, {"hook_embed": move}):
                logits = self._model(own)
                total = _mean_log_probability(logits[:, None], own[:, None]).sum()
                (gradient,) = torch.autograd.grad(total, moved)
            by_token = logits[:, :-1].detach().log_softmax(-1) / (n - 1)
            first = torch.zeros_like(by_token[:, :1])  # which nothing predicts
            return torch.cat([gradient, torch.cat([first, by_token], 1)], -1)

        made = torch.cat([each for _, each in rows.each(compute, torch.arange(len(tokens), device=tokens.device))])
        width = self._model.cfg.d_model
        return made[..., :width], made[..., width:]

    def _run(self, tokens: Tensor, *, heads: bool) -> tuple[Tensor, Tensor | None]:
        """Logits `[corrupted, candidate, pos, vocabulary]`, and the mean |AtP| `[pair, candidate]` of other heads."""
        names = [hook_name("heads", layer) for layer in range(self._model.cfg.n_layers)] if heads else []
        seen: dict[str, Tensor] = {}

        def keep_as(name: str) -> Callable[[Tensor], Tensor]:
            def keep(activation: Tensor) -> Tensor:
                seen[name] = activation
                return activation

            return keep

        with torch.no_grad(), edit_hooks(self._model, {name: keep_as(name) for name in names}):
            logits = self._model(tokens.flatten(0, 1)).unflatten(0, tokens.shape[:2])
        if not heads:
            return logits, None
        total, n_heads, mask = torch.zeros(()), 0, self._patch.mask(tokens)
        searched = self._patch.target.head
        for layer, (name, slope) in enumerate(zip(names, self._slopes, strict=True)):
            z = seen[name].unflatten(0, tokens.shape[:2])[:, :, self._first :]
            clean = self._around.clean.activations["heads"][layer][:, None, self._first :]
            by_position = (z - clean) * slope
            if mask is not None:
                by_position = by_position * mask[..., None, None]
            first_order = by_position.sum((2, 4)).abs()  # [pair, candidate, head]
            if searched is not None and searched[1] == layer:
                first_order[..., searched[2]] = 0
                n_heads -= 1
            n_heads += first_order.shape[-1]
            total = total + first_order.sum(-1)
        return logits, total / max(1, n_heads)

    @cached_property
    def _slopes(self) -> list[Float[Tensor, "pair 1 changed head d_head"]]:
        """dF/dz at the clean runs, a tensor a layer."""
        slopes: list[Tensor] = []
        for layer, z in enumerate(self._around.clean.activations["heads"]):
            leaf = z[:, None, self._first :].detach().clone().requires_grad_()
            with torch.enable_grad():
                slopes += torch.autograd.grad(self._around.function("heads", layer)(leaf).sum(), leaf)
        return slopes

    @cached_property
    def _clean_fluency(self) -> Float[Tensor, " pair"]:
        clean = self._bound.clean[:, : self._around.pairs[0].n_prompt]
        with torch.no_grad():
            return _mean_log_probability(self._model(clean)[:, None], clean[:, None])[:, 0]


def _mean_log_probability(
    logits: Float[Tensor, "corrupted candidate pos d_vocab"], tokens: Int[Tensor, "corrupted candidate pos"]
) -> Float[Tensor, "corrupted candidate"]:
    """Mean log-probability of every token but the first, given those before it; nats a token."""
    chosen = logits[:, :, :-1].gather(-1, tokens[:, :, 1:, None])[..., 0]
    mean: Tensor = (chosen - logits[:, :, :-1].logsumexp(-1)).mean(-1)
    return mean
