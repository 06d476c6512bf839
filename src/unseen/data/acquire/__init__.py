"""Get a published data set: download, unpack, count."""
