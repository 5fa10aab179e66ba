"""Batch normalisation folded into the convolution before it, once for all targets."""

from pocketlens.distill.compression.folding import fold_batch_norm

__all__ = ["fold_batch_norm"]
