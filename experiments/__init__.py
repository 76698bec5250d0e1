"""Commands; `python -m experiments.<name>` from the root of the repository."""
