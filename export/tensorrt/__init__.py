"""Builds engines with NVIDIA's parser and builder, in a child process."""
