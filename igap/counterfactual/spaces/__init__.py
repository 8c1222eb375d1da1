"""Which corrupted prompts there are: their slots, options and tokens. Imports nothing else of the search."""
