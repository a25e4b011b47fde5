"""Steps mapped over devices, and the state that lives there."""
