"""The research notebook that asked igap's question, as one study: its figures beside those this run computes."""
