"""Approximate search, for galleries that exact search is too slow for; what it misses is measured."""
