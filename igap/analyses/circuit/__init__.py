"""How well each method finds the heads that a published circuit names."""
