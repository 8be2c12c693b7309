"""Quantization methods: pure functions, arrays in and arrays out."""
