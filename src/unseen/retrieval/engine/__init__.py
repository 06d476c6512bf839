"""How exact search is made fast: a sweep in low precision under a proven error bound, then float64."""
