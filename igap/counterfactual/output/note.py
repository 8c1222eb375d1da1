"""A search's report as the note of its study, which Optuna Dashboard shows; Markdown."""

import re
from collections.abc import Mapping

from igap.counterfactual.config import SearchConfig
from igap.counterfactual.output.optimality import describe_optimality
from igap.counterfactual.search import SearchResult
from igap.counterfactual.validation.verdict import decimals
from igap.errors.missing import Missing
from igap.inputs.answers import format_answer

SHOWN = ("heads", "history")
"""The pictures that stand in the note, by their files' names."""


def describe_in_markdown(
    result: SearchResult, config: SearchConfig, command: str, pictures: Mapping[str, str] | None = None
) -> str:
    """The verdict, the best prompt beside the clean one, its numbers, how near the optimum it is, and the command.

    Args:
        result: of the search.
        config: of one component.
        command: what makes the search again.
        pictures: addresses of pictures by their files' names; None: the note has none.
    """
    validation, best, objective = result.validation, result.best, result.objective
    heldout, random, term = validation.heldout, validation.random, objective.terms[0]
    n = len(result.clean)
    rows: dict[str, tuple[float | Missing, ...]] = {
        term: (validation.best.value, validation.reference.value),
        "AP effect": (validation.best_effects.ap, validation.reference_effects.ap),
    }
    if not isinstance(heldout, Missing):
        rows[f"{term} on {heldout.n} held-out prompts"] = heldout.value, heldout.reference
    if random.n:
        rows[f"{term}, best of {random.n} at random"] = (random.best,)
    parts = [
        f"# {_escape(config.head)}: the best of {len(result.trials)} trials",
        "\n".join(f"- {_escape(sentence)}" for sentence in result.verdict.split("\n")),
        fence_block(
            f"clean      {best.clean} {format_answer(best.answer)}\n"
            f"corrupted  {best.corrupted}\n"
            f"rule: {validation.best.rule} (trial {validation.best.trial})"
        ),
        *([f"These are the first of {n} clean prompts; the numbers are of all."] if n > 1 else []),
        "\n".join(
            [
                f"| {objective.unit} | best | made by hand |",
                "|---|---:|---:|",
                *(f"| {name} | {' | '.join(map(_number, values))} |" for name, values in rows.items()),
            ]
        ),
        *map(_escape, describe_optimality(result)),
        fence_block(command),
        *(f"![{name}]({pictures[name]})" for name in SHOWN if pictures and name in pictures),
    ]
    return "\n\n".join(parts) + "\n"


def _number(value: float | Missing) -> str:
    return "-" if isinstance(value, Missing) else decimals(value)


def _escape(text: str) -> str:
    """Text that Markdown leaves as it is."""
    return re.sub(r"([\\`*_\[\]<>#|~])", r"\\\1", text)


def fence_block(text: str) -> str:
    """A block of text as it is, fenced by more backticks than stand anywhere in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}\n{text}\n{fence}"
