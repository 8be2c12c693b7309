"""Where a checkpoint comes from: catalogue, package index, hub or disk."""
