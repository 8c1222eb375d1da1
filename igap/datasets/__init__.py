"""Generated prompt data sets: plain Python, no model and no tokenizer."""
