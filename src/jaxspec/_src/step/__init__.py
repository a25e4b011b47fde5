"""model_fn and init_fn made pure steps."""
