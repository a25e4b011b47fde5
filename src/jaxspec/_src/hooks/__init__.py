"""The built-in hooks, and what hooks see."""
