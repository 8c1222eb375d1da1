"""The trials of a search, kept in an Optuna study. Imports `spaces`, `history` and `objective`."""
