"""The integer forward: the same network, computed from codes."""
