"""A packed network over HTTP, whose precision a request chooses, or a budget. Extra [pages]."""
