"""Checkpoint readers, one file per format. They yield tensors lazily and know no target."""
