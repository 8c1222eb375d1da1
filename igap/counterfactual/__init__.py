"""Search for corrupted prompts for which a chosen head's or neuron's attribution is as large as it gets.

A corrupted prompt is a point of a space (`spaces`), its value a number (`objective`). `samplers` choose the next ones,
`trials` keeps them on disk, `session` goes round until the target, `validation` says how far to believe the best.
`search` is the whole from Python, `runner` the whole from a config, `output` what is written and shown.

Imports go one way: samplers.registry, config, spaces, history, objective, samplers, trials, session, validation,
search, plan, workers, output, runner.
"""
