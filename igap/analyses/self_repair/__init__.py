"""Self-repair: what the other components do when a chosen one is patched."""
