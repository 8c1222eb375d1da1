"""What comes after the comparison: each analysis in a module or a folder of its own, listed in `registry`."""
