"""Look at every image before training on it, and report what is wrong."""
