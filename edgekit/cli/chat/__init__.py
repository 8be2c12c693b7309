"""The terminal chat of `edgekit run`."""
