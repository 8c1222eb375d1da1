"""F along the path of single components."""

from igap.analyses.curves.curves import OutputCurves, output_curve

__all__ = ["OutputCurves", "output_curve"]
