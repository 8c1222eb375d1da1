"""Prompts and prompt pairs: generated or read from files, tokenised, aligned. Nothing here runs a model."""
