"""Circuits of each method's best components: how much of the effect they keep."""
