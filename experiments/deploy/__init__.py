"""Commands on packed files."""
