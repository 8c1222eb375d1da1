"""Direct effects: what a component does to F by its own path to the logits."""
