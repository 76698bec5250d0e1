"""Commands that look at what the methods of training need, or leave."""
