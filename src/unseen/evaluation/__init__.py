"""What a trained embedding is worth: on unseen classes, on held-out images of seen ones, and the gap."""
