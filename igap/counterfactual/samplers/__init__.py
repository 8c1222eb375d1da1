"""Which candidates to try next. Imports `spaces` and `history`."""
