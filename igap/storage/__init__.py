"""Files: written atomically, read with distrust, cached between runs."""
