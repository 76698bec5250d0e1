"""The search for widths: the command, its page, and whether steering helps."""
