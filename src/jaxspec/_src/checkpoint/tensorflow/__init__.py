"""Reading TensorFlow's checkpoints without TensorFlow."""
