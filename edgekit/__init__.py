"""edgekit takes a chat model from a checkpoint to an answering edge device."""

__version__ = "0.1.0"
