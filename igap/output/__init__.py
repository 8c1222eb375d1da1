"""What users see of a run: files, terminal, figures, W&B, the dashboard."""
