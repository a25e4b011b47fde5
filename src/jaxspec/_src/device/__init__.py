"""Maps steps over devices, and holds the training state on them."""
