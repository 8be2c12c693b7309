"""CUDA: a thin layer over the driver API, and the sources of our own kernels in `csrc/`."""
