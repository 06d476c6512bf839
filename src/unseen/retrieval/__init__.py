"""Embeddings → neighbours → metrics. Needs only torch and NumPy."""
