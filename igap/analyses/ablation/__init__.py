"""Components are ablated, and the model's accuracy is measured."""
