"""Flax NNX modules built on the operations: one mixer a file."""
