"""All that knows Hydra: where the configuration lies, what may be typed, and parts built from it."""
