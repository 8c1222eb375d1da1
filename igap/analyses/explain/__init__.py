"""Why IG and AP disagree about the heads of a run."""
