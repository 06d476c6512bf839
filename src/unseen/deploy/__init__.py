"""Use what was trained: a bundle of weights, preparation and facts, and the model that is loaded from it."""
