"""Decision Transformer (arXiv:2106.01345): one episode of context, its own return-to-go."""
