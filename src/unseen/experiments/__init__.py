"""What a run leaves behind: its record and its pictures. Knows records and arrays, not models."""
