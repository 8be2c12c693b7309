"""Reads an ONNX graph and derives the model from it, without the onnx package."""
