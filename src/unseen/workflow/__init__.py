"""One run, from built parts to its record and its pictures."""
