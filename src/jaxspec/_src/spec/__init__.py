"""What model_fn returns: plain records with pure functions."""
