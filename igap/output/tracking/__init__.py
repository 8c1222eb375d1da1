"""Runs in W&B."""
