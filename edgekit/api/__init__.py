"""The public Python API, reached as attributes of `edgekit`: load a bundle, chat with it, export a model."""
