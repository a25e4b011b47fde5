"""Steps mapped over devices, and the training state that lives there."""
