"""igap from Python: whole runs, finished runs and sweeps opened, and the figures of values in a notebook."""
