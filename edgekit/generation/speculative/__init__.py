"""Speculative decoding: drafters (prompt lookup, draft model) and how many draft tokens pay off."""
