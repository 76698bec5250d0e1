"""The packed file: one file for all modes, the narrowest first."""
