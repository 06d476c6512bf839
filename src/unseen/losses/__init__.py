"""Embeddings and labels → one scalar."""
