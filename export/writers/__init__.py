"""Artifact writers, one file per backend. They read a `Decoder` and its weights, and know no checkpoint format."""
