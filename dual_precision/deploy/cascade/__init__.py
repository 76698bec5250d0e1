"""The cascade: one mode answers what it is sure of, the next mode the rest."""
