"""TensorFlow 1's optimizers, where optax has no arguments that give the same update."""
