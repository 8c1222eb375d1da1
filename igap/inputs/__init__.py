"""Prompt data sets, generated or read from files: plain Python, no model and no tokenizer."""
