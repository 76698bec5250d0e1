"""Pure functions on arrays: straight-through estimators, quantizers, nested codes, bit planes."""
