"""The embedded model: a small GPT-2 trained on generated IOI sentences, with the script that trained it."""
