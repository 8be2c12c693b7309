"""Quantization recipes: pure functions, arrays in and arrays out. They know no file format."""
