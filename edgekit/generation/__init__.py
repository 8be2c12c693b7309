"""The generation core: tokens in, tokens out. It knows no transport and no file format."""
