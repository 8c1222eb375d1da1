"""What a corrupted prompt is worth: effects, kept on disk, made into a value a term. Imports `spaces`, `history`."""
