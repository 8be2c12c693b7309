"""Logits in, tokens out: filters, penalties, logprobs and verification of draft tokens."""
