"""Builds TensorRT engines on the device, and describes them; needs neither `onnx` nor `edgekit.export`."""
