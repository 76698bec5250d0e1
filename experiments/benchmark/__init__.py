"""What is timed: the train step and inference, beside the peers."""
