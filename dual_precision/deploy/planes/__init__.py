"""Layers on bit planes: how many planes a product reads is chosen at every call."""
