"""Checkpoint readers, one file per format; each yields tensors lazily."""
