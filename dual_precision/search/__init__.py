"""One-shot search for the widths of layers, which an analyst may steer."""
