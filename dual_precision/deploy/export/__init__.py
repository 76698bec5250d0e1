"""Trained networks for other engines, from the integers of a packed file."""
