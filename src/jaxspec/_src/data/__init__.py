"""Batches on their way from input_fn to the devices."""
