"""Compression in training: pruning and quantization-aware training. docs/compression.md says what each buys."""
