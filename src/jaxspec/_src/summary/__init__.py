"""Event files, and what host functions write to them."""
