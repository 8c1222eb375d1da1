"""A run, from its config to its result."""

from igap.pipeline.prepare import Checked, check
from igap.pipeline.result import Result
from igap.pipeline.steps import Stage, run, silent

__all__ = ["Checked", "Result", "Stage", "check", "run", "silent"]
