"""Recipes: ways to train, as plain data."""
