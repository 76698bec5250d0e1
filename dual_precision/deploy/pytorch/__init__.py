"""State dicts of PyTorch, read without PyTorch, and where their values stand in our networks."""
