"""Recipes as data, one train step, one fit."""
