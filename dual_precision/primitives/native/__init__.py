"""Compiled CPU kernels: built at first use, left out where they cannot be."""
