"""The generation core: tokens in, tokens out."""
