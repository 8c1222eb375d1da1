"""Effects of each member of a target alone, for prompts that are tried for all of them at once."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from igap.counterfactual.objective.evaluator import Evaluator
from igap.counterfactual.objective.patch import Patch


class MembersEvaluator(Evaluator):
    """An evaluator of many components, each patched alone. Effects are in F's unit."""

    def estimates_of_all(
        self, tokens: Int[Tensor, "corrupted candidate pos"]
    ) -> Float[Tensor, "candidate pair member"]:
        """AtP of every member: one run of each corrupted prompt, since the gradients are the clean runs'."""
        return self._of_members(tokens, self._patch.members, lambda ends, _: self._patch.estimates(ends))

    def effects_of(
        self, tokens: Int[Tensor, "corrupted candidate pos"], places: Sequence[int]
    ) -> Float[Tensor, "candidate pair chosen"]:
        """AP of the members at these places of the target: beside that run one from the patch on for each."""
        members = [self._patch.members[place] for place in places]

        def patch(ends: Sequence[Tensor], mask: Tensor | None) -> Tensor:
            values = [member.value(end, mask) for member, end in zip(members, ends, strict=True)]
            return torch.stack(values, -1) - self._unpatched[:, None, None]

        self.cost += tokens.shape[1] * self._cost_of_members * len(places) / len(self.target.members)
        return self._of_members(tokens, members, patch)

    def _of_members(
        self,
        tokens: Tensor,
        members: Sequence[Patch],
        numbers: Callable[[Sequence[Tensor], Tensor | None], Float[Tensor, "pair candidate member"]],
    ) -> Float[Tensor, "candidate pair member"]:
        def compute(items: Tensor) -> Tensor:
            some = tokens[:, items]
            mask = self._patch.mask(some)
            with torch.no_grad():
                sites = self._activations(self._changes(some))
                ends = [member.end(member.activation(sites), mask) for member in members]
                return numbers(ends, mask).transpose(0, 1).cpu()

        n = tokens.shape[1]
        self.cost += n * self._prefix_cost
        passes = self._passes.gradient.each(compute, torch.arange(n), len(self.bound.pairs))
        return torch.cat([made for _, made in passes])
