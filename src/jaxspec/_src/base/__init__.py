"""What every layer may import: names of leaves, checks of arguments, errors, calls of user functions."""
