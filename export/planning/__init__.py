"""Estimates memory and speed of a model on a target, from its configuration alone."""
