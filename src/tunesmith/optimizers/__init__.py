"""One file an optimizer with its parameter groups."""
