"""Modes of a packed network as ONNX graphs, for ONNX Runtime and what reads the same."""
