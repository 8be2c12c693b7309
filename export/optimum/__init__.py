"""Optimum as the second way in: its ONNX exporter writes the graph, in an environment of its own, and ours follow."""
