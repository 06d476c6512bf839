"""One file for each kind of data: what reads it and gives a `Manifest`."""
