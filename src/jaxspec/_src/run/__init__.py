"""TPUEstimator and its verbs."""
