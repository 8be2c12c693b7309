"""`edgekit targets` and `edgekit doctor`."""
