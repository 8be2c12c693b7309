"""Reads GGUF: container, configuration, tokenizer, block formats and split files."""
