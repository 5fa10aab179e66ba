"""Compression in training: quantization-aware training. docs/compression.md says what each buys."""
