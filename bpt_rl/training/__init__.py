"""Optimizer, training loop and checkpoints."""
