"""Networks, a loss and an adversary in one learner: optimisation, callbacks, checkpoints."""
