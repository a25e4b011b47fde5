"""TPUEstimator and its verbs: train, evaluate, predict, train_and_evaluate."""
