"""Where data come from: fetched, checked, prepared through TFDS."""
