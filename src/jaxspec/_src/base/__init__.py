"""What everything may use: names of arrays, checks, errors, callables."""
