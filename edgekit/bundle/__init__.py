"""Bundles: manifest, hashes, quality figures."""
