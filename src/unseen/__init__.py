"""Deep metric learning that generalises to classes training never saw."""
