"""Messages in, token ids out: chat templates, the tokenizer, special tokens and stop strings."""
