"""The metrics of `tf.compat.v1.metrics`, on the host."""
