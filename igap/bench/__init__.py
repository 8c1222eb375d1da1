"""Models whose right answer is known, and an exam of every attribution method on them.

`circuits()` gives the models: transformers with weights written by hand, each with its truth in closed form.
`run_bench` is the exam: how each method ranks the components that matter, and how far its numbers are from the truth.
"""

from igap.bench.circuit import Circuit
from igap.bench.circuits import circuits as circuits
from igap.bench.exam import Bench, run_bench
from igap.bench.truth import Truth

__all__ = ["Bench", "Circuit", "Truth", "circuits", "run_bench"]
