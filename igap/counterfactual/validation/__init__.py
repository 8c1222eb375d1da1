"""How far to believe the best prompt. Imports `session` and all below it."""
