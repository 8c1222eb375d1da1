"""Loading checkpoints safely, and the embedded checkpoint."""
