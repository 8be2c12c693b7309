"""Runs the `onnxruntime` dialect's bundles on plain CPUs with kernels of our own."""
