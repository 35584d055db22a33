"""Behavior cloning, plain or on the best episodes only."""
