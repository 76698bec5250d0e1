"""The page of a search: linked views of its state, which edit it."""
