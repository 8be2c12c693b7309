"""CPU kernels in C that run bundles of the `onnxruntime` dialect on plain CPUs."""
