"""A sweep: its plan, its folder on disk, and the work of one job. Launching, which is Hydra's, is in `cli`."""
