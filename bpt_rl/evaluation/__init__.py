"""Rollouts, scores and their statistics."""
