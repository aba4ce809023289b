"""One file a way of holding a frozen model in few bits."""
