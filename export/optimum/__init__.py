"""The second exporter: Optimum writes a float ONNX graph in its own environment, and edgekit quantizes it."""
