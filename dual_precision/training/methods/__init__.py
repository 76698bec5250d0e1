"""Ways to train: each a loss, and where it needs them schedules and events."""
