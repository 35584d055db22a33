"""Agentic Transformer (arXiv:2305.16554): a chain of hindsight over many episodes."""
