"""Measures the quality loss of quantization: perplexity and KL divergence against the checkpoint."""
