"""One file a choice of trained weights."""
