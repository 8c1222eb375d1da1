"""What comes after the comparison: each analysis in a module or folder of its own."""
