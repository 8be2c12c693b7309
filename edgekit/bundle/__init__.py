"""Bundles: manifest, hashes, signature, slots. No network, and no knowledge of models."""
