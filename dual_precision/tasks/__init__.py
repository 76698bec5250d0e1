"""What a network is trained for: what an example is, its loss, how batches are drawn."""
