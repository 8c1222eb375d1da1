"""An atlas of counterfactuals: what every head of a model can be made to do, and by how few prompts."""
