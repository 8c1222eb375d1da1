"""Search for corrupted prompts for which a chosen head's or neuron's attribution is as large as it gets.

A corrupted prompt is a point of a space (`space`), its worth a number (`objectives`, computed many at once by
`evaluation`); `proposals` choose the next points, `study` keeps them on disk, `search` goes round until the target.
"""
