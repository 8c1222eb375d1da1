"""Loading checkpoints, and the embedded one."""
